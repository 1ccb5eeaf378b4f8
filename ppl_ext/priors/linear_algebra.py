"""Linear algebra that targets and distances share."""

import jax
import jax.numpy as jnp
from jax import lax


def cholesky(matrix: jax.Array, most: float = 1e-2) -> jax.Array:
    r"""Lower Cholesky factor of :math:`A + \epsilon\, \bar d I`, with :math:`\bar d` the mean of A's diagonal
    and the least ε that will do.

    ε starts at the size of A's rounding errors and grows tenfold until the factor is finite, up to ``most``;
    what cannot be factored then is NaN. Covariances of smooth functions at close or equal inputs are singular
    to single precision, which is why ε is relative and searched.

    >>> float(cholesky(jnp.ones((3, 3)))[0, 0])
    1.0
    """
    size = len(matrix)
    unit = jnp.mean(jnp.diagonal(matrix)) * jnp.eye(size, dtype=matrix.dtype)
    start = jnp.asarray(size * jnp.finfo(matrix.dtype).eps / 4.0, matrix.dtype)

    def attempt(relative):
        return jnp.linalg.cholesky(matrix + relative * unit)

    def failed(state):
        relative, factor = state
        return ~jnp.isfinite(factor).all() & (relative < most)

    def again(state):
        relative = 10.0 * state[0]
        return relative, attempt(relative)

    return lax.while_loop(failed, again, (start, attempt(start)))[1]


def as_rows(inputs: jax.Array) -> jax.Array:
    """Inputs (M,) or (M, d) as rows (M, d) of real numbers: means and covariances take their type.

    >>> as_rows(jnp.arange(3)).dtype.name, as_rows(jnp.zeros((3, 2))).shape
    ('float32', (3, 2))
    """
    inputs = jnp.asarray(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact):
        inputs = inputs.astype(jnp.result_type(float))
    return inputs[:, None] if inputs.ndim == 1 else inputs
