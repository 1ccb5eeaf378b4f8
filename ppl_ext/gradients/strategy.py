"""What a gradient strategy is: a value that says how the gradient through one random site is estimated."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from numpyro.distributions import Distribution

from ppl_ext.errors import StrategyError


class Strategy(ABC):
    """Immutable, hashable and comparable, so that it can stand in ``infer={"gradient": ...}`` and pass
    through ``jit`` as a constant.

    :raises StrategyError: by :meth:`check`, if it does not serve the site.

    >>> import numpyro.distributions as dist
    >>> from ppl_ext.gradients import Enumerate, ScoreFunction
    >>> isinstance(Enumerate(), Strategy), Enumerate() == Enumerate(), len({Enumerate(), ScoreFunction()})
    (True, True, 2)
    >>> Enumerate().check("n", dist.Poisson(1.0))
    Traceback (most recent call last):
    ppl_ext.errors.StrategyError: Enumerate(max_lanes=4096) cannot serve site 'n' (Poisson). Strategies ...
    """

    pathwise = False  # whether the draw itself carries a gradient

    @staticmethod
    @abstractmethod
    def serves(fn: Distribution) -> bool:
        """Whether the mathematics allows this strategy for draws of ``fn``."""

    def check(self, name: str, fn: Distribution) -> None:
        """Raise :class:`~ppl_ext.errors.StrategyError`, naming the site and what would serve it."""
        if not self.serves(fn):
            kind = type(unwrapped(fn)).__name__
            others = ", ".join(cls.__name__ for cls in _kinds(Strategy) if cls.serves(fn))
            raise StrategyError(
                f"{self!r} cannot serve site '{name}' ({kind}). Strategies that can: {others}."
            )

    def worth(self, site, coefficients, values, num_particles, scale=None):
        """What the branches of a local strategy are charged with: their values, unless it is biased.

        :param num_particles: over how many particles the values are averaged; ``None`` where they are no
            average, or only a part.
        :param scale: of the site's log density, by element; ``None`` for one.
        """
        return values


def _kinds(cls) -> Iterator[type[Strategy]]:
    for kind in cls.__subclasses__():
        if kind.__abstractmethods__:
            yield from _kinds(kind)
        else:
            yield kind


def unwrapped(fn: Distribution) -> Distribution:
    """The distribution below masks and expansions, for its type and properties."""
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "MaskedDistribution",
        "ExpandedDistribution",
        "Independent",
    ):
        fn = fn.base_dist
    return fn
