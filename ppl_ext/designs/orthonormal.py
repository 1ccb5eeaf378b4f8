"""Features of candidates, checked, as an orthonormal basis of what they span."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, described


def as_features(where: str, features: Any) -> jax.Array | np.ndarray:
    """A matrix (N, m) with m at most N and finite entries, where they are known."""
    check_array(f"{where}: features", features)
    array = features if isinstance(features, jax.core.Tracer) else np.asarray(features, np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise ArgumentError(
            f"{where}: features must be a matrix (candidates, features), got {described(features)}."
        )
    num, m = array.shape
    if num < m:
        raise ArgumentError(
            f"{where}: {m} features ask for at least {m} candidates, got {num}. Give more "
            "candidates, or fewer features."
        )
    if isinstance(array, np.ndarray) and not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ArgumentError(f"{where}: features must be finite; that of row {row}, column {column} is not.")
    return array


def as_measure(where: str, measure: Any, num: int) -> jax.Array | np.ndarray:
    """The masses (N,) of candidates, of sum one; uniform without."""
    if measure is None:
        return np.full(num, 1.0 / num)
    check_array(f"{where}: measure", measure)
    array = measure if isinstance(measure, jax.core.Tracer) else np.asarray(measure, np.float64)
    if array.shape != (num,):
        raise ArgumentError(
            f"{where}: measure must have one mass for each of the {num} candidates, got {described(measure)}."
        )
    if isinstance(array, np.ndarray) and not ((array >= 0).all() and 0 < array.sum() < np.inf):
        raise ArgumentError(f"{where}: measure must be masses that are not negative, and not all zero.")
    return array / array.sum()


def orthonormal(where: str, features: Any, measure: Any) -> tuple[jax.Array, jax.Array]:
    r"""A basis (N, m) of :math:`\sqrt{\mu}` times the features, with orthonormal columns, and :math:`\mu`.

    :raises ArgumentError: if features depend linearly on each other, where they are known.

    >>> basis, measure = orthonormal("here", [[1.0], [1.0]], None)
    >>> (basis.T @ basis).round(3).tolist(), measure.tolist()
    ([[1.0]], [0.5, 0.5])
    """
    features = as_features(where, features)
    measure = as_measure(where, measure, len(features))
    known = isinstance(features, np.ndarray) and isinstance(measure, np.ndarray)
    xp: Any = np if known else jnp  # in double precision, where values are at hand
    scaled = features * xp.sqrt(measure)[:, None]
    length = xp.sqrt((scaled**2).sum(0))
    basis, triangle = xp.linalg.qr(scaled / xp.where(length > 0, length, 1.0))
    if known:
        # each column by itself is of length one, so that units play no part
        values = np.linalg.svd(triangle, compute_uv=False)
        rank = int((values > 1e-6 * values[0]).sum())
        if rank < features.shape[1]:
            raise ArgumentError(
                f"{where}: features must have full rank, and of {features.shape[1]} only {rank} are "
                "independent over the candidates that have mass. Leave out columns that others make up, or "
                "take the leading singular vectors as features."
            )
    return jnp.asarray(basis, float), jnp.asarray(measure, float)
