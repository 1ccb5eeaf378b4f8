"""Smoothing of state-space models: any NumPyro model with one ``scan``, filtered forward and smoothed along
the way.

============================== ===============================================================================
``smooth(model, ...).run``     a whole series: evidence, expectations of additive functionals, trajectories,
                               ArviZ report
``OnlineSmoother``             a stream, in memory that does not grow
``ParisParticleGibbs``         conditional sweeps, each on the path that the last one drew: less bias from few
                               particles
``ScoreAscent``                maximum likelihood on a series
``RecursiveMaximumLikelihood`` the same on a stream
``OnlineEM``                   expectation maximisation on a stream
``SweptParticleFilter``        the same as an algorithm of ``normalize``
``ConditionalSweep``           the same as the chain of ``MarkovScoreClimbing``, moved by the guide
``discriminative_kalman``      Kalman's filter on the outputs of a regression; ``discriminative_factor`` puts
                               them into a model
``additive``                   functionals: score, sufficient statistics, moments, lag covariances, transition
                               counts
``backward``                   backward kernels: ``mcmc``, ``dense``, ``hybrid``, ``path``
``tracking``                   many targets among missed and false measurements; ``Tracks`` is its result
============================== ===============================================================================
"""

from ppl_ext.smoothing import additive, backward, tracking
from ppl_ext.smoothing.conditional_sweep import ConditionalSweep, SweptParticleFilter
from ppl_ext.smoothing.discriminative import (
    DiscriminativeResult,
    discriminative_factor,
    discriminative_kalman,
)
from ppl_ext.smoothing.online import OnlineResult, OnlineSmoother, SmootherState
from ppl_ext.smoothing.online_learning import LearnerState, OnlineEM, RecursiveMaximumLikelihood
from ppl_ext.smoothing.paris_particle_gibbs import ParisParticleGibbs, ParticleGibbsSmoothing
from ppl_ext.smoothing.report import SmoothingResult
from ppl_ext.smoothing.score_ascent import Learned, ScoreAscent
from ppl_ext.smoothing.smooth import smooth
from ppl_ext.smoothing.tracking import Tracks

__all__ = [
    "ConditionalSweep",
    "DiscriminativeResult",
    "Learned",
    "LearnerState",
    "OnlineEM",
    "OnlineResult",
    "OnlineSmoother",
    "ParisParticleGibbs",
    "ParticleGibbsSmoothing",
    "RecursiveMaximumLikelihood",
    "ScoreAscent",
    "SmootherState",
    "SmoothingResult",
    "SweptParticleFilter",
    "Tracks",
    "additive",
    "backward",
    "discriminative_factor",
    "discriminative_kalman",
    "smooth",
    "tracking",
]
