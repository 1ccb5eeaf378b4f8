"""One episode's Gaussian in closed form, from a quadratic model of its log likelihood (Kim and Hospedales
2024, section 3).

Near its local fit an episode's negative log likelihood is ½ θᵀAθ − bᵀθ + c. Against the shared Gaussian with
expected precision P₀ and location m₀ the best q(θ) = N(m, V) has V = (A + P₀)⁻¹ and m = V(b + P₀m₀). A and b
are constants of differentiation; gradients for m₀ and P₀ flow through these two equations alone.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from ppl_ext.meta.distributions.low_rank import Factored, LowRank
from ppl_ext.meta.distributions.niw import NIW


class Quadratic(NamedTuple):
    """A local fit: ``precision`` A, shape (d, d) or (d,) or factored, and ``linear`` b, shape (d,). No data:
    both are zero.

    >>> # three of noise 1, whose mean is 2
    >>> rows = Quadratic(precision=jnp.array([[3.0]]), linear=jnp.array([6.0]))
    >>> q = closed_form(rows, NIW(loc=jnp.zeros(1), mean_precision=1.0, scale_matrix=jnp.eye(1), df=1.0))
    >>> # drawn towards 0 by as much as one row
    >>> round(float(q.mean[0]), 3), round(float(q.covariance[0, 0]), 3)
    (1.5, 0.25)
    """

    precision: jax.Array | Factored
    linear: jax.Array


class LocalSolver(eqx.Module):
    """How an episode's negative log likelihood becomes a quadratic.

    >>> class OneNewtonStep(LocalSolver):
    ...     def __call__(self, neg_log_lik, mean, precision, rng_key):
    ...         slope, curvature = jax.grad(neg_log_lik)(mean), jax.hessian(neg_log_lik)(mean)
    ...         return Quadratic(curvature, curvature @ mean - slope)
    >>> fit = OneNewtonStep()(lambda theta: jnp.sum((theta - 3.0) ** 2), jnp.zeros(1), jnp.eye(1), None)
    >>> fit.precision.tolist(), fit.linear.tolist()
    ([[2.0]], [6.0])
    """

    @abstractmethod
    def __call__(
        self,
        neg_log_lik: Callable[[jax.Array], jax.Array],
        mean: jax.Array,
        precision: jax.Array,
        rng_key: jax.Array,
    ) -> Quadratic:
        """Fit one episode.

        :param neg_log_lik: θ ↦ −log p(D | θ), θ of shape (d,).
        :param mean: m₀, where local iterates start.
        :param precision: P₀ = E Σ⁻¹, shape (d, d) or (d,).
        """


class Gaussian(NamedTuple):
    """q(θ) = N(mean, covariance), shapes (d,) and (d, d) or (d,), or of low rank."""

    mean: jax.Array
    covariance: jax.Array | LowRank


def closed_form(fit: Quadratic, niw: NIW) -> Gaussian:
    """The episode's Gaussian against the shared law; differentiable by ``niw``, not by the fit."""
    fit = jax.lax.stop_gradient(fit)
    prior = niw.expected_precision()
    if isinstance(fit.precision, Factored) and prior.ndim == 1:
        low_rank = LowRank(1 / prior, fit.precision.factor)
        return Gaussian(low_rank.times(fit.linear + prior * niw.loc), low_rank)
    if not isinstance(fit.precision, Factored) and fit.precision.ndim == prior.ndim == 1:
        covariance = 1 / (fit.precision + prior)
        return Gaussian(covariance * (fit.linear + prior * niw.loc), covariance)
    mean, factor = solved(fit, jnp.diag(prior) if prior.ndim == 1 else prior, niw.loc)
    return Gaussian(mean, cho_solve((factor, True), jnp.eye(niw.dim, dtype=mean.dtype)))


def solved(fit: Quadratic, prior: jax.Array, loc: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean (A + P₀)⁻¹(b + P₀m₀), and the Cholesky factor of A + P₀; P₀ of shape (d, d)."""
    a = fit.precision.dense() if isinstance(fit.precision, Factored) else fit.precision
    factor = cho_factor((jnp.diag(a) if a.ndim == 1 else a) + prior, lower=True)
    return cho_solve(factor, fit.linear + prior @ loc), factor[0]


def through(
    theta: jax.Array, precision: jax.Array | Factored, mean: jax.Array, prior: jax.Array
) -> Quadratic:
    """The quadratic with the given curvature whose closed form has its mean at ``theta``.

    A diagonal curvature at a point that is no optimum would otherwise make a whole Newton step in every
    coordinate at once and overshoot.
    """
    pull = prior * (theta - mean) if prior.ndim == 1 else prior @ (theta - mean)
    if isinstance(precision, Factored):
        return Quadratic(precision, precision.times(theta) + pull)
    own = precision * theta if precision.ndim == 1 else precision @ theta
    return Quadratic(precision, own + pull)


def expected(fn: Callable[[jax.Array], jax.Array], q: Gaussian, noise: jax.Array | None = None) -> jax.Array:
    r"""E fn(θ) under q: over ``noise`` (n, d) standard normal draws, antithetic; without, over the 2d points
    :math:`m \pm \sqrt d\, L e_j` of the spherical-radial rule, exact for polynomials of degree three."""
    d = q.mean.shape[0]
    points = (
        jnp.sqrt(jnp.asarray(d, q.mean.dtype)) * jnp.eye(d, dtype=q.mean.dtype) if noise is None else noise
    )
    points = jnp.concatenate([points, -points])
    if isinstance(q.covariance, LowRank):
        at = q.mean + q.covariance.spread(points)
    elif q.covariance.ndim == 1:
        at = q.mean + points * jnp.sqrt(q.covariance)
    else:
        at = q.mean + points @ jnp.linalg.cholesky(q.covariance).T
    return jax.vmap(fn)(at).mean(0)
