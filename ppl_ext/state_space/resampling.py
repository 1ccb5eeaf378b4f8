r"""Resampling: which particles have how many offspring.

Each scheme draws ancestors :math:`A_1 \le \dots \le A_M` with
:math:`\mathbb{E}\,\#\{m: A_m = i\} = M w_i / \sum_j w_j` (unbiased counts), in O(N), sorted:

=========== ========================================================= ===============================
scheme      points at which the inverse distribution function is read variance
=========== ========================================================= ===============================
multinomial M independent uniforms                                    that of independent draws
residual    ⌊M w_i⌋ certain copies, independent uniforms for the rest at most multinomial's
stratified  (j + U_j) / M, one in each stratum                        at most multinomial's
systematic  (j + U) / M with one U                                    small in practice; no guarantee
=========== ========================================================= ===============================

Positions on the scale 0..M are kept as a whole number and a rest, and the sums that lead to them in two
levels with compensation: in float32, numbers near 10⁶ are 1/16 apart. Where every weight is zero all
particles count the same; NaN counts as zero.

Source: Douc, Cappé and Moulines 2005, *Comparison of resampling schemes for particle filtering*.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.random_choices import middle
from ppl_ext.state_space.compensated_sum import Sum, two_sum
from ppl_ext.state_space.running_sums import BLOCK, running_count, running_sum

Scheme = Callable[[jax.Array, jax.Array, int], jax.Array]
_ONE_LEVEL = 1024  # sums of so few terms need no second level


class _Position(NamedTuple):
    """A point on the scale 0..M, ``whole + rest`` with 0 ≤ rest < 1."""

    whole: jax.Array
    rest: jax.Array


def weights_of(log_weights: jax.Array) -> jax.Array:
    """Weights up to a factor, the largest 1; all 1 if none is positive: what indices are drawn with, where
    any will do.

    >>> [float(w) for w in weights_of(jnp.array([-jnp.inf, 0.0, jnp.nan]))]
    [0.0, 1.0, 0.0]
    """
    log_weights = lax.stop_gradient(jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights))
    top = log_weights.max()
    weights = jnp.where(
        jnp.isfinite(top), jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0.0)), log_weights == top
    )
    return weights.astype(log_weights.dtype)


def shares(log_weights: jax.Array) -> jax.Array:
    """Weights that sum to one: what an expectation is taken with; NaN if none is positive.

    >>> [float(w) for w in shares(jnp.zeros(2))], [float(w) for w in shares(jnp.full(2, -jnp.inf))]
    ([0.5, 0.5], [nan, nan])
    """
    weights = weights_of(log_weights)
    any_left = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights).max() > -jnp.inf
    return weights / jnp.where(any_left, weights.sum(), jnp.nan)


def systematic(key, log_weights: jax.Array, num: int) -> jax.Array:
    """``num`` ancestors, sorted: one uniform for all.

    >>> [int(a) for a in systematic(random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4)]
    [0, 0, 2, 3]
    """
    weights = weights_of(log_weights)
    at = _cumulated(weights, num)
    return _offspring(at.whole + (at.rest > middle(random.uniform(key, (), weights.dtype))), weights, num)


def stratified(key, log_weights: jax.Array, num: int) -> jax.Array:
    """``num`` ancestors, sorted: one uniform in each of ``num`` strata."""
    weights = weights_of(log_weights)
    at = _cumulated(weights, num)
    uniforms = middle(random.uniform(key, (num + 1,), weights.dtype))
    return _offspring(at.whole + (at.rest > uniforms[jnp.minimum(at.whole, num)]), weights, num)


def multinomial(key, log_weights: jax.Array, num: int) -> jax.Array:
    """``num`` independent ancestors, sorted."""
    weights = weights_of(log_weights)
    gaps = middle(random.exponential(key, (num + 1,), weights.dtype))
    points = jax.tree.map(lambda x: x[:-1], _cumulated(gaps, num))
    return _read(_cumulated(weights, num), points, weights, num)


def independent(key, log_weights: jax.Array, num: int) -> jax.Array:
    """``num`` independent ancestors in the order of their draws: what a conditional run takes. Those of
    :func:`multinomial` have the same law, once they are sorted.

    >>> [int(a) for a in independent(random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25])), 4)]
    [3, 3, 0, 0]
    """
    weights = weights_of(log_weights)
    return invert(weights, random.uniform(key, (num,), weights.dtype))


def invert(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """For weights (N,) and uniforms in [0, 1) of any shape, the index at which the running sum passes; never
    one of weight 0.
    """
    sums = running_sum(weights)
    found = jnp.searchsorted(sums, middle(uniforms) * sums[-1], side="right")
    found = jnp.minimum(found, len(weights) - 1).astype(jnp.int32)
    # By rounding the sum may pass where there is no weight: at its end, and where a block begins.
    return jnp.where(weights[found] > 0, found, jnp.argmax(weights).astype(jnp.int32))


def residual(key, log_weights: jax.Array, num: int) -> jax.Array:
    """``num`` ancestors, sorted: the whole part of each expected count is certain, and what is left of
    ``num`` independent.
    """
    weights = weights_of(log_weights)
    expected = weights * (num / _total(weights))
    certain = jnp.floor(expected)
    left = jnp.maximum(num - certain.sum(dtype=jnp.int32), 0)
    rest = expected - certain
    # The first `left` of the sorted uniforms: gaps beyond them count for nothing.
    gaps = middle(random.exponential(key, (num + 1,), weights.dtype))
    gaps = jnp.where(jnp.arange(num + 1) <= left, gaps, 0.0)
    points = jax.tree.map(lambda x: x[:-1], _cumulated(gaps, num))
    drawn = _read(
        _cumulated(jnp.where(rest.max() > 0, rest, 1.0), num),
        points,
        jnp.where(rest.max() > 0, rest, 1.0),
        num,
    )
    extra = jnp.zeros(len(weights), jnp.int32).at[drawn].add((jnp.arange(num) < left).astype(jnp.int32))
    return _offspring(running_count(certain.astype(jnp.int32) + extra, num), weights, num)


SCHEMES: dict[str, Scheme] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}


def scheme_of(where: str, scheme: str | Scheme) -> Scheme:
    """A scheme by name, or a function of one's own, ``(key, log_weights, num) -> ancestors``."""
    if callable(scheme):
        return scheme
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ArgumentError(
            f"{where} must be one of {', '.join(map(repr, SCHEMES))} or a function, got {described(scheme)}."
        )
    return SCHEMES[scheme]


def _rows(x: jax.Array) -> jax.Array:
    """Square, or nearly: rows of whole blocks, and an even number of them."""
    side = BLOCK * math.ceil(math.sqrt(len(x)) / BLOCK)
    return jnp.pad(x, (0, -len(x) % (2 * side))).reshape(-1, side)


def _total(x: jax.Array) -> jax.Array:
    if len(x) <= _ONE_LEVEL:
        return x.sum()
    rows = _rows(x).sum(1)
    return lax.associative_scan(two_sum, Sum(rows, jnp.zeros_like(rows))).high[-1]


def _cumulated(x: jax.Array, num: int) -> _Position:
    """Cumulative sums of positive numbers, scaled so that the last is ``num``."""
    if len(x) <= _ONE_LEVEL:
        sums = running_sum(x)
        return _split(jnp.zeros((), x.dtype), sums * (num / sums[-1]), len(x))
    inner = running_sum(_rows(x))
    total = lax.associative_scan(two_sum, Sum(inner[:, -1], jnp.zeros_like(inner[:, -1]))).high[-1]
    inner = inner * (num / total)
    high, low = lax.associative_scan(two_sum, Sum(inner[:, -1], jnp.zeros_like(inner[:, -1])))
    low = low + ((num - high[-1]) - low[-1]) * (high / num)  # the factor num / total is rounded, too
    before = [jnp.pad(part[:-1], (1, 0)).reshape(2, -1) for part in (high, low)]
    # In a loop, through which XLA does not fuse: on a CPU it would work these out anew for each particle of
    # the row.
    whole, rest = lax.map(lambda at: (jnp.floor(at[0]), (at[0] - jnp.floor(at[0])) + at[1]), tuple(before))
    return _split(whole.reshape(-1, 1), rest.reshape(-1, 1) + inner, len(x))


def _split(base: jax.Array, sums: jax.Array, length: int) -> _Position:
    whole = jnp.floor(sums)
    return _Position(
        *((base + whole).astype(jnp.int32).reshape(-1)[:length], (sums - whole).reshape(-1)[:length])
    )


def _last_positive(weights: jax.Array) -> jax.Array:
    return len(weights) - 1 - jnp.argmax(weights[::-1] > 0)


def _offspring(below: jax.Array, weights: jax.Array, num: int) -> jax.Array:
    """Ancestors, where particle i has those of the ``num`` places that lie between ``below[i - 1]`` and
    ``below[i]``.
    """
    index = jnp.arange(len(weights), dtype=jnp.int32)
    # Rounding must neither leave a place empty nor give the last ones to particles of weight zero.
    below = jnp.where(index >= _last_positive(weights), num, jnp.clip(below, 0, num))
    # A place belongs to the first particle with more than that below it: as many come before it as have no
    # more.
    return running_count(jnp.zeros(num, jnp.int32).at[below].add(1, mode="drop"), len(weights))


def _read(at: _Position, points: _Position, weights: jax.Array, num: int) -> jax.Array:
    """For each point the first particle whose cumulative weight exceeds it.

    The whole parts narrow it down to the particles that end in the same cell of length one, a few on average;
    then by bisection.
    """
    ends = running_count(jnp.zeros(num + 1, jnp.int32).at[jnp.minimum(at.whole, num)].add(1), len(weights))
    cell = jnp.minimum(points.whole, num)
    low, high = jnp.where(cell > 0, ends[jnp.maximum(cell - 1, 0)], 0), ends[cell]

    def halve(bounds):
        low, high = bounds
        middle = (low + high) // 2
        whole, rest = at.whole[middle], at.rest[middle]
        beyond = (whole > points.whole) | ((whole == points.whole) & (rest > points.rest))
        is_open = low < high
        return jnp.where(is_open & ~beyond, middle + 1, low), jnp.where(is_open & beyond, middle, high)

    low, _ = lax.while_loop(lambda bounds: (bounds[0] < bounds[1]).any(), halve, (low, high))
    return jnp.minimum(low, _last_positive(weights)).astype(jnp.int32)
