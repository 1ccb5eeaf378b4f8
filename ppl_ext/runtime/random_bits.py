"""Random words, and keys, coins and normal numbers made of them, faster than by ``jax.random`` on a CPU.

JAX runs the rounds of its hash as a loop over arrays there; written out they are one pass. Kinds of keys
other than threefry, and precisions other than single, go JAX's way.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax, random

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_LOWEST = np.nextafter(np.float32(-1.0), np.float32(0.0))


def threefry(key: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw 2011, section 4.2) of counters of two words,
    under a key of two words.
    """
    keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    first, second = first + keys[0], second + keys[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            first = first + second
            second = first ^ ((second << by) | (second >> (32 - by)))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def _threefry_words(rng_key: jax.Array) -> jax.Array | None:
    """The two words of a threefry key; of another kind of key, None."""
    if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        return random.key_data(rng_key) if str(random.key_impl(rng_key)) == "threefry2x32" else None
    return rng_key if rng_key.shape == (2,) else None


def random_words(rng_key: jax.Array, num: int, block: int | jax.Array = 0) -> tuple[jax.Array, jax.Array]:
    """Two arrays of ``num`` random words of 32 bits, others for each ``block``. JAX would use half of each
    hash, so that arrays can be split over devices."""
    if (key := _threefry_words(rng_key)) is None:
        bits = random.bits(random.fold_in(rng_key, block), (2, num))
        return bits[0], bits[1]
    counter = jnp.arange(num, dtype=jnp.uint32)
    return threefry(key, jnp.full_like(counter, block), counter)


def split(rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Keys of this shape: as configured by default, those of ``jax.random.split``.

    >>> key = random.key(0)
    >>> bool((split(key, (3, 2)) == random.split(key, (3, 2))).all())
    True
    """
    if _threefry_words(rng_key) is None:
        return random.split(rng_key, shape)
    data = jnp.stack(random_words(rng_key, math.prod(shape)), axis=-1).reshape(*shape, 2)
    return random.wrap_key_data(data, impl="threefry2x32") if rng_key.dtype != data.dtype else data


def sampled(law: dist.Distribution, rng_key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
    """A draw of a law: as configured by default, its own; that of coins in one pass, since loops over coins
    do little else.

    >>> key = random.key(0)
    >>> bool((sampled(dist.Bernoulli(0.3), key, (5,)) == dist.Bernoulli(0.3).sample(key, (5,))).all())
    True
    """
    coins = (
        type(law) in (dist.BernoulliLogits, dist.BernoulliProbs) and jnp.result_type(law.probs) == jnp.float32
    )
    if not coins or _threefry_words(rng_key) is None:
        return law(rng_key=rng_key, sample_shape=sample_shape)
    shape = sample_shape + law.batch_shape
    first, second = random_words(rng_key, math.prod(shape))
    return (to_unit(first ^ second).reshape(shape) < law.probs).astype(int)


def normals(rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers: as configured by default, those of ``jax.random.normal`` to the last bit.

    >>> key = random.key(0)
    >>> bool((normals(key, (3, 2)) == random.normal(key, (3, 2))).all())
    True
    """
    if jnp.result_type(float) != jnp.float32 or _threefry_words(rng_key) is None:
        return random.normal(rng_key, shape)
    first, second = random_words(rng_key, math.prod(shape))
    # The rounding of jax.random.uniform between the float above -1 and 1.
    u = jnp.maximum(_LOWEST, to_unit(first ^ second) * (np.float32(1.0) - _LOWEST) + _LOWEST)
    return (np.float32(math.sqrt(2.0)) * lax.erf_inv(u)).reshape(shape)


def to_unit(words: jax.Array) -> jax.Array:
    """In [0, 1): 23 of the bits as the mantissa of a number in [1, 2).

    >>> [float(u) for u in to_unit(jnp.array([0, 2**31], jnp.uint32))]
    [0.0, 0.5]
    """
    return lax.bitcast_convert_type((words >> 9) | jnp.uint32(0x3F800000), jnp.float32) - np.float32(1.0)
