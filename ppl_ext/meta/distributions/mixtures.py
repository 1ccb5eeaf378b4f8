"""Laws of a new episode's θ: mixtures of Gaussians, joint or coordinate by coordinate, and a Gaussian of low
rank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.meta.distributions.low_rank import LowRank


class Mixture(NamedTuple):
    """A mixture of Gaussians: ``weights`` (k,), ``means`` (k, d), ``covariances`` (k, d, d)."""

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array

    @property
    def mean(self) -> jax.Array:
        return self.weights @ self.means

    @property
    def covariance(self) -> jax.Array:
        r = self.means - self.mean
        return jnp.einsum("k,kij->ij", self.weights, self.covariances + jnp.einsum("ki,kj->kij", r, r))

    def draw(self, rng_key: jax.Array, num: int) -> jax.Array:
        """Shape (num, d); the components taken in proportion, systematically."""
        of_component, of_noise, of_order = jax.random.split(rng_key, 3)
        levels = (jnp.arange(num) + jax.random.uniform(of_component)) / num
        component = jnp.searchsorted(jnp.cumsum(self.weights), levels).clip(0, self.weights.shape[0] - 1)
        roots = jnp.linalg.cholesky(self.covariances)
        noise = jax.random.normal(of_noise, (num, self.means.shape[1]), self.means.dtype)
        theta = self.means[component] + jnp.einsum("nij,nj->ni", roots[component], noise)
        return jax.random.permutation(of_order, theta)


class Factorised(NamedTuple):
    """Independent coordinates, each a mixture of k Gaussians: ``weights``, ``means`` and ``variances`` (k,
    d).
    """

    weights: jax.Array
    means: jax.Array
    variances: jax.Array

    @property
    def mean(self) -> jax.Array:
        return (self.weights * self.means).sum(0)

    @property
    def covariance(self) -> jax.Array:
        """The covariance's diagonal, shape (d,)."""
        return (self.weights * (self.variances + (self.means - self.mean) ** 2)).sum(0)

    def draw(self, rng_key: jax.Array, num: int) -> jax.Array:
        of_component, of_noise = jax.random.split(rng_key)
        k, d = self.weights.shape
        levels = jax.random.uniform(of_component, (d, num))
        find = jax.vmap(lambda weights, at: jnp.searchsorted(jnp.cumsum(weights), at).clip(0, k - 1))
        component = find(self.weights.T, levels).T
        noise = jax.random.normal(of_noise, (num, d), self.means.dtype)
        means, variances = (jnp.take_along_axis(x, component, 0) for x in (self.means, self.variances))
        return means + jnp.sqrt(variances) * noise


class LowRankNormal(NamedTuple):
    """A Gaussian whose precision is a diagonal plus few rows."""

    mean: jax.Array
    low_rank: LowRank

    @property
    def covariance(self) -> jax.Array:
        return self.low_rank.dense()

    def draw(self, rng_key: jax.Array, num: int) -> jax.Array:
        return self.mean + self.low_rank.spread(
            jax.random.normal(rng_key, (num, self.mean.shape[0]), self.mean.dtype)
        )


Law = Mixture | Factorised | LowRankNormal
