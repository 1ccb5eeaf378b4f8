"""Cholesky factors and solves of small matrices, written out.

A call of LAPACK in every step of a loop costs more than the few operations of a matrix of two or three rows.
Larger ones go to JAX's.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

SMALL = 3
"""Rows of a matrix whose factor is written out."""


def cholesky(x: jax.Array) -> jax.Array:
    """The lower Cholesky factor of a symmetric matrix, NaN where it is not positive definite.

    >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    n = len(x)
    if not 0 < n <= SMALL:
        return jnp.linalg.cholesky(x)
    rows: list[list[jax.Array]] = []
    for i in range(n):
        row: list[jax.Array] = []
        for j in range(i):
            row.append((x[i, j] - _dot(row, rows[j])) / rows[j][j])
        rows.append([*row, jnp.sqrt(x[i, i] - _dot(row, row))])
    zero = jnp.zeros((), x.dtype)
    return jnp.stack([jnp.stack([*row, *[zero] * (n - len(row))]) for row in rows])


def solve_lower(root: jax.Array, b: jax.Array) -> jax.Array:
    """``root⁻¹ b`` for a lower triangle.

    >>> solve_lower(jnp.array([[2.0, 0.0], [1.0, 2.0]]), jnp.array([2.0, 5.0])).tolist()
    [1.0, 2.0]
    """
    n = len(root)
    if not 0 < n <= SMALL:
        return solve_triangular(root, b, lower=True)
    found: list[jax.Array] = []
    for i in range(n):
        found.append((b[i] - _dot([root[i, j] for j in range(i)], found)) / root[i, i])
    return jnp.stack(found)


def solve_root(root: jax.Array, b: jax.Array) -> jax.Array:
    """``x⁻¹ b`` for the matrix x whose lower Cholesky factor is ``root``.

    >>> solve_root(jnp.array([[2.0, 0.0], [1.0, 2.0]]), jnp.array([8.0, 12.0])).tolist()
    [1.0, 2.0]
    """
    if not 0 < len(root) <= SMALL:
        return cho_solve((root, True), b)
    half = solve_lower(root, b)
    return solve_lower(root.T[::-1, ::-1], half[::-1])[::-1]


def _dot(x: list[jax.Array], y: list[jax.Array]) -> jax.Array | float:
    return sum((a * b for a, b in zip(x, y, strict=False)), 0.0)


def product(*factors: jax.Array) -> jax.Array:
    """The product of matrices, the last of which may be a vector.

    >>> product(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1.0, 1.0])).tolist()
    [3.0, 7.0]
    """
    found = factors[-1]
    for x in factors[-2::-1]:
        inner = x.shape[1]
        if not 0 < inner <= SMALL:
            found = x @ found
            continue
        columns = [x[:, k, None] if found.ndim == 2 else x[:, k] for k in range(inner)]
        terms = [column * found[k] for k, column in enumerate(columns)]
        found = sum(terms[1:], terms[0])
    return found
