"""The exact score of a Gaussian at every level of added noise, and the path of its probability flow."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array


class GaussianScore(eqx.Module):
    r"""The score of a Gaussian with noise added, exactly; the reference of every other score.

    .. math:: \nabla_x \log \mathcal{N}(x;\, m,\, S + \sigma^2 I) = (S + \sigma^2 I)^{-1} (m - x)

    A *score* here is a function ``score(x, sigma)`` of one point and one level of noise: the gradient of the
    log density of :math:`X + \sigma \varepsilon`. This one, and :class:`MixtureScore`, also has the density
    itself, as ``log_prob(x, sigma)``, and ``sample(rng_key, shape, sigma)``.

    :param loc: m, (d,).
    :param covariance: S, (d, d), symmetric and positive semidefinite; a singular one needs ``sigma`` > 0.
    :raises ArgumentError: for shapes that disagree, or a matrix that is no covariance.

    Called with ``x`` (..., d) and ``sigma`` a number or (...), it returns (..., d).

    >>> score = GaussianScore(jnp.zeros(2), jnp.diag(jnp.array([3.0, 0.0])))
    >>> score(jnp.array([4.0, 1.0]), 1.0).tolist()
    [-1.0, -1.0]

    Source: Wang and Vastola 2024, the section on the Gaussian model.
    """

    loc: jax.Array
    values: jax.Array
    vectors: jax.Array

    def __init__(self, loc, covariance):
        loc, covariance = checked_moments("GaussianScore", loc, covariance)
        self.loc = loc
        values, self.vectors = jnp.linalg.eigh(covariance)
        self.values = jnp.maximum(values, 0.0)

    @staticmethod
    def of_draws(draws) -> "GaussianScore":
        """The Gaussian with the mean and covariance of draws (n, d), the best one in Kullback-Leibler
        divergence.
        """
        check_array("GaussianScore.of_draws: draws", draws)
        if jnp.ndim(draws) != 2 or len(draws) < 2:
            raise ArgumentError(
                f"GaussianScore.of_draws needs draws of shape (n, d) with n of at least 2, got "
                f"{jnp.shape(draws)}."
            )
        draws = jnp.asarray(draws, float)
        centred = draws - draws.mean(0, keepdims=True)
        return GaussianScore(draws.mean(0), centred.T @ centred / len(draws))

    @property
    def dim(self) -> int:
        """d."""
        return self.loc.shape[-1]

    @property
    def covariance(self) -> jax.Array:
        """S, (d, d)."""
        return (self.vectors * self.values[None]) @ self.vectors.T

    def coordinates(self, x) -> jax.Array:
        """x − m along the principal axes, (..., d)."""
        return (x - self.loc) @ self.vectors

    def variances(self, sigma) -> jax.Array:
        """The variances along the principal axes with the noise, (..., d)."""
        return self.values + jnp.square(jnp.asarray(sigma, self.values.dtype))[..., None]

    def __call__(self, x, sigma) -> jax.Array:
        return -(self.coordinates(x) / self.variances(sigma)) @ self.vectors.T

    def log_prob(self, x, sigma=0.0) -> jax.Array:
        """The log density of :math:`X + \\sigma \\varepsilon`, (...)."""
        variances = self.variances(sigma)
        terms = jnp.square(self.coordinates(x)) / variances + jnp.log(2 * math.pi * variances)
        return -0.5 * terms.sum(-1)

    def sample(self, rng_key, shape: tuple[int, ...] = (), sigma=0.0) -> jax.Array:
        """Draws of :math:`X + \\sigma \\varepsilon`, ``(*shape, d)``."""
        noise = jax.random.normal(rng_key, (*shape, len(self.loc)), self.values.dtype)
        return self.loc + (noise * jnp.sqrt(self.variances(sigma))) @ self.vectors.T


def teleport(gaussian: GaussianScore, x, start, end) -> jax.Array:
    r"""Move points from one level of noise to another along a Gaussian's probability flow, in one step.

    .. math:: x_{\text{end}} = m + \sum_k \sqrt{\tfrac{\lambda_k + \sigma_{\text{end}}^2}{\lambda_k +
        \sigma_{\text{start}}^2}} \; u_k u_k^\top (x - m)

    with S = Σ λ_k u_k u_kᵀ. It is the solution of dx/dσ = −σ · score(x, σ), so a sampler may begin at ``end``
    where noise is so large that only mean and covariance of the data are felt.

    :param x: (..., d), at the level ``start``.
    :param start: σ at which the points are, a number or (...).
    :param end: σ at which they shall be.
    :raises ArgumentError: if ``gaussian`` is no :class:`GaussianScore`.

    >>> score = GaussianScore(jnp.zeros(1), jnp.eye(1))
    >>> float(teleport(score, jnp.array([4.0]), 7.0**0.5, 1.0)[0])
    2.0

    Source: Wang and Vastola 2024, the solution of the Gaussian model's probability flow.
    """
    if not isinstance(gaussian, GaussianScore):
        raise ArgumentError(
            "teleport: gaussian must be a GaussianScore (of a mixture, its .gaussian; of data, "
            "GaussianScore.of_draws)."
        )
    shrink = jnp.sqrt(gaussian.variances(end) / gaussian.variances(start))
    return gaussian.loc + (shrink * gaussian.coordinates(x)) @ gaussian.vectors.T


def checked_moments(what: str, loc, covariance) -> tuple[jax.Array, jax.Array]:
    """A mean and a covariance as arrays, or an error that names ``what``."""
    check_array(f"{what}: loc", loc)
    check_array(f"{what}: covariance", covariance)
    loc, covariance = jnp.asarray(loc, float), jnp.asarray(covariance, float)
    if loc.ndim != 1 or covariance.shape != (len(loc), len(loc)):
        raise ArgumentError(
            f"{what}: a mean (d,) and a covariance (d, d) are wanted, got {loc.shape} and {covariance.shape}."
        )
    if not isinstance(loc, jax.core.Tracer) and not np.isfinite(np.asarray(loc)).all():
        raise ArgumentError(f"{what}: the mean must be finite, got {np.asarray(loc)}.")
    if not isinstance(covariance, jax.core.Tracer):
        matrix = np.asarray(covariance)
        size = max(float(np.abs(matrix).max(initial=0.0)), 1e-30)
        if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max(initial=0.0) > 1e-5 * size:
            raise ArgumentError(f"{what}: the covariance must be finite and symmetric.")
        if len(matrix) and np.linalg.eigvalsh(matrix).min() < -1e-4 * size:
            raise ArgumentError(f"{what}: the covariance has a negative eigenvalue.")
    return loc, covariance
