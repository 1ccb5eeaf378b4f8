"""How much a traced program computes."""

import math
from typing import Any

from ppl_ext.tracing.jaxprs import UnreadableError, body


def numbers_in(jaxpr: Any) -> float:
    """How many numbers a program computes, those of a loop of unknown length being infinitely many,
    and those of a program that cannot be read.

    >>> import jax, jax.numpy as jnp
    >>> numbers_in(jax.make_jaxpr(lambda x: jnp.sin(x).sum())(jnp.ones(10)))
    11.0
    """
    try:
        program, total = body(jaxpr), 0.0
    except UnreadableError:
        return math.inf
    for eqn in program.eqns:
        if eqn.primitive.name == "while":
            return math.inf
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        inner = [p for value in eqn.params.values() for p in _programs(value)]
        outputs = sum(math.prod(v.aval.shape) for v in eqn.outvars if hasattr(v.aval, "shape"))
        total += times * sum(map(numbers_in, inner)) if inner else outputs
    return total


def _programs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    return [p for x in value for p in _programs(x)] if isinstance(value, tuple | list) else []
