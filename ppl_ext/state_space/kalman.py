r"""The Kalman filter and smoother of a program: from log densities that are quadratic in the states.

A step's law of its state b after a state a, and what its observations say of it, are read off their log
densities by second derivatives:

.. math:: \log m(b \mid a) = \log \mathcal{N}(b; F a + c, Q) + \text{excess}, \qquad
          \log g(x) = g_0^\top x - \tfrac12 x^\top A x + \text{constant}

Precisions add up simply, but where noise is small they are large, and what is left of two large ones in
single precision is nothing: with a thousandth of the state's scale as noise an evidence would be off by
nats. So covariances are carried, and the evidence of a step is taken where the states are likely:

.. math:: \log \int \mathcal{N}(x; m, P)\, g(x)\, dx
          = \log g(m^+) - \tfrac12 (m^+ - m)^\top P^{-1} (m^+ - m) - \tfrac12 \log \frac{|P|}{|P^+|}

with the mean and covariance after it, where no two large numbers cancel. Sources: Särkkä 2013, theorems 4.2
and 8.2; Joseph's form of the covariance, Bucy and Joseph 1968, which is a sum of positive parts.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.state_space.small_matrices import cholesky, product, solve_lower, solve_root

SHARP = 1e3
"""Observations that know a state so many times better than what was known before."""


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
    constant.
    """

    precision: jax.Array
    slope: jax.Array


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
    precision, slope = _quadratic(log_density, a, b)
    root = cholesky(precision[len(a) :, len(a) :])
    right = [-precision[len(a) :, : len(a)], slope[len(a) :, None], jnp.eye(len(b), dtype=b.dtype)]
    solved = solve_root(root, jnp.concatenate(right, 1))
    offset = solved[:, len(a)]
    normal = _log_determinant(root) - 0.5 * len(b) * math.log(2.0 * math.pi)
    return Law(
        solved[:, : len(a)],
        offset,
        _symmetric(solved[:, len(a) + 1 :]),
        log_density(jnp.zeros_like(a), offset) - normal,
    )


def seen_of(log_density: Callable, *states: jax.Array) -> Seen:
    """What observations say of these states together."""
    return Seen(*_quadratic(log_density, *states))


def _quadratic(fn: Callable, *states: jax.Array) -> tuple[jax.Array, jax.Array]:
    ends = np.cumsum([len(x) for x in states])[:-1]

    def joint(x):
        return fn(*jnp.split(x, ends))

    at = jnp.zeros_like(jnp.concatenate(states))
    return -jax.hessian(joint)(at), jax.grad(joint)(at)


def updated(prior: Normal, seen: Seen, factor: jax.Array | None = None) -> tuple[Normal, jax.Array]:
    """The law of a state after an observation, and the log evidence of this but for the observation's log
    density at the new mean.

    :param factor: a Cholesky factor of the prior's covariance, where it is known better than from that.

    >>> prior, seen = Normal(jnp.zeros(1), jnp.eye(1)), Seen(jnp.full((1, 1), 1e8), jnp.full(1, 1e8))
    >>> law, rest = updated(prior, seen)  # one is seen, with a noise of 1e-4
    >>> bool(abs(law.mean[0] - 1) < 1e-6), bool(abs(law.covariance[0, 0] - 1e-8) < 1e-12)
    (True, True)
    >>> bool(abs(rest - (-0.5 - 0.5 * jnp.log(1e8))) < 1e-5)
    True
    """
    mean, covariance = prior
    if not len(mean):
        return prior, jnp.zeros((), mean.dtype)
    if factor is not None or len(mean) == 1:
        factor = root_of(covariance) if factor is None else factor
        *law, rest = _updated(mean, covariance, *seen, factor)
        return Normal(*law), rest
    # What is seen most sharply comes first in the factor, so that the rest is no difference of large numbers.
    order = jnp.argsort(-jnp.diagonal(seen.precision) * jnp.diagonal(covariance))
    covariance, precision = covariance[order][:, order], seen.precision[order][:, order]
    mean, covariance, rest = _updated(
        mean[order], covariance, precision, seen.slope[order], root_of(covariance)
    )
    back = jnp.argsort(order)
    return Normal(mean[back], covariance[back][:, back]), rest


@jax.custom_jvp
def _updated(mean, covariance, precision, slope, factor):
    eye = jnp.eye(len(mean), dtype=mean.dtype)
    inner = cholesky(eye + product(factor.T, precision, factor))
    right = product(factor.T, slope - product(precision, mean))
    step = solve_root(inner, right)
    left = right - step - product(factor.T, precision, factor, step)
    step = step + solve_root(inner, left)
    half = solve_lower(inner, factor.T)
    about = product(half.T, half)
    rest = eye - product(about, precision)
    after = _symmetric(product(rest, covariance, rest.T) + product(about, precision, about))
    # Of sharp observations the second tells more, in which the first is a difference of large numbers.
    sharp = jnp.sum(precision * covariance) > SHARP
    shrunk = jnp.where(
        sharp, _log_determinant(root_of(after)) - _log_determinant(factor), -_log_determinant(inner)
    )
    return mean + product(factor, step), after, shrunk - 0.5 * (step * step).sum()


@_updated.defjvp
def _slopes_of_updated(primals, slopes):
    """By the formulas, which take a quarter of the operations that the derivatives of the factors would.

    With K = I − P⁺ A and u = P⁻¹ (m⁺ − m): dP⁺ = K dP Kᵀ − P⁺ dA P⁺, dm⁺ = K (dm + dP u) + P⁺ (dg₀ − dA m⁺),
    and that of half the log of the determinants' ratio −½ tr(P⁻¹ (P − P⁺) P⁻¹ dP) − ½ tr(P⁺ dA).
    """
    mean, covariance, precision, _, factor = primals
    d_mean, d_covariance, d_precision, d_slope, _ = slopes
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


def _both(before: Normal, law: Law, seen: Seen) -> tuple[Normal, jax.Array]:
    """The states before and after a step, given observations of both."""
    n0, n = len(before.mean), len(law.offset)
    after = _moved(before, law)
    cross = product(before.covariance, law.slope.T)
    covariance = jnp.block([[before.covariance, cross], [cross.T, after.covariance]])
    half = root_of(before.covariance)
    factor = jnp.block([[half, jnp.zeros((n0, n))], [product(law.slope, half), root_of(law.covariance)]])
    return updated(Normal(jnp.concatenate([before.mean, after.mean]), covariance), seen, factor)


def smoothed(after: Normal, before: Behind) -> tuple[Normal, jax.Array]:
    """The state before a step given all data, from that after it; and the covariance of the two."""
    given, gain, at = before
    cross = product(gain, after.covariance)
    covariance = _symmetric(given.covariance + product(cross, gain.T))
    return Normal(given.mean + product(gain, after.mean - at), covariance), cross


def _symmetric(x: jax.Array) -> jax.Array:
    return 0.5 * (x + jnp.swapaxes(x, -1, -2))


def root_of(covariance: jax.Array) -> jax.Array:
    """The Cholesky factor, of a matrix that may be singular to rounding."""
    little = 2.0 * jnp.finfo(covariance.dtype).eps * jnp.diagonal(covariance)
    return cholesky(covariance + jnp.diag(little))


def _log_determinant(root: jax.Array) -> jax.Array:
    """Half that of the matrix, from its Cholesky factor."""
    return jnp.log(jnp.diagonal(root)).sum()
