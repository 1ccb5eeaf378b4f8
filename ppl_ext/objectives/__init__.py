"""Variational objectives, each a short program to read against its formula, each an ELBO of NumPyro's.

With w = p(y, z) / q(z), v the self-normalised weights of K draws of q, and log Z the log evidence:

========================= ============================ ================ =============== =====================
objective                 expectation of               bound of log Z   strategies      when
========================= ============================ ================ =============== =====================
``ELBO``                  log w                        from below       every           the default
``ELBO``, analytic        −KL(q_s ‖ p_s) where known   from below       every           less noise
``ELBO``, stick the ...   log w                        from below       every           less noise at the end
``IWELBO``                log mean w                   from below       every           a tighter bound
``DoublyReparameterized`` log mean w                   from below       reparam only    many particles
``Renyi``                 log mean w^(1−α), over 1 − α below, 0 ≤ α < 1 every           between the two
``VRIWAE``                the same, 0 ≤ α < 1          from below       every           that, less noise
``Thermodynamic``         Σ_t Δβ_t E_{π_βt} log w      from below       every, or none  discrete sites
``ChiUpperBound``         −(mean wⁿ/c + log c − 1)/n   minus one above  every           to bracket log Z
``ForwardKL``             −Σ v log w + log mean w      none             none            a guide that covers
``ReweightedWakeSleep``   log mean w; Σ v ∇ log q      from below       none            models to be learned
``Sleep``                 log q(z given y′)            none             none            any simulator
``MarkovScoreClimbing``   Σ v log q, one retained      none             none            unbiased at low K
``FDivergence``           −mean f(K v)                 none             every           both directions of KL
``CauchySchwarz``         log p(y│z) − λ D_CS(q, p)    none             every           mixtures as priors
``CompositionalNLL``      log p̃ − log Z, Z tracked     none             none            p̃ up to a constant
``NCE``                   log odds, data and noise     none             none            p̃ and its constant
``constrain``             objective − λ (g − C)        none             its objective's a budget
========================= ============================ ================ =============== =====================

"None" in the column of strategies: draws are held fixed, so that sites of every kind serve, and no strategy
is asked for. Hierarchical bounds are these with a guide (or model) that is a :class:`~ppl_ext.marginal`:
``ELBO`` is then the hierarchical bound with one inner particle and the importance-weighted hierarchical one
with more, and ``IWELBO`` the doubly importance-weighted one. The bounds refuse estimates that err the wrong
way (:mod:`ppl_ext.densities.bound_direction`). ``docs/objectives.md`` says what is biased, and how.
"""

from ppl_ext.algorithms.markov_kernel import MarkovKernel, Move
from ppl_ext.objectives.cauchy_schwarz import CauchySchwarz
from ppl_ext.objectives.chi_upper_bound import ChiUpperBound
from ppl_ext.objectives.constrained import constrain, kl
from ppl_ext.objectives.divergence import cs_divergence, cs_mutual_information
from ppl_ext.objectives.doubly_reparameterized import DoublyReparameterized
from ppl_ext.objectives.elbo import ELBO
from ppl_ext.objectives.f_divergence import FDivergence
from ppl_ext.objectives.forward_kl import ForwardKL
from ppl_ext.objectives.importance_weighted import IWELBO
from ppl_ext.objectives.noise.compositional import CompositionalNLL
from ppl_ext.objectives.noise.contrastive import NCE
from ppl_ext.objectives.noise.site import unnormalized
from ppl_ext.objectives.renyi import Renyi
from ppl_ext.objectives.score_climbing import ConditionalImportanceSampling, MarkovScoreClimbing
from ppl_ext.objectives.sleep import Sleep
from ppl_ext.objectives.thermodynamic import Thermodynamic
from ppl_ext.objectives.vr_iwae import VRIWAE
from ppl_ext.objectives.wake_sleep import ReweightedWakeSleep

__all__ = [
    "ELBO",
    "IWELBO",
    "NCE",
    "VRIWAE",
    "CauchySchwarz",
    "ChiUpperBound",
    "CompositionalNLL",
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
    "cs_divergence",
    "cs_mutual_information",
    "kl",
    "unnormalized",
]
