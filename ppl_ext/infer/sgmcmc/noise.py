"""Standard normal numbers at half of the usual price: with small networks they cost a chain more than its
gradients do.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from ppl_ext.runtime.random_bits import random_words

# error below 6e-8
_SINE = [
    math.pi / 2.0 * (-1.0) ** k * (math.pi / 2.0) ** (2 * k) / math.factorial(2 * k + 1) for k in range(6)
]


def normals(rng_key: jax.Array, num: int, dtype: jnp.dtype) -> jax.Array:
    r"""Independent standard normal numbers, (num,).

    .. math:: r = \sqrt{-2 \log u}, \qquad x = (\pm r \cos \phi, \pm r \sin \phi)

    JAX hashes a counter once for each number and uses half of the result, so that arrays may be split over
    devices, and then inverts the error function. Here one word of the hash makes the two numbers of Box and
    Muller: 20 bits for u, 10 for the angle in a quadrant, and two signs. Angles are equally spaced and u lies
    in the middle of its cells, so that the moments are those of the normal law to single precision; the
    largest number that can come out is 5.4. Sines and cosines are polynomials, since XLA calls a scalar
    function for each of its own. Kinds of keys other than threefry, and precisions other than single, go
    JAX's way.

    >>> x = normals(jax.random.key(0), 10_000, jnp.float32)
    >>> bool(abs(x.mean()) < 0.05), bool(abs(x.std() - 1.0) < 0.05)
    (True, True)
    """
    if dtype != jnp.float32 or num == 0:
        return jax.random.normal(rng_key, (num,), dtype)

    def words(of_hash):
        first, second = random_words(rng_key, -(-num // 4))
        return jnp.where(of_hash == 0, first, second)

    # A loop of two rounds, each of which hashes: without it XLA would hash anew for every number and each
    # array that takes some of them.
    return _from_words(lax.map(words, jnp.arange(2)).reshape(-1))[:num]


def _from_words(bits: jax.Array) -> jax.Array:
    """Two numbers from each word: all the first ones, then all the second ones."""
    # Twice the work for radii, but one loop: of two halves that are joined, XLA makes a loop that calls a
    # scalar logarithm.
    second = jnp.arange(2 * len(bits)) >= len(bits)
    bits = jnp.concatenate([bits, bits])
    radius = jnp.sqrt(-2.0 * jnp.log(_middle(bits >> 12, 20)))
    part = _middle(bits & 1023, 10)
    x = radius * _sine(jnp.where(second, part, 1.0 - part))
    sign = jnp.where(second, bits << 21, bits << 20) & jnp.uint32(1 << 31)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint32) | sign, jnp.float32)


def _middle(bits: jax.Array, num: int) -> jax.Array:
    """The middle of one of 2^num cells of [0, 1]. By way of int32, from which processors convert many at
    once.
    """
    return (lax.bitcast_convert_type(bits, jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-num


def _sine(x: jax.Array) -> jax.Array:
    """The sine of a quarter turn times x in [0, 1]."""
    square, value = x * x, jnp.full_like(x, _SINE[-1])
    for coefficient in _SINE[-2::-1]:
        value = value * square + coefficient
    return value * x
