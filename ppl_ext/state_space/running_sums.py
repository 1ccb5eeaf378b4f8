"""Running sums by products with a triangle of ones: on a CPU faster than ``jnp.cumsum``, which takes a window
at each place.

There XLA drops optimization barriers, and works a sum's last additions out anew wherever the sum is read; a
shift by padding then keeps all of that loop from being vectorised. Products stay what they are, so shifted
sums are products with a strict triangle.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 32
_EXACT = 1 << 24  # whole numbers up to here are floats in single precision


def running_sum(x: jax.Array) -> jax.Array:
    """Inclusive sums of finite numbers along the last axis, in blocks, and the blocks' totals in blocks
    again.

    Where ``x`` is zero the sum does not change within a block, to the last bit.

    >>> [float(s) for s in running_sum(jnp.array([1.0, 2.0, 0.0, 4.0]))]
    [1.0, 3.0, 3.0, 7.0]
    """
    blocks = _blocks(x)
    inner = _product(blocks, 0)
    if blocks.shape[-2] == 1:
        return inner.reshape(x.shape)
    sums = inner + _before(inner[..., -1])[..., None]
    return sums.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def running_count(x: jax.Array, most: int) -> jax.Array:
    """Running sums of whole numbers ``x`` (N,) that are not negative and sum to at most ``most``.

    >>> [int(s) for s in running_count(jnp.array([1, 2, 0, 4]), 7)]
    [1, 3, 3, 7]
    """
    if most >= _EXACT:
        return jnp.cumsum(x, dtype=x.dtype)
    blocks = _blocks(x.astype(jnp.float32))
    # What comes before a block joins its first term, so that the result is a product.
    before = jnp.where(jnp.arange(blocks.shape[1]) == 0, _before(blocks.sum(-1))[:, None], 0.0)
    return _product(blocks + before, 0).reshape(-1)[: len(x)].astype(x.dtype)


def _blocks(x: jax.Array) -> jax.Array:
    size = max(1, min(x.shape[-1], BLOCK))
    num = max(1, -(-x.shape[-1] // size))
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, num * size - x.shape[-1])])
    return padded.reshape(*x.shape[:-1], num, size)


def _product(x: jax.Array, above: int) -> jax.Array:
    triangle = _triangle(x.shape[-1], above, x.dtype.name)
    # Accelerators would round the factors of a product to fewer bits.
    return jnp.matmul(x, triangle, precision=lax.Precision.HIGHEST)


@lru_cache
def _triangle(size: int, above: int, dtype: str) -> np.ndarray:
    # One array for all of a program, so that XLA sees which sums are the same.
    return np.triu(np.ones((size, size), dtype), above)


def _before(x: jax.Array) -> jax.Array:
    """Sums of the terms before each."""
    if x.shape[-1] <= 4 * BLOCK:
        return _product(x, 1)
    blocks = _blocks(x)
    sums = _product(blocks, 1) + _before(blocks.sum(-1))[..., None]
    return sums.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
