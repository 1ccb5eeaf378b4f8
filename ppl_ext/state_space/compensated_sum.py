"""Sums that keep the error of each addition: 10⁵ terms in float32 lose units of log evidence otherwise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sum(NamedTuple):
    """A number as an unevaluated sum of two, the second what rounding left out of the first."""

    high: jax.Array
    low: jax.Array

    @property
    def value(self) -> jax.Array:
        return self.high + self.low


def two_sum(a: Sum, b: Sum) -> Sum:
    """The sum of two pairs, exact to the square of the precision (Knuth). An infinite sum keeps no rest.

    >>> tiny = Sum(jnp.float32(2.0**-30), jnp.float32(0.0))
    >>> one, less = Sum(jnp.float32(1.0), jnp.float32(0.0)), Sum(jnp.float32(-1.0), jnp.float32(0.0))
    >>> total = two_sum(two_sum(one, tiny), less)
    >>> float(total.value) == 2.0**-30
    True
    """
    high = a[0] + b[0]
    part = high - a[0]
    low = (a[0] - (high - part)) + (b[0] - part) + a[1] + b[1]
    return Sum(high, jnp.where(jnp.isfinite(high), low, 0.0))


def plus(total: Sum, term: jax.Array) -> Sum:
    return two_sum(total, Sum(term, jnp.zeros_like(term)))


def zero() -> Sum:
    return Sum(jnp.zeros(()), jnp.zeros(()))
