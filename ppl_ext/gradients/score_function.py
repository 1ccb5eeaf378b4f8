"""The score-function estimator (Williams 1992), with a baseline that does not depend on the draw
(:mod:`ppl_ext.gradients.baseline`).
"""

from dataclasses import dataclass, field

import numpyro.distributions as dist
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.transforms import AffineTransform

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.gradients.baseline import Baseline, LeaveOneOut
from ppl_ext.gradients.strategy import Strategy, unwrapped
from ppl_ext.runtime.arguments import described


@dataclass(frozen=True)
class ScoreFunction(Strategy):
    r"""Weigh the gradient of the log probability by the cost that the draw can still influence.

    .. math:: \nabla_\theta \mathbb{E}_{z \sim q_\theta} f(z) = \mathbb{E}[\nabla_\theta f(z) + (f(z) -
        b)\,\nabla_\theta \log q_\theta(z)]

    Serves every distribution with a density whose support does not move with its parameters (so no Delta,
    Uniform or truncation, nor a mixture of such or a half-line that is shifted) and whose draws have that
    density (so no censored one). Each element of the draw is charged only with the cost terms it touches (an
    element of a plate with its own slice, a time step with the steps to come), as
    :mod:`ppl_ext.tracing.credit` finds from the data flow. ``log q`` is never scaled or masked here; the
    costs are.

    :param baseline: what is taken off the cost: :class:`~ppl_ext.gradients.LeaveOneOut` (default),
        :class:`~ppl_ext.gradients.MovingAverage`, :class:`~ppl_ext.gradients.LearnedBaseline` or ``None``. In
        place of the default, a site may state a baseline of its own, ``infer={"baseline": b}``: an array that
        broadcasts to the site's batch shape, or a function from a dict of the latent sites drawn before it to
        one. It is made before the draw and so cannot depend on it. In units of what the program returns:
        under an average over K particles each draw is charged with a K-th of its particle's cost.
    :raises StrategyError: for a site whose support moves with its parameters, naming it and what would serve.

    >>> ScoreFunction(baseline=None)
    ScoreFunction(baseline=None)

    Source: Williams 1992.
    """

    baseline: Baseline | None = field(default=LeaveOneOut())

    def __post_init__(self):
        if not (self.baseline is None or isinstance(self.baseline, Baseline)):
            raise ArgumentTypeError(
                "ScoreFunction(baseline=...) takes LeaveOneOut(), MovingAverage(), LearnedBaseline() or "
                f"None, got {described(self.baseline)}. A value of your own goes to the site, as "
                f"infer={{'baseline': value}}."
            )

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return not _support_moves(fn) and "Censored" not in type(unwrapped(fn)).__name__


def _support_moves(fn: Distribution) -> bool:
    """Whether the support depends on real parameters: then the derivative of the density misses what crosses
    the boundary.
    """
    fn = unwrapped(fn)
    if isinstance(fn, _MOVING) or "Truncated" in type(fn).__name__:
        return True
    if isinstance(fn, dist.TransformedDistribution) and _shifted(fn):
        return True
    return any(_support_moves(inner) for inner in _inside(fn))


def _shifted(fn: dist.TransformedDistribution) -> bool:
    """Whether the end of a half-line or an interval is moved by a transform that has parameters."""
    support = fn.base_dist.support
    for transform in fn.transforms:
        while isinstance(support, constraints._IndependentConstraint):
            support = support.base_constraint
        if isinstance(transform, AffineTransform) and support is not constraints.real:
            return True
        support = transform.codomain
    return False


def _inside(fn: Distribution) -> list[Distribution]:
    """The laws that a law is made of: what it transforms, inflates or mixes."""
    parts = [fn.base_dist] if isinstance(fn, dist.TransformedDistribution) else list(vars(fn).values())
    return [
        x
        for part in parts
        for x in (part if isinstance(part, list | tuple) else [part])
        if isinstance(x, Distribution)
    ]


_MOVING = (dist.Delta, dist.Uniform, dist.Pareto, dist.ImproperUniform)
