"""Variational objectives, each a short program to read against its formula, each a ``numpyro.infer.elbo.ELBO``.

================= ====================================== ============================== =========================================
objective         expectation of                         bound of                       when
================= ====================================== ============================== =========================================
``ELBO``          log p(y, z) − log q(z)                 log evidence, from below       the default
``IWELBO``        log mean exp of K log weights          log evidence, from below       a tighter bound, a wider guide
``Renyi``         the same to the power 1 − α            log evidence, from below for   between the two
                                                         0 ≤ α < 1
``ForwardKL``     minus KL(p(z | y) ‖ q), estimated      none                           a guide that covers all modes, discrete
                                                                                        sites
================= ====================================== ============================== =========================================

A guide or model may be a :class:`~ppl_ext.algorithms.marginal`: ``ELBO`` is then the (importance-weighted) hierarchical bound and
``IWELBO``
the doubly importance-weighted one. The bounds from below refuse estimates that err the wrong way (:mod:`ppl_ext.direction`).
"""

from ppl_ext.objectives.chi_upper_bound import ChiUpperBound
from ppl_ext.objectives.constrained import constrain, kl
from ppl_ext.objectives.doubly_reparameterized import DoublyReparameterized
from ppl_ext.objectives.elbo import ELBO
from ppl_ext.objectives.f_divergence import FDivergence
from ppl_ext.objectives.forward_kl import ForwardKL
from ppl_ext.objectives.importance_weighted import IWELBO
from ppl_ext.objectives.renyi import Renyi
from ppl_ext.objectives.score_climbing import ConditionalImportanceSampling, MarkovKernel, MarkovScoreClimbing, Move
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
