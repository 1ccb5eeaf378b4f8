"""Gaussians whose precision is a diagonal plus few rows: an episode seen through its outputs, of which there
are fewer than parameters.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular


class Factored(eqx.Module):
    """A precision UᵀU, by its factor U, shape (r, d)."""

    factor: jax.Array

    def times(self, x: jax.Array) -> jax.Array:
        return self.factor.T @ (self.factor @ x)

    def dense(self) -> jax.Array:
        return self.factor.T @ self.factor


class LowRank(eqx.Module):
    r"""The covariance :math:`V = (D^{-1} + U^\top U)^{-1}`, never formed (Woodbury): r × r systems only.

    :param scales: the diagonal of D, shape (d,).
    :param factor: U, shape (r, d).
    """

    scales: jax.Array
    factor: jax.Array

    def _parts(self) -> tuple[jax.Array, jax.Array]:
        """Ũ = U D^½ and the Cholesky factor C of I + ŨŨᵀ."""
        scaled = self.factor * jnp.sqrt(self.scales)
        return scaled, jnp.linalg.cholesky(scaled @ scaled.T + jnp.eye(scaled.shape[0], dtype=scaled.dtype))

    def times(self, x: jax.Array) -> jax.Array:
        """V x for x of shape (d,)."""
        root = jnp.sqrt(self.scales)
        scaled, c = self._parts()
        return root * (root * x - scaled.T @ cho_solve((c, True), scaled @ (root * x)))

    def diagonal(self) -> jax.Array:
        """The variances, shape (d,)."""
        scaled, c = self._parts()
        return self.scales * (1 - jnp.sum(solve_triangular(c, scaled, lower=True) ** 2, 0))

    def log_det(self) -> jax.Array:
        """log |V|."""
        return jnp.log(self.scales).sum() - 2 * jnp.log(jnp.diagonal(self._parts()[1])).sum()

    def spread(self, noise: jax.Array) -> jax.Array:
        r"""L ε for each row ε of ``noise`` (n, d), with :math:`L L^\top = V`.

        .. math:: L = D^{1/2} (I - \tilde U^\top C^{-\top} (C + I)^{-1} \tilde U)

        (Andrews 1968, "A square root formulation of the Kalman covariance equations").
        """
        scaled, c = self._parts()
        inner = solve_triangular(c + jnp.eye(c.shape[0], dtype=c.dtype), scaled @ noise.T, lower=True)
        return jnp.sqrt(self.scales) * (
            noise - (scaled.T @ solve_triangular(c, inner, lower=True, trans=1)).T
        )

    def dense(self) -> jax.Array:
        root = jnp.sqrt(self.scales)
        scaled, c = self._parts()
        inner = jnp.eye(root.shape[0], dtype=root.dtype) - scaled.T @ cho_solve((c, True), scaled)
        return root[:, None] * inner * root
