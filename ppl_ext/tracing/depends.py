"""Whether the outputs of a traced function depend on its inputs, leaving out what happens on sets of
probability zero.
"""

from collections.abc import Sequence
from typing import Any

from ppl_ext.tracing.jaxprs import (
    CALLS,
    Body,
    Literal,
    UnreadableError,
    body,
    branches_of,
    called_by,
    has_state,
    is_stateful,
)

# Equality with a number decides nothing about a continuous variable; NumPyro's densities ask x == x and x !=
# inf of every value.
_IGNORED = {"eq", "ne", "is_finite"}


def depends(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """For each output, whether it may depend on one of the marked inputs.

    >>> import jax, jax.numpy as jnp
    >>> def outputs(x, y):
    ...     return 2 * y, jnp.where(x == 0, y, x), jnp.where(x == x, y, jnp.nan)
    >>> depends(jax.make_jaxpr(outputs)(1.0, 1.0), [True, False])
    [False, True, False]
    """
    return _through_body(body(jaxpr), inputs)


def _through_body(inner: Body, inputs: Sequence[bool]) -> list[bool]:
    marked = {v for v, is_marked in zip(inner.invars, inputs, strict=True) if is_marked}

    def is_marked(v) -> bool:
        return not isinstance(v, Literal) and v in marked

    for eqn in inner.eqns:
        into = [is_marked(v) for v in eqn.invars]
        marked.update(v for v, out in zip(eqn.outvars, _through(eqn, into), strict=True) if out)
        if any(into):  # what is written may be read again
            marked.update(v for v in eqn.invars if is_stateful(v))
    return [is_marked(v) for v in inner.outvars]


def _through(eqn, into: list[bool]) -> list[bool]:
    name = eqn.primitive.name
    if name in _IGNORED or not any(into):
        return [False] * len(eqn.outvars)
    try:
        if name == "cond" and not into[0]:
            branches = [_through_body(b, into[1:]) for b in branches_of(eqn)]
            return [any(outs) for outs in zip(*branches, strict=True)]
        if name in CALLS and not has_state(eqn):
            return _through_body(called_by(eqn), into)
    except UnreadableError:
        pass
    return [True] * len(eqn.outvars)
