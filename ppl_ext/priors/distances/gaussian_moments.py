"""Distances between Gaussians with the moments of two laws of functions."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ppl_ext.priors.distances.distance import Distance, Functions, check_draws
from ppl_ext.priors.linear_algebra import cholesky
from ppl_ext.runtime.arguments import check_positive


class GaussianW2(Distance):
    r"""Squared 2-Wasserstein distance of the two Gaussians that have the laws' moments, over D.

    .. math:: \tfrac1D \Big( \|m_1 - m_2\|^2 + \mathrm{tr}\, C_1 + \mathrm{tr}\, C_2 - 2\, \mathrm{tr}
        (L_2^\top C_1 L_2)^{1/2} \Big),
        \qquad C_2 = L_2 L_2^\top

    Moments are the target's own where it has them. Those of the model are exact given its hidden layers where
    its readout is linear and Gaussian (see :mod:`ppl_ext.priors.matching.readout`), and else those of its
    draws; from few draws at many inputs these make the distance too large, and its minimum too narrow.

    :raises ArgumentError: when called, for fewer than 2 draws of either law.

    >>> f = jax.random.normal(jax.random.key(0), (4000, 2))
    >>> moments = Functions(f), Functions(f, jnp.zeros(2), 4.0 * jnp.eye(2))
    >>> print(round(float(GaussianW2()(jax.random.key(0), (), *moments)), 1))  # (2 - 1)^2
    1.0

    Gelbrich 1990; Peyré and Cuturi, *Computational Optimal Transport*, 2019, eq. 2.41.
    """

    wants_moments: bool = eqx.field(static=True, default=True, init=False, kw_only=True)

    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        check_draws("GaussianW2", network.values, target.values, at_least=2)
        (m1, c1), (m2, c2) = moments(network), lax.stop_gradient(moments(target))
        factor = cholesky(c2)
        inner = factor.T @ c1 @ factor
        roots = jnp.linalg.eigvalsh(0.5 * (inner + inner.T))
        # The root's slope at an eigenvalue that is 0 but for rounding would be all noise.
        floor = (
            jnp.finfo(c1.dtype).eps * len(m1) * lax.stop_gradient(jnp.max(roots)) + jnp.finfo(c1.dtype).tiny
        )
        cross = jnp.sum(jnp.sqrt(jnp.where(roots > floor, roots, 1.0)) * (roots > floor))
        return (jnp.sum((m1 - m2) ** 2) + jnp.trace(c1) + jnp.trace(c2) - 2.0 * cross) / len(m1)


class GaussianKL(Distance):
    r"""Kullback-Leibler divergence of the two Gaussians that have the laws' moments, from the target's to the
    model's, over D.

    .. math:: \tfrac{1}{2D} \Big( \mathrm{tr}\, C_1^{-1} \big(C_2 + \Delta m \Delta m^\top\big) - D
        + \log \det C_1 - \log \det C_2 \Big), \qquad C_i = \mathrm{Cov}_i + \nu I

    In this direction the best Gaussian is the one with the target's moments. Moments are found as in
    :class:`GaussianW2`.

    :param noise: ν over the target's average variance. Without it, laws of smooth functions have no density
        at many inputs.
    :raises ArgumentError: for a ``noise`` that is not positive; when called, for fewer than 2 draws of either
        law.

    >>> f = jax.random.normal(jax.random.key(0), (4000, 2))
    >>> bool(abs(GaussianKL()(jax.random.key(0), (), Functions(f), Functions(f, jnp.zeros(2), jnp.eye(2))))
    ...     < 0.01)
    True
    """

    noise: float = eqx.field(static=True, default=1e-2)
    wants_moments: bool = eqx.field(static=True, default=True, init=False, kw_only=True)

    def __check_init__(self):
        check_positive("GaussianKL: noise", self.noise)

    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        check_draws("GaussianKL", network.values, target.values, at_least=2)
        (m1, c1), (m2, c2) = moments(network), lax.stop_gradient(moments(target))
        dim = len(m1)
        extra = self.noise * jnp.trace(c2) / dim * jnp.eye(dim, dtype=c1.dtype)
        l1, l2 = jnp.linalg.cholesky(c1 + extra), jnp.linalg.cholesky(c2 + extra)
        solve = partial(jax.scipy.linalg.solve_triangular, l1, lower=True)
        trace, mean = jnp.sum(solve(l2) ** 2), jnp.sum(solve(m2 - m1) ** 2)
        log_ratio = jnp.sum(jnp.log(jnp.diagonal(l1))) - jnp.sum(jnp.log(jnp.diagonal(l2)))
        return (0.5 * (trace + mean - dim) + log_ratio) / dim


def moments(functions: Functions) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance: those that are known, else those of the draws."""
    values = functions.values
    mean = values.mean(0) if functions.mean is None else functions.mean
    if functions.cov is not None:
        return mean, functions.cov
    centred = values - mean
    # About a known mean all draws are free.
    return mean, centred.T @ centred / (len(values) - (functions.mean is None))
