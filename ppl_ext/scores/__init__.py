"""Priors and posteriors that are known by their score, the gradient of a log density with noise added.

A *score* is a function ``score(x, sigma)`` of one point (d,) and one level of noise: the gradient at x of the
log density of :math:`X + \\sigma \\varepsilon`. A network of yours is one; :class:`GaussianScore` and
:class:`MixtureScore` are exact, and what the rest is tested against.
"""

from ppl_ext.scores.flow import probability_flow
from ppl_ext.scores.gaussian import GaussianScore, teleport
from ppl_ext.scores.law import ScoreLaw
from ppl_ext.scores.mixture import MixtureScore
from ppl_ext.scores.noise import GammaNoise, GaussianNoise, PoissonNoise
from ppl_ext.scores.prior import score_prior
from ppl_ext.scores.schedule import VariancePreserving
from ppl_ext.scores.score_kl import ScoreKL
from ppl_ext.scores.tweedie import PosteriorMoments, tweedie

__all__ = [
    "GammaNoise",
    "GaussianNoise",
    "GaussianScore",
    "MixtureScore",
    "PoissonNoise",
    "PosteriorMoments",
    "ScoreKL",
    "ScoreLaw",
    "VariancePreserving",
    "probability_flow",
    "score_prior",
    "teleport",
    "tweedie",
]
