"""Whether the outputs of a traced function depend on its inputs, leaving out what happens on sets of probability zero."""

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Equality with a number decides nothing about a continuous variable; NumPyro's densities ask x == x and x != inf of every value.
_IGNORED = {"eq", "ne", "is_finite"}


def depends(jaxpr: Jaxpr | ClosedJaxpr, inputs: Sequence[bool]) -> list[bool]:
    """For each output, whether it may depend on one of the marked inputs.

    >>> import jax, jax.numpy as jnp
    >>> depends(jax.make_jaxpr(lambda x, y: (2 * y, jnp.where(x == 0, y, x), jnp.where(x == x, y, jnp.nan)))(1.0, 1.0), [True, False])
    [False, True, False]
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    marked = {v for v, is_marked in zip(inner.invars, inputs, strict=True) if is_marked}

    def is_marked(v) -> bool:
        return not isinstance(v, Literal) and v in marked

    for eqn in inner.eqns:
        into = [is_marked(v) for v in eqn.invars]
        marked.update(v for v, out in zip(eqn.outvars, _through(eqn, into), strict=True) if out)
    return [is_marked(v) for v in inner.outvars]


def _through(eqn, into: list[bool]) -> list[bool]:
    if eqn.primitive.name in _IGNORED or not any(into):
        return [False] * len(eqn.outvars)
    if eqn.primitive.name == "cond" and not into[0]:
        branches = [depends(b, into[1:]) for b in eqn.params["branches"]]
        return [any(outs) for outs in zip(*branches, strict=True)]
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and eqn.primitive.name != "scan" and len(inner.invars) == len(into):
            return depends(inner, into)
    return [True] * len(eqn.outvars)
