"""The score-function estimator (Williams 1992), with a baseline that leaves the draw itself out (Kool, van Hoof, Welling 2019)."""

from dataclasses import dataclass, field

import numpyro.distributions as dist
from numpyro.distributions import Distribution

from ppl_ext.arguments import told
from ppl_ext.errors import ArgumentTypeError
from ppl_ext.gradients.strategy import Strategy, unwrapped


@dataclass(frozen=True)
class LeaveOneOut:
    r"""Baseline for particle k made from the other particles of :func:`ppl_ext.replicate`.

    For objectives linear in the particles' costs it is the mean cost of the others, element by element. For any other objective F it is
    F with particle k's output replaced by the mean of the others' outputs; for importance-weighted bounds that is VIMCO (Mnih and
    Rezende 2016, eq. 8, geometric mean). With a single particle there is nothing to leave out, and the baseline is zero.
    """


@dataclass(frozen=True)
class ScoreFunction(Strategy):
    r"""Weigh the gradient of the log probability by the cost that the draw can still influence.

    .. math:: \nabla_\theta \mathbb{E}_{z \sim q_\theta} f(z) = \mathbb{E}[\nabla_\theta f(z) + (f(z) - b)\,\nabla_\theta \log q_\theta(z)]

    Serves every distribution with a density whose support does not move with its parameters (so no Delta, Uniform or truncation). Each
    element of the draw is charged only with the cost terms it touches (an element of a plate with its own slice, a time step with the
    steps to come), as :mod:`ppl_ext.credit` finds from the data flow. ``log q`` is never scaled or masked here; the costs are.

    :param baseline: :class:`LeaveOneOut` (default) or ``None``.

    >>> ScoreFunction(baseline=None)
    ScoreFunction(baseline=None)
    """

    baseline: LeaveOneOut | None = field(default=LeaveOneOut())

    def __post_init__(self):
        if not (self.baseline is None or isinstance(self.baseline, LeaveOneOut)):
            raise ArgumentTypeError(f"ScoreFunction(baseline=...) takes LeaveOneOut() or None, got {told(self.baseline)}.")

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return not _support_moves(fn)


def _support_moves(fn: Distribution) -> bool:
    """Whether the support depends on real parameters: then the derivative of the density misses what crosses the boundary."""
    fn = unwrapped(fn)
    if isinstance(fn, _MOVING) or "Truncated" in type(fn).__name__:
        return True
    if isinstance(fn, dist.TransformedDistribution):
        return _support_moves(fn.base_dist)
    if isinstance(fn, dist.MixtureSameFamily):
        return _support_moves(fn.component_distribution)
    return False


_MOVING = (dist.Delta, dist.Uniform, dist.Pareto, dist.ImproperUniform)
