"""The posterior of a new episode under a fitted hierarchy, as a mixture of Gaussians in closed form."""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy.linalg import block_diag, cho_factor, cho_solve

from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.local import LocalSolver, Quadratic
from ppl_ext.meta.niw import NIW


class Mixture(NamedTuple):
    """A law of θ: a mixture of Gaussians, shapes (k,), (k, d) and (k, d, d)."""

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array


class Nodes(NamedTuple):
    """A scale mixture of Gaussians: shared scale matrices are divided by ``scales`` (k, d), with log weights (k,)."""

    scales: jax.Array
    log_weights: jax.Array


@dataclass(frozen=True)
class Adapted:
    """The posterior of one new episode.

    ``samples``: local sites under the episode model's own names, shape (num_samples, ...), for ``numpyro.infer.Predictive``; ``theta``: the
    same draws as vectors; ``mixture``: their law; ``shared``: the shared sites, to be substituted with them.
    """

    samples: dict[str, jax.Array]
    theta: jax.Array
    mixture: Mixture
    shared: dict[str, jax.Array]

    @property
    def mean(self) -> jax.Array:
        """E θ, shape (d,)."""
        return self.mixture.weights @ self.mixture.means

    @property
    def covariance(self) -> jax.Array:
        """Cov θ, shape (d, d)."""
        r = self.mixture.means - self.mean
        return jnp.einsum("k,kij->ij", self.mixture.weights, self.mixture.covariances + jnp.einsum("ki,kj->kij", r, r))


def scale_nodes(niw: NIW, num: int, rng_key: jax.Array) -> Nodes:
    """The predictive Student-t as a scale mixture: u of each block is Gamma(ν/2, ν/2).

    One block: Gauss-Legendre nodes in probability. Several, each with its own u: ``8 * num`` random ones.
    """
    blocks = np.asarray(niw.blocks)
    df = float(niw.df) - blocks + 1
    if len(blocks) == 1:
        at, weights = np.polynomial.legendre.leggauss(num)
        u = scipy.stats.gamma.ppf((at + 1) / 2, df / 2)[:, None] / (df / 2)
        log_weights = np.log(weights / 2)
    else:
        u = np.asarray(jax.random.gamma(rng_key, df / 2, (8 * num, len(blocks)))) / (df / 2)
        log_weights = np.full(8 * num, -np.log(8 * num))
    return Nodes(jnp.asarray(np.repeat(u, blocks, axis=1), niw.loc.dtype), jnp.asarray(log_weights, niw.loc.dtype))


@eqx.filter_jit
def adapted(loss: EpisodeLoss | None, niw: NIW, solver: LocalSolver, rng_key: jax.Array, nodes: Nodes | None) -> Mixture:
    """Fit the episode once from the mode of the shared law, and combine the fit with each Gaussian of its prior (no nodes: the mode's).

    :param loss: ``None`` for an episode without data, which NumPyro's plates could not hold.
    """
    matrix = _spread(niw, mode=True)
    if loss is None:
        fit = Quadratic(jnp.zeros_like(niw.loc), jnp.zeros_like(niw.loc))
    else:
        fit = solver(loss, niw.loc, _inverse(matrix), rng_key)
    if nodes is None:
        log_weights, spreads = jnp.zeros(1, niw.loc.dtype), matrix[None]
    else:
        roots = 1 / jnp.sqrt(nodes.scales)
        log_weights, spreads = nodes.log_weights, roots[:, :, None] * _spread(niw, mode=False) * roots[:, None, :]
    means, covariances, evidence = jax.vmap(lambda spread: _combined(fit, niw.loc, spread))(spreads)
    return Mixture(jax.nn.softmax(log_weights + evidence), means, covariances)


def draws(mixture: Mixture, rng_key: jax.Array, num: int) -> jax.Array:
    """θ from a mixture, shape (num, d); the components taken in proportion, systematically."""
    of_component, of_noise, of_order = jax.random.split(rng_key, 3)
    levels = (jnp.arange(num) + jax.random.uniform(of_component)) / num
    component = jnp.searchsorted(jnp.cumsum(mixture.weights), levels).clip(0, mixture.weights.shape[0] - 1)
    roots = jnp.linalg.cholesky(mixture.covariances)
    noise = jax.random.normal(of_noise, (num, mixture.means.shape[1]), mixture.means.dtype)
    theta = mixture.means[component] + jnp.einsum("nij,nj->ni", roots[component], noise)
    return jax.random.permutation(of_order, theta)


def _spread(niw: NIW, mode: bool) -> jax.Array:
    """The scale matrix of a new θ, (d, d): of the Gaussian at the mode of (μ, Σ), or of the Student-t."""
    if niw.diagonal:
        factor = 1 / (niw.df + 3) if mode else (niw.mean_precision + 1) / (niw.mean_precision * niw.df)
        return factor * jnp.diag(niw.scale_matrix)
    parts = []
    for b, v in zip(niw.blocks, niw.split(niw.scale_matrix), strict=True):
        parts.append(v / (niw.df + b + 2) if mode else v * (niw.mean_precision + 1) / (niw.mean_precision * (niw.df - b + 1)))
    return block_diag(*parts)


def _combined(fit: Quadratic, loc: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """N(loc, spread) times the quadratic: mean, covariance, and the log of the integral, up to a constant of the fit."""
    curvature = jnp.diag(fit.precision) if fit.precision.ndim == 1 else fit.precision
    prior = _inverse(spread)
    factor = cho_factor(curvature + prior, lower=True)
    pull = prior @ loc
    mean = cho_solve(factor, fit.linear + pull)
    log_det = 2 * jnp.log(jnp.diagonal(factor[0])).sum() + jnp.linalg.slogdet(spread)[1]
    evidence = 0.5 * ((fit.linear + pull) @ mean - loc @ pull - log_det)
    return mean, cho_solve(factor, jnp.eye(loc.shape[0], dtype=loc.dtype)), evidence


def _inverse(matrix: jax.Array) -> jax.Array:
    return cho_solve(cho_factor(matrix, lower=True), jnp.eye(matrix.shape[0], dtype=matrix.dtype))
