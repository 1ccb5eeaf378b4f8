r"""Normal arrays with a variance of one factor an axis, seen through one matrix an axis and with noise.

With :math:`\gamma = \gamma^1 \otimes \dots \otimes \gamma^K` and noise of variance :math:`\sigma^2`: what the
data say, without a matrix of the array's size squared.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Eigen(NamedTuple):
    r"""Eigenvectors and eigenvalues of each :math:`H_k \Gamma_k H_k^\top = U \Lambda U^\top`: ``seen`` is
    :math:`U^\top H_k`, ``vectors`` :math:`U^\top`, ``values`` :math:`\Lambda`.
    """

    seen: tuple[jax.Array, ...]
    vectors: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def outer(factors: Sequence[jax.Array]) -> jax.Array:
    """The product of vectors, one an axis.

    >>> outer([jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])]).tolist()
    [[3.0, 4.0], [6.0, 8.0]]
    """
    return reduce(jnp.multiply.outer, factors)


def along(x: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    """Each matrix times its axis of x.

    >>> along(jnp.eye(2), [jnp.ones((1, 2)), jnp.eye(2)]).tolist()
    [[1.0, 1.0]]
    """
    for k, matrix in enumerate(matrices):
        x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, k)), 0, k)
    return x


def eigen(factors: Sequence[jax.Array], matrices: Sequence[jax.Array]) -> Eigen:
    seen, vectors, values = [], [], []
    for gamma, h in zip(factors, matrices, strict=True):
        value, vector = jnp.linalg.eigh((h * gamma) @ h.T)
        seen.append(vector.T @ h)
        vectors.append(vector.T)
        values.append(jnp.maximum(value, 0.0))
    return Eigen(tuple(seen), tuple(vectors), tuple(values))


def back(y: jax.Array, sigma: jax.Array, of: Eigen) -> jax.Array:
    r""":math:`H^\top C^{-1} y`, of the array's shape, with C the covariance of the data."""
    inner = along(y, of.vectors) / (outer(of.values) + sigma)
    return along(inner, [a.T for a in of.seen])


def variances(gamma: jax.Array, sigma: jax.Array, of: Eigen) -> jax.Array:
    r"""Given the data: :math:`\gamma - \gamma^2 \operatorname{diag}(H^\top C^{-1} H)`."""
    known = along(1.0 / (outer(of.values) + sigma), [(a**2).T for a in of.seen])
    return jnp.maximum(gamma - gamma**2 * known, 0.0)


def evidence(y: jax.Array, sigma: jax.Array, of: Eigen) -> jax.Array:
    """The log density of the data, in nats."""
    spread = outer(of.values) + sigma
    z = along(y, of.vectors)
    return -0.5 * jnp.sum(z**2 / spread + jnp.log(2.0 * jnp.pi * spread))
