"""Running inference: NumPyro's ``SVI`` and ``MCMC`` take what this library makes; :func:`fit` is ``SVI`` with
restarts and a report.
"""

from ppl_ext.infer.amortised.guide import Amortised, Weighed, amortise
from ppl_ext.infer.amortised.network import SetTransformer
from ppl_ext.infer.chain_method import chains_over
from ppl_ext.infer.merging import merge
from ppl_ext.infer.particle_mcmc.particle_gibbs import ParticleGibbs, PathSweep
from ppl_ext.infer.particle_mcmc.pmmh import PMMH
from ppl_ext.infer.sgmcmc.schedule import Cyclical, Decay
from ppl_ext.infer.sgmcmc.sghmc import SGHMC
from ppl_ext.infer.sgmcmc.sgld import SGLD
from ppl_ext.infer.smc.missed import reasons_of_moves
from ppl_ext.infer.smc.refine import refined
from ppl_ext.infer.smc.result import SMCResult
from ppl_ext.infer.smc.smc import SMC
from ppl_ext.infer.smc2.result import SMC2Result
from ppl_ext.infer.smc2.smc2 import SMC2
from ppl_ext.infer.svi.fit import Progress, fit
from ppl_ext.infer.svi.regularized_newton import RegularizedNewton, regularized_newton
from ppl_ext.infer.svi.sparse_subspace import SparseSubspace
from ppl_ext.infer.svi.stopping import Plateau
from ppl_ext.infer.windows.state import WindowResult, WindowState
from ppl_ext.infer.windows.windowed import windowed
from ppl_ext.result import Fit
from ppl_ext.runtime.checkpoint import Checkpoint

__all__ = [
    "PMMH",
    "SGHMC",
    "SGLD",
    "SMC",
    "SMC2",
    "Amortised",
    "Checkpoint",
    "Cyclical",
    "Decay",
    "Fit",
    "ParticleGibbs",
    "PathSweep",
    "Plateau",
    "Progress",
    "RegularizedNewton",
    "SMC2Result",
    "SMCResult",
    "SetTransformer",
    "SparseSubspace",
    "Weighed",
    "WindowResult",
    "WindowState",
    "amortise",
    "chains_over",
    "fit",
    "merge",
    "regularized_newton",
    "windowed",
]

Fit.refiner = staticmethod(refined)  # what a fit is handed on to
Fit.mover = staticmethod(reasons_of_moves)  # and what its verdict asks where weights are not enough
