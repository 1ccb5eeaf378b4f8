"""The strategy of a site that nobody gave one."""

import jax

from ppl_ext.densities.distributions import elements
from ppl_ext.errors import StrategyError
from ppl_ext.gradients import (
    Enumerate,
    EnumerateLocally,
    MeasureValued,
    Reparameterize,
    ScoreFunction,
    Strategy,
    as_strategy,
    finite_support,
)

# by default larger supports are not enumerated, nor is a joint of more lanes than this
AUTOMATIC_SUPPORT = 64


def resolve(msg) -> tuple[Strategy, bool, jax.Array | None]:
    """The strategy of a site (handler, then annotation, then default) and its support if it is to be
    enumerated jointly.
    """
    fn, name, spec = msg["fn"], msg["name"], msg["infer"].get("gradient")
    if spec is not None:
        strategy = as_strategy(spec, name)
        strategy.check(name, fn)
        finite = isinstance(strategy, Enumerate | EnumerateLocally) or (
            isinstance(strategy, MeasureValued) and strategy.enumerates(fn)
        )
        support = _support(fn, name) if finite else None
        return strategy, False, support if isinstance(strategy, Enumerate) else None
    if Reparameterize.serves(fn):
        return Reparameterize(), True, None
    if Enumerate.serves(fn):
        try:
            support = _support(fn, name)
        except StrategyError:
            support = None
        if support is not None and support.shape[0] <= AUTOMATIC_SUPPORT:
            return Enumerate(), True, support
    strategy = ScoreFunction()
    strategy.check(name, fn)
    return strategy, True, None


def _support(fn, name: str) -> jax.Array:
    try:
        return finite_support(elements(fn))
    # NumPyro raises the first where a law has no list, or elements have different ones; JAX the others where
    # a list's length is traced.
    except (
        NotImplementedError,
        TypeError,
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
    ) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise StrategyError(
            f"Site '{name}' cannot be enumerated: its support is not one known list for every element "
            f"({type(error).__name__}: {reason}). Use 'score', or make its total_count one Python integer."
        ) from error
