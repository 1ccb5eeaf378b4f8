"""A random site whose gradient is not pathwise: its strategy, what is kept of its law, and what it is told to
be instead of its draw.
"""

from typing import Any, NamedTuple

import jax

from ppl_ext.densities.distributions import log_prob, prob
from ppl_ext.gradients import EnumerateLocally, LeaveOneOut, LocalStrategy, ScoreFunction, Strategy
from ppl_ext.gradients.baseline import Baseline


class Choice(NamedTuple):
    """A random site whose gradient is not pathwise, as one run met it."""

    id: str
    name: str
    strategy: Strategy
    # nobody chose the strategy, so joint enumeration may be replaced by local, and that by the score function
    automatic: bool
    support_size: int  # 0 if not to be enumerated
    node: str | None  # the outermost ``replicate`` around it
    num_nodes: int  # how many replicates are around it: its leading axes

    @property
    def baseline(self) -> Baseline | None:
        """What is left to score is a ScoreFunction, or was to be enumerated only if that was cheap."""
        return self.strategy.baseline if isinstance(self.strategy, ScoreFunction) else LeaveOneOut()


class Law(NamedTuple):
    """What a random site's gradient needs of the law that it was drawn from, element by element; ``None``
    where its strategy needs none.
    """

    log_prob: Any
    prob: Any = None
    coefficients: Any = None  # of a local strategy, one array for each branch
    baseline: Any = None  # one that was known before the draw: given at the site, or learned
    scale: Any = None  # of the site's log density, for a local strategy; None for one

    @property
    def shape(self) -> tuple[int, ...]:
        return self.coefficients[0].shape if self.log_prob is None else self.log_prob.shape


class Assigned(NamedTuple):
    """Elements of a site get these outcomes, by their place in the support."""

    outcome: jax.Array


class Replaced(NamedTuple):
    """Elements of a site get this branch of their local strategy: 0 is their own draw, others are
    alternatives.
    """

    branch: jax.Array


class ForkError(Exception):
    """A run met an enumerated site that must have one concrete outcome, since the program branches on it in
    Python.
    """

    def __init__(self, id: str, name: str, support):
        self.id, self.name, self.support = id, name, support


def law_of(choice: Choice, law, value, baseline=None, scale=None) -> Law:
    """What the gradient of a choice needs of the law (:func:`~ppl_ext.densities.distributions.elements`) that
    it was drawn from.
    """
    strategy = choice.strategy
    local = (
        strategy
        if isinstance(strategy, LocalStrategy)
        else EnumerateLocally()
        if choice.support_size and choice.automatic
        else None
    )
    return Law(
        None if isinstance(strategy, LocalStrategy) else log_prob(law, value),
        prob(law, value) if choice.support_size else None,
        None if local is None else local.coefficients(choice.name, law, value),
        baseline if isinstance(choice.baseline, LeaveOneOut) else None,
        scale if isinstance(strategy, LocalStrategy) else None,
    )
