"""How one site's gradient is estimated, one strategy a file.

==================== =================== ========================= ======================================
strategy             short form          serves                    note
==================== =================== ========================= ======================================
``Reparameterize``   "reparam"           differentiable samplers   default where it serves
``Enumerate``        "enumerate"         finite discrete           default for few joint assignments
``EnumerateLocally`` "enumerate_locally" finite discrete           default for few elements after that
``ScoreFunction``    "score"             everything with a density default otherwise, leave-one-out
``MeasureValued``    "measure_valued"    the laws of its table     first derivatives only
``Constant``         (none)              everything                the law is held fixed: on purpose only
==================== =================== ========================= ======================================

Baselines of ``ScoreFunction``: ``LeaveOneOut`` (default), ``MovingAverage``, ``LearnedBaseline``, ``None``;
or ``infer={"baseline": value}`` at the site.
"""

from numpyro.distributions import Distribution

from ppl_ext.errors import StrategyError
from ppl_ext.gradients.baseline import Kept, LearnedBaseline, LeaveOneOut, MovingAverage
from ppl_ext.gradients.constant import Constant
from ppl_ext.gradients.enumerate import Enumerate
from ppl_ext.gradients.enumerate_locally import EnumerateLocally, finite_support
from ppl_ext.gradients.local import LocalStrategy, charged
from ppl_ext.gradients.measure_valued import MeasureValued
from ppl_ext.gradients.reparameterize import Reparameterize
from ppl_ext.gradients.score_function import ScoreFunction
from ppl_ext.gradients.strategy import Strategy
from ppl_ext.runtime.renamed import old_names

__all__ = [
    "SHORT_FORMS",
    "Constant",
    "Enumerate",
    "EnumerateLocally",
    "Kept",
    "LearnedBaseline",
    "LeaveOneOut",
    "LocalStrategy",
    "MeasureValued",
    "MovingAverage",
    "Reparameterize",
    "ScoreFunction",
    "Strategy",
    "as_strategy",
    "available",
    "charged",
    "finite_support",
]

SHORT_FORMS: dict[str, Strategy] = {
    "reparam": Reparameterize(),
    "score": ScoreFunction(),
    "enumerate": Enumerate(),
    "enumerate_locally": EnumerateLocally(),
    "measure_valued": MeasureValued(),
}


def as_strategy(spec, site: str) -> Strategy:
    """A strategy from itself or its short form; ``site`` names where it stands, for the error.

    >>> as_strategy("enumerate", "z")
    Enumerate(max_lanes=4096)
    """
    if isinstance(spec, Strategy):
        return spec
    if isinstance(spec, str) and spec in SHORT_FORMS:
        return SHORT_FORMS[spec]
    if isinstance(spec, type) and issubclass(spec, Strategy):
        raise StrategyError(
            f"The gradient strategy of '{site}' is a class; give an instance: {spec.__name__}()."
        )
    raise StrategyError(
        f"Unknown gradient strategy {spec!r} for '{site}'. Known: {', '.join(map(repr, SHORT_FORMS))}, or a "
        "Strategy."
    )


def available(fn: Distribution) -> list[str]:
    """Short forms of the strategies that can serve a distribution.

    >>> import numpyro.distributions as dist
    >>> available(dist.Poisson(1.0))
    ["'score'", "'measure_valued'"]
    """
    return [repr(name) for name, strategy in SHORT_FORMS.items() if strategy.serves(fn)]


__getattr__ = old_names("ppl_ext.gradients", {"Learned": "LearnedBaseline"})
