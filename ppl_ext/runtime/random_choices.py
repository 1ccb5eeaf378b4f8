"""Choices made of random words: an index, and whether to take what has a probability.

A uniform number of single precision is exactly 0 once in eight million. Taken as it is it is below every
probability, so that in a long run what is as good as impossible is chosen in the end. Here no such number
is 0: each word, and each rounded number, stands for the middle of what it may be.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.runtime.random_bits import random_words


def log_uniforms(rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Logarithms of uniform numbers of this shape: what is below a log probability is taken.

    >>> bool((log_uniforms(jax.random.key(0), (9,)) < 0.0).all())
    True
    """
    first, second = random_words(rng_key, math.prod(shape))
    return to_log_unit(first ^ second).reshape(shape)


def to_log_unit(words: jax.Array) -> jax.Array:
    """The logarithm of a uniform number in (0, 1), from all bits: what is less likely than 2⁻³³ is not taken,
    and what is certain is.

    >>> [round(float(x), 2) for x in to_log_unit(jnp.array([0, 2**31, 2**32 - 1], jnp.uint32))]
    [-22.87, -0.69, -0.0]
    """
    shares = (words.astype(jnp.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    return jnp.minimum(jnp.log(shares), np.float32(-(2.0**-24)))


def middle(uniforms: jax.Array) -> jax.Array:
    """Uniform numbers in [0, 1), as ``jax.random`` rounds them down, each in the middle of what rounds to it;
    or exponential ones, which are made of these.

    >>> float(middle(jnp.float32(0.0)) * 2**24)
    1.0
    """
    return uniforms + 0.5 * jnp.finfo(uniforms.dtype).eps


def to_index(words: jax.Array, num: int) -> jax.Array:
    """In 0, ..., num - 1: the upper word of the product with ``num``, put together from halves. Indices
    differ in probability by 2⁻³².

    >>> [int(i) for i in to_index(jnp.array([0, 2**31, 2**32 - 1], jnp.uint32), 100_000)]
    [0, 50000, 99999]
    """
    high, low = words >> 16, words & jnp.uint32(0xFFFF)
    num_high, num_low = jnp.uint32(num >> 16), jnp.uint32(num & 0xFFFF)
    middle = high * num_low + (low * num_low >> 16)
    other = low * num_high + (middle & jnp.uint32(0xFFFF))
    return (high * num_high + (middle >> 16) + (other >> 16)).astype(jnp.int32)
