"""Steps with small matrices, all of a series at once, or some at a time where all would wait for ever.

Before jax 0.12, several large batches of triangular solves in one program can wait for each other for ever
on a CPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

AT_ONCE = 2**16
"""Operations of one batch of solves that were never seen to wait; batches of ten times as many were."""


def mapped(fn: Callable, rows: int) -> Callable:
    """``jax.vmap(fn)``, for a function of arrays that solves with matrices of so many rows.

    >>> mapped(lambda x, y: x + y, 1)(jnp.arange(3), jnp.arange(3)).tolist()
    [0, 2, 4]
    """
    lanes = max(1, AT_ONCE // max(rows, 1) ** 3)

    def of_all(*xs):
        if not _wait() or len(jax.tree.leaves(xs)[0]) <= lanes:
            return jax.vmap(fn)(*xs)
        return _in_parts(fn, xs, lanes)

    return of_all


def _wait() -> bool:
    return jax.__version_info__ < (0, 12) and jax.default_backend() == "cpu"


def _in_parts(fn: Callable, xs: tuple, lanes: int) -> Any:
    num = len(jax.tree.leaves(xs)[0])
    # The last lane once more instead of zeros, whose laws may be none.
    filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], -num % lanes, 0)]), xs)
    found = lax.map(lambda x: fn(*x), filled, batch_size=lanes)
    return jax.tree.map(lambda x: x[:num], found)
