"""Programs that run a time or two: compiled in half the time where that is most of what they cost.

A report looks once at a thousand draws; on a CPU, XLA spends far longer on such code than the code then runs.
Its plainest code is made sooner, and runs longer.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ppl_ext.tracing.work import numbers_in

LITTLE = 2**26
"""Numbers that a program computes in all, below which its run is shorter than what plain code saves."""

PLAIN = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Of XLA's options, those that are known to spare most of the compilation."""


class OneOff:
    """``jax.jit`` of a function that is called a few times: optimised only if it has much to do.

    The numbers are the same to rounding.

    >>> import jax.numpy as jnp
    >>> double = OneOff(lambda x: 2.0 * x)
    >>> double(jnp.ones(3)).tolist(), double.is_little((jnp.ones(3),)), double.is_little((jnp.ones(3),), 1e9)
    ([2.0, 2.0, 2.0], True, False)
    """

    def __init__(self, fn: Callable):
        self._well, self._fast = jax.jit(fn), jax.jit(fn, compiler_options=plain_options())
        self._little: dict[Any, bool] = {}

    def __call__(self, *args: Any, calls: float = 1) -> Any:
        """``fn(*args)``; ``calls`` is how often it will be called with arguments of these shapes."""
        return (self._fast if self.is_little(args, calls) else self._well)(*args)

    def is_little(self, args: tuple, calls: float = 1) -> bool:
        """Whether so many calls with arguments of these shapes compute less than ``LITTLE`` numbers."""
        shapes = tuple((np.shape(x), jax.dtypes.result_type(x)) for x in jax.tree.leaves(args))
        about = (shapes, jax.tree.structure(args), calls)
        if about not in self._little:
            self._little[about] = calls * numbers_in(self._well.trace(*args).jaxpr) <= LITTLE
        return self._little[about]


@functools.cache
def plain_options() -> dict[str, Any]:
    """Options for ``jax.jit``: those of ``PLAIN`` that this XLA knows, none but on a CPU."""
    if jax.default_backend() != "cpu":
        return {}
    known = {}
    for name, value in PLAIN.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except Exception:  # JAX's error for an unknown option has no public class
            continue
        known[name] = value
    return known
