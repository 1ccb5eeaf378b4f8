r"""The Kalman filter and smoother of a program: from log densities that are quadratic in the states.

A step's law of its state b after a state a, and what its observations say of it, are read off their log
densities by second derivatives:

.. math:: \log m(b \mid a) = \log \mathcal{N}(b; F a + c, Q) + \text{excess}, \qquad
          \log g(x) = g_0^\top x - \tfrac12 x^\top A x + \text{constant}

Precisions add up simply, but where noise is small they are large, and what is left of two large ones in
single precision is nothing: with a thousandth of the state's scale as noise an evidence would be off by
nats. So covariances are carried, and what observations say is taken as data z of the states with noise of
variance one, :math:`A = W^\top W`, which has half the digits to lose. The evidence of a step is taken where
the states are likely:

.. math:: \log \int \mathcal{N}(x; m, P)\, g(x)\, dx
          = \log g(m^+) - \tfrac12 w^\top w - \tfrac12 \log |I + B^\top W^\top W B|, \qquad
          m^+ = m + B w, \quad P = B B^\top

with the mean after it, where no two large numbers cancel. Sources: Särkkä 2013, theorems 4.2 and 8.2; Bierman
1977, chapter 5, for square roots.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.state_space.small_matrices import (
    added,
    cholesky,
    product,
    solve_lower,
    solve_root,
    solve_upper,
    unit_given,
)


class Law(NamedTuple):
    """A state given the one before: normal around ``slope @ a + offset``; ``excess`` is the rest of its log
    density, zero unless it is scaled.
    """

    slope: jax.Array
    offset: jax.Array
    covariance: jax.Array
    excess: jax.Array


class Seen(NamedTuple):
    """What observations say of a state x: their log density is ``slope · x − ½ xᵀ precision x``, up to a
    constant. ``sharp`` is the same in numbers that do not cancel.
    """

    precision: jax.Array
    slope: jax.Array
    sharp: "Data | Sharp"


class Data(NamedTuple):
    """Observations as ``data``, of ``rows @ x``, with noise of variance one."""

    rows: jax.Array
    data: jax.Array


class Sharp(NamedTuple):
    """Observations as :class:`Data`, and beside it what is none: ``tilt · x − ½ xᵀ rest x``, zero unless a
    factor rises without end or is convex in the states.
    """

    rows: jax.Array
    data: jax.Array
    tilt: jax.Array
    rest: jax.Array


class Normal(NamedTuple):
    mean: jax.Array
    covariance: jax.Array


class Behind(NamedTuple):
    """The state before a step given the one after it, ``given.mean + gain @ (b − at)``."""

    given: Normal
    gain: jax.Array
    at: jax.Array


def law_of(log_density: Callable, a: jax.Array, b: jax.Array) -> Law:
    """The law of b given a, from its log density at vectors of their sizes."""
    n0 = len(a)

    def slope(x):
        found = jax.grad(log_density, 1)(x[:n0], x[n0:])
        return found, found

    curvature, at_zero = jax.jacfwd(slope, has_aux=True)(jnp.zeros_like(jnp.concatenate([a, b])))
    root = cholesky(-curvature[:, n0:])
    right = [curvature[:, :n0], at_zero[:, None], jnp.eye(len(b), dtype=b.dtype)]
    solved = solve_root(root, jnp.concatenate(right, 1))
    offset = solved[:, len(a)]
    normal = _log_determinant(root) - 0.5 * len(b) * math.log(2.0 * math.pi)
    return Law(
        solved[:, : len(a)],
        offset,
        _symmetric(solved[:, len(a) + 1 :]),
        log_density(jnp.zeros_like(a), offset) - normal,
    )


def seen_of(log_densities: Callable, *states: jax.Array, stated: jax.Array | None = None) -> Seen:
    """What observations say of these states together, from their log densities: a pytree of arrays.

    Each is taken by itself, since of the sum of a sharp one and a vague one the vague one is lost.

    :param stated: rows of others, with their data in the last column.
    """

    def terms(*x):
        parts = [jnp.ravel(p) for p in jax.tree.leaves(log_densities(*x))]
        return jnp.concatenate([jnp.zeros(0, x[0].dtype), *parts])

    n = sum(len(x) for x in states)
    precisions, slopes = _quadratic(terms, *states)
    rows, data, tilts, rests = jax.vmap(sharpened)(*map(jax.lax.stop_gradient, (precisions, slopes)))
    stated = jnp.zeros((0, n + 1), slopes.dtype) if stated is None else stated
    wide = jnp.concatenate([rows, data[..., None]], 2).reshape(-1, n + 1)
    wide = _fewer(jnp.concatenate([wide, jax.lax.stop_gradient(stated)]))
    precision, slope = (
        x.sum(0) + y for x, y in zip((precisions, slopes), seen_as_data(stated)[:2], strict=True)
    )
    # A convex factor may be a law's only together with the others, so that they stay one.
    whole = (rests == 0.0).all()
    tilt, rest = _slopes_alone(slope, precision)
    sharp = Sharp(wide[:, :n], wide[:, n], tilts.sum(0) + tilt, rest)
    none = Sharp(0.0 * sharp.rows, 0.0 * sharp.data, slope, precision)
    return Seen(precision, slope, Sharp(*(jnp.where(whole, x, y) for x, y in zip(sharp, none, strict=True))))


def seen_as_data(wide: jax.Array) -> Seen:
    """What is seen of states where all of it is data: ``rows``, and the data in the last column.

    >>> seen_as_data(jnp.array([[2.0, 6.0]])).precision.tolist()
    [[4.0]]
    """
    precision, slope = product(wide[:, :-1].T, wide[:, :-1]), product(wide[:, :-1].T, wide[:, -1])
    if len(wide) < wide.shape[1]:
        return Seen(precision, slope, Data(wide[:, :-1], wide[:, -1]))
    fixed = _fewer(jax.lax.stop_gradient(wide))
    return Seen(precision, slope, Sharp(fixed[:, :-1], fixed[:, -1], *_slopes_alone(slope, precision)))


def _slopes_alone(*xs: jax.Array) -> list[jax.Array]:
    """Zeros with the derivatives of these. A is its rows' part, which is held fixed, and the rest."""
    return [x - jax.lax.stop_gradient(x) for x in xs]


def _fewer(wide: jax.Array) -> jax.Array:
    """Rows that say the same of the states, and are not more than these."""
    n = wide.shape[1] - 1
    if len(wide) <= n:
        return wide
    order = jnp.argsort(-jnp.abs(wide[:, :n]).max(1, initial=0.0))  # or reflections would lose the small ones
    return jnp.linalg.qr(wide[order], mode="r")[:n]


def sharpened(precision: jax.Array, slope: jax.Array) -> Sharp:
    """Rows and data, by Cholesky's factor with pivots: what is left of most, of what was there, is next, so
    that it does not matter in which units a state is.

    >>> seen = sharpened(1e6 * jnp.array([[1.0, -1.0], [-1.0, 1.0]]), 1e6 * jnp.array([-0.5, 0.5]))
    >>> seen.rows.round(1).tolist(), [round(float(z)) for z in seen.data]  # half is seen, with noise 1e-3
    ([[1000.0, -1000.0], [0.0, 0.0]], [-500, 0])
    """
    n, least = len(slope), 8.0 * len(slope) * jnp.finfo(slope.dtype).eps
    size = jnp.abs(jnp.diagonal(precision))

    def pivot(k, carry):
        left, tilt, scale, rows, data = carry
        at = jnp.argmax(jnp.diagonal(left) / jnp.where(size > 0.0, size, 1.0))
        worth = left[at, at] > least * size[at]
        root = jnp.sqrt(jnp.where(worth, left[at, at], 1.0))
        row, z = jnp.where(worth, left[at] / root, 0.0), jnp.where(worth, tilt[at] / root, 0.0)
        left = left - row[:, None] * row
        return left, tilt - row * z, scale + jnp.abs(row * z), rows.at[k].set(row), data.at[k].set(z)

    if not n:
        return Sharp(precision, slope, slope, precision)
    begun = (precision, slope, jnp.abs(slope), jnp.zeros_like(precision), jnp.zeros_like(slope))
    left, tilt, scale, rows, data = jax.lax.fori_loop(0, n, pivot, begun)
    nothing = (jnp.abs(left) <= 4.0 * least * jnp.sqrt(size[:, None] * size)).all()
    tilt = jnp.where(jnp.abs(tilt) <= least * scale, 0.0, tilt)
    return Sharp(rows, data, tilt, jnp.where(nothing, 0.0, left))


def _quadratic(fn: Callable, *states: jax.Array) -> tuple[jax.Array, jax.Array]:
    ends = np.cumsum([len(x) for x in states])[:-1]

    def joint(x):
        return fn(*jnp.split(x, ends))

    def slope(x):
        found = jax.jacfwd(joint)(x)
        return found, found

    curvature, at_zero = jax.jacfwd(slope, has_aux=True)(jnp.zeros_like(jnp.concatenate(states)))
    return -curvature, at_zero


def updated(prior: Normal, seen: Seen, factor: jax.Array | None = None) -> tuple[Normal, jax.Array]:
    """The law of a state after an observation, and the log evidence of this but for the observation's log
    density at the new mean.

    :param factor: a Cholesky factor of the prior's covariance, where it is known better than from that.

    >>> prior = Normal(jnp.zeros(1), jnp.eye(1))
    >>> law, rest = updated(prior, seen_of(lambda x: -0.5e8 * ((x[0] - 1) ** 2), prior.mean))
    >>> bool(abs(law.mean[0] - 1) < 1e-6), bool(abs(law.covariance[0, 0] - 1e-8) < 1e-12)  # noise of 1e-4
    (True, True)
    >>> bool(abs(rest - (-0.5 - 0.5 * jnp.log(1e8))) < 1e-5)
    True
    """
    mean, covariance = prior
    if not len(mean) or not len(seen.sharp.rows):
        return prior, jnp.zeros((), mean.dtype)
    factor = root_of(covariance) if factor is None else factor
    mean, covariance, rest = _updated(mean, covariance, *seen, factor)
    return Normal(mean, covariance), rest


@jax.custom_jvp
def _updated(mean, covariance, _precision, _slope, sharp, factor):
    # In units of the prior's factor: the rows, and the Cholesky factor of the precision after them.
    rows, left = product(sharp.rows, factor), sharp.data - product(sharp.rows, mean)
    if isinstance(sharp, Data):
        step, inner, half = unit_given(rows, left)
        root = product(factor, inner)
        return mean + product(factor, step), product(root, root.T), -half - 0.5 * step @ step
    inner = cholesky(jnp.eye(len(mean), dtype=mean.dtype) + product(factor.T, sharp.rest, factor))
    beside = solve_lower(inner, product(factor.T, sharp.tilt - product(sharp.rest, mean)))
    inner, after, _ = added(inner, beside, rows, left)
    step, half = solve_upper(inner.T, after), solve_lower(inner, factor.T)
    return mean + product(factor, step), product(half.T, half), -_log_determinant(inner) - 0.5 * step @ step


@_updated.defjvp
def _slopes_of_updated(primals, slopes):
    """By the formulas, which take a quarter of the operations that the derivatives of the factors would.

    With K = I − P⁺ A and u = P⁻¹ (m⁺ − m): dP⁺ = K dP Kᵀ − P⁺ dA P⁺, dm⁺ = K (dm + dP u) + P⁺ (dg₀ − dA m⁺),
    and that of half the log of the determinants' ratio −½ tr(P⁻¹ (P − P⁺) P⁻¹ dP) − ½ tr(P⁺ dA).
    """
    mean, covariance, precision, *_, factor = primals
    d_mean, d_covariance, d_precision, d_slope, *_ = slopes
    found = new, after, _ = _updated(*primals)
    rest = jnp.eye(len(mean), dtype=mean.dtype) - product(after, precision)
    pull = solve_root(factor, new - mean)
    lost = solve_root(factor, solve_root(factor, covariance - after).T)
    d_after = product(rest, d_covariance, rest.T) - product(after, d_precision, after)
    d_new = product(rest, d_mean + product(d_covariance, pull))
    d_new = d_new + product(after, d_slope - product(d_precision, new))
    d_rest = 0.5 * (product(d_covariance, pull) @ pull - (lost * d_covariance).sum())
    d_rest = d_rest - 0.5 * (after * d_precision).sum() - pull @ (d_new - d_mean)
    return found, (d_new, _symmetric(d_after), d_rest)


def step(before: Normal, law: Law, seen: Seen) -> tuple[Normal, jax.Array, jax.Array]:
    """A step with observations of its state, or of those before and after it: the law after it, the log
    evidence but for the observations' own log density, and the states at which this is to be taken.
    """
    if len(seen.slope) == len(law.offset):
        new, rest = updated(_moved(before, law), seen)
        return new, rest + law.excess, jnp.concatenate([before.mean, new.mean])
    joint, rest = _both(before, law, seen)
    n0 = len(before.mean)
    return Normal(joint.mean[n0:], joint.covariance[n0:, n0:]), rest + law.excess, joint.mean


def behind(before: Normal, law: Law, seen: Seen) -> Behind:
    """The state before a step given the one after it and what was observed so far."""
    eye = jnp.eye(len(before.mean), dtype=before.mean.dtype)
    if len(seen.slope) == len(law.offset):
        after = _moved(before, law)
        gain = solve_root(root_of(after.covariance), product(law.slope, before.covariance)).T
        rest = eye - product(gain, law.slope)
        left = product(rest, before.covariance, rest.T) + product(gain, law.covariance, gain.T)
        return Behind(Normal(before.mean, _symmetric(left)), gain, after.mean)
    joint, _ = _both(before, law, seen)
    n0 = len(before.mean)
    gain = solve_root(root_of(joint.covariance[n0:, n0:]), joint.covariance[n0:, :n0]).T
    apart = jnp.concatenate([eye, -gain], 1)
    left = _symmetric(product(apart, joint.covariance, apart.T))
    return Behind(Normal(joint.mean[:n0], left), gain, joint.mean[n0:])


def _moved(before: Normal, law: Law) -> Normal:
    spread = product(law.slope, before.covariance, law.slope.T) + law.covariance
    return Normal(product(law.slope, before.mean) + law.offset, _symmetric(spread))


def _together(before: Normal, law: Law) -> tuple[Normal, jax.Array]:
    """The states before and after a step, and a factor of their covariance."""
    n0, n = len(before.mean), len(law.offset)
    after = _moved(before, law)
    cross = product(before.covariance, law.slope.T)
    covariance = jnp.block([[before.covariance, cross], [cross.T, after.covariance]])
    half = root_of(before.covariance)
    factor = jnp.block([[half, jnp.zeros((n0, n))], [product(law.slope, half), root_of(law.covariance)]])
    return Normal(jnp.concatenate([before.mean, after.mean]), covariance), factor


def _both(before: Normal, law: Law, seen: Seen) -> tuple[Normal, jax.Array]:
    """The states before and after a step, given observations of both."""
    prior, factor = _together(before, law)
    return updated(prior, seen, factor)


def after_step(
    before: Normal, law: Law, seen: Seen, new: Normal
) -> tuple[jax.Array, Normal, jax.Array, Normal]:
    """What observations are of, the state after a step or both: the matrix that the state before is moved by,
    its law before them, a factor of that covariance, and its law given them.

    :param new: the law of the state after the step given the observations.
    """
    if len(seen.slope) == len(law.offset):
        prior = _moved(before, law)
        return law.slope, prior, root_of(prior.covariance), new
    prior, factor = _together(before, law)
    both = jnp.concatenate([jnp.eye(len(before.mean), dtype=law.slope.dtype), law.slope])
    return both, prior, factor, updated(prior, seen, factor)[0]


def smoothed(after: Normal, before: Behind) -> tuple[Normal, jax.Array]:
    """The state before a step given all data, from that after it; and the covariance of the two."""
    given, gain, at = before
    cross = product(gain, after.covariance)
    covariance = _symmetric(given.covariance + product(cross, gain.T))
    return Normal(given.mean + product(gain, after.mean - at), covariance), cross


def _symmetric(x: jax.Array) -> jax.Array:
    return 0.5 * (x + jnp.swapaxes(x, -1, -2))


def root_of(covariance: jax.Array) -> jax.Array:
    """The Cholesky factor, of a matrix that may be singular to rounding, whose errors grow with its rows."""
    share = max(2.0, 0.5 * len(covariance)) * jnp.finfo(covariance.dtype).eps
    return cholesky(covariance * (1.0 + share * jnp.eye(len(covariance), dtype=covariance.dtype)))


def _log_determinant(root: jax.Array) -> jax.Array:
    """Half that of the matrix, from its Cholesky factor."""
    return jnp.log(jnp.diagonal(root)).sum()
