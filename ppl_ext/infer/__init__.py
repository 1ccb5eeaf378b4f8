"""Running inference: NumPyro's ``SVI`` and ``MCMC`` take what this library makes; :func:`fit` is ``SVI`` with restarts and a report."""

from ppl_ext.checkpoint import Checkpoint
from ppl_ext.infer.chain_method import chains_over
from ppl_ext.infer.fit import Progress, fit
from ppl_ext.infer.particle_gibbs import ParticleGibbs, PathSweep
from ppl_ext.infer.pmmh import PMMH
from ppl_ext.infer.sg_schedule import Cyclical, Decay
from ppl_ext.infer.sghmc import SGHMC
from ppl_ext.infer.sgld import SGLD
from ppl_ext.infer.stopping import Plateau

__all__ = [
    "PMMH",
    "SGHMC",
    "SGLD",
    "Checkpoint",
    "Cyclical",
    "Decay",
    "ParticleGibbs",
    "PathSweep",
    "Plateau",
    "Progress",
    "chains_over",
    "fit",
]
