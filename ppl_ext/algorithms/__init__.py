"""Algorithms that estimate the density of some sites of a program and draw the others, and the
transformations that use them.

====================== ====================================== ================================================
algorithm              estimate of p(x)                       a draw
====================== ====================================== ================================================
``ImportanceSampling`` mean of K weights                      one of K, by weight (sampling importance
                                                              resampling)
``Enumeration``        exact, for finite free sites           from the exact posterior
``ExactFilter``        exact: finite or linear-Gaussian scans none
``ParticleFilter``     product of mean weights over time      one of N paths, by weight
``TemperedSMC``        product of mean weights over           one of N particles, moved at every temperature
                       temperatures
====================== ====================================== ================================================
"""

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.enumeration import Enumeration
from ppl_ext.algorithms.exact_filter import ExactFilter
from ppl_ext.algorithms.importance import ImportanceSampling
from ppl_ext.algorithms.marginal import marginal
from ppl_ext.algorithms.normalize import normalize
from ppl_ext.algorithms.particle_filter import ParticleFilter
from ppl_ext.algorithms.tempered.moves import IndependentMoves, Moves, RandomWalk
from ppl_ext.algorithms.tempered.numpyro_moves import NumPyroMoves
from ppl_ext.algorithms.tempered_smc import TemperedSMC

__all__ = [
    "Algorithm",
    "Enumeration",
    "ExactFilter",
    "ImportanceSampling",
    "IndependentMoves",
    "Moves",
    "NumPyroMoves",
    "ParticleFilter",
    "RandomWalk",
    "TemperedSMC",
    "marginal",
    "normalize",
]
