"""Variational objectives, each a short program to read against its formula, each a
``numpyro.infer.elbo.ELBO``.

With w = p(y, z) / q(z), w̄ the self-normalised weights of K draws of q, and log Z the log evidence:

========================= ======================= ==================== ============== ========================
objective                 expectation of          bound of log Z       strategies     when
========================= ======================= ==================== ============== ========================
``ELBO``                  log w                   from below           every          the default
``ELBO``, analytic        the same, −KL(q_s ‖     from below           every          less noise; laws of one
                          p_s) where known                                            family
``ELBO``, stick the ...   the same                from below           every          less noise near the
                                                                                      posterior
``IWELBO``                log mean w              from below           every          a tighter bound, a wider
                                                                                      guide
``DoublyReparameterized`` log mean w              from below           reparam only   IWELBO with many
                                                                                      particles
``Renyi``                 log mean w^(1−α), over  below for 0 ≤ α < 1  every          between the two
                          1 − α
``VRIWAE``                the same, 0 ≤ α < 1     from below           every          the same, doubly
                                                                                      reparameterised
``Thermodynamic``         Σ_t (β_{t+1} − β_t)     from below           every, or none discrete sites, no
                          E_{π_βt} log w                                              baselines
``ChiUpperBound``         −(mean wⁿ / c + log c − minus one from above every          to bracket log Z, a
                          1) / n                                                      covering guide
``ForwardKL``             −Σ w̄ log w + log mean  none                 none           a covering guide,
                          w                                                           discrete sites
``ReweightedWakeSleep``   log mean w; Σ w̄ ∇ log  from below           none           models to be learned,
                          q                                                           discrete sites
``Sleep``                 log q(z given y′), (z,  none                 none           amortised guides, any
                          y′) ~ p                                                     simulator
``MarkovScoreClimbing``   Σ w̄ log q, one draw    none                 none           as ForwardKL, unbiased
                          retained                                                    at low K
``FDivergence``           −mean f(K w̄)           none                 every          both directions of KL at
                                                                                      once
``constrain``             objective − λ (quantity none                 as objective's a budget for a
                          − C)                                                        divergence
========================= ======================= ==================== ============== ========================

"None" in the column of strategies: draws are held fixed, so that sites of every kind serve, and no strategy
is asked for. Hierarchical bounds are these with a guide (or model) that is a :class:`~ppl_ext.marginal`:
``ELBO`` is then the hierarchical bound with one inner particle and the importance-weighted hierarchical one
with more, and ``IWELBO`` the doubly importance-weighted one. The bounds refuse estimates that err the wrong
way (:mod:`ppl_ext.densities.bound_direction`). ``docs/objectives.md`` says what is biased, and how.
"""

from ppl_ext.algorithms.markov_kernel import MarkovKernel, Move
from ppl_ext.objectives.chi_upper_bound import ChiUpperBound
from ppl_ext.objectives.constrained import constrain, kl
from ppl_ext.objectives.doubly_reparameterized import DoublyReparameterized
from ppl_ext.objectives.elbo import ELBO
from ppl_ext.objectives.f_divergence import FDivergence
from ppl_ext.objectives.forward_kl import ForwardKL
from ppl_ext.objectives.importance_weighted import IWELBO
from ppl_ext.objectives.renyi import Renyi
from ppl_ext.objectives.score_climbing import ConditionalImportanceSampling, MarkovScoreClimbing
from ppl_ext.objectives.sleep import Sleep
from ppl_ext.objectives.thermodynamic import Thermodynamic
from ppl_ext.objectives.vr_iwae import VRIWAE
from ppl_ext.objectives.wake_sleep import ReweightedWakeSleep

__all__ = [
    "ELBO",
    "IWELBO",
    "VRIWAE",
    "ChiUpperBound",
    "ConditionalImportanceSampling",
    "DoublyReparameterized",
    "FDivergence",
    "ForwardKL",
    "MarkovKernel",
    "MarkovScoreClimbing",
    "Move",
    "Renyi",
    "ReweightedWakeSleep",
    "Sleep",
    "Thermodynamic",
    "constrain",
    "kl",
]
