"""The Gaussian process that a deep kernel machine is, given its data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.linear_algebra import as_rows
from ppl_ext.runtime.arguments import check_key


class DeepKernelPosterior(NamedTuple):
    """A Gaussian process given the data, from :meth:`~ppl_ext.priors.DeepKernelMachine.fit`, and a target of
    :func:`~ppl_ext.priors.match`.

    ``factors``: T of each layer, with :math:`G_l = R T T^\\top R^\\top`; R is the Cholesky factor of
    :math:`K(G_{l-1})`, (m, m), and in the first layer the inputs and a one, each times its scale, (m, d + 1),
    since a Gram matrix of inputs has no more than their rank. ``objective`` (steps,), in nats.
    """

    machine: Any
    factors: tuple[jax.Array, ...]
    inducing: jax.Array
    x: jax.Array
    y: jax.Array
    noise: float
    objective: jax.Array

    def predict(self, x: Any, observed: bool = False) -> dist.MultivariateNormal:
        """The function at rows (k, d), or with ``observed`` new data there: one law, or one an output."""
        extra = self.noise if observed else 0.0
        covariance = self._covariance(x)
        covariance = covariance + extra * jnp.eye(len(covariance), dtype=covariance.dtype)
        return dist.MultivariateNormal(self.mean(x).T, scale_tril=rounded_cholesky(covariance))

    def mean(self, inputs: Any) -> jax.Array:
        """(k,), or (k, P)."""
        _, root, factor, inner = self._solved()
        _, cross, _ = self.machine.covariances(self.factors, self.inducing, self._rows(inputs), whole=False)
        half = solve_triangular(factor, solve_triangular(root, cross, lower=True), lower=True)
        return (half.T @ inner).reshape(-1, *self.y.shape[1:])

    def cov(self, inputs: Any) -> jax.Array:
        """(k, k); of P outputs, which are independent, (k P, k P)."""
        covariance = self._covariance(inputs)
        return jnp.kron(covariance, jnp.eye(self.y.shape[1])) if self.y.ndim == 2 else covariance

    def sample(self, rng_key: jax.Array, inputs: Any, num_draws: int) -> jax.Array:
        """Functions (num_draws, k), or (num_draws, k, P)."""
        check_key("sample: rng_key", rng_key)
        return jnp.moveaxis(self.predict(inputs).sample(rng_key, (num_draws,)), 1, -1)

    def _covariance(self, x):
        x = self._rows(x)
        _, root, factor, _ = self._solved()
        _, cross, whole = self.machine.covariances(self.factors, self.inducing, x)
        half = solve_triangular(root, cross, lower=True)
        left = solve_triangular(factor, half, lower=True)
        return whole - half.T @ half + left.T @ left

    def _rows(self, inputs: Any) -> jax.Array:
        x = as_rows(inputs)
        if x.shape[1:] != self.x.shape[1:]:
            raise ArgumentError(
                f"DeepKernelPosterior: inputs must be rows of {self.x.shape[1]} columns, as those of the "
                f"fit, got shape {jnp.shape(inputs)}."
            )
        return x

    def _solved(self):
        uu, ux, _ = self.machine.covariances(self.factors, self.inducing, self.x, whole=False)
        return solved(uu, ux, self.y.reshape(len(self.y), -1), self.noise)


def solved(uu, ux, y, noise):
    """A = R⁻¹ K_ux / σ, R, the Cholesky factor of I + A Aᵀ, and its inverse times A y / σ."""
    root = rounded_cholesky(uu)
    a = solve_triangular(root, ux, lower=True) / noise**0.5
    factor = jnp.linalg.cholesky(jnp.eye(len(a), dtype=a.dtype) + a @ a.T)
    return a, root, factor, solve_triangular(factor, a @ y, lower=True) / noise**0.5


def rounded_cholesky(matrix):
    """Cholesky's factor of a matrix with its rounding errors on the diagonal, however large these are."""
    size = len(matrix) * jnp.finfo(matrix.dtype).eps * jnp.mean(jnp.diagonal(matrix))
    return jnp.linalg.cholesky(matrix + size * jnp.eye(len(matrix), dtype=matrix.dtype))
