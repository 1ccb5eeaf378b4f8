"""Cholesky factors and solves of small matrices, written out.

A call of LAPACK in every step of a loop costs more than the few operations of a matrix of two or three rows.
Larger ones go to JAX's.
"""

from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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
    return solve_upper(root.T, solve_lower(root, b))


def solve_upper(root: jax.Array, b: jax.Array) -> jax.Array:
    """``root⁻¹ b`` for an upper triangle.

    >>> solve_upper(jnp.array([[2.0, 1.0], [0.0, 2.0]]), jnp.array([5.0, 2.0])).tolist()
    [2.0, 1.0]
    """
    if not 0 < len(root) <= SMALL:
        return solve_triangular(root, b, lower=False)
    return solve_lower(root[::-1, ::-1], b[::-1])[::-1]


def _dot(x: list[Any], y: list[Any]) -> Any:
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


def added(
    root: jax.Array, z: jax.Array, rows: jax.Array, data: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The lower Cholesky factor L of ``root @ root.T + rows.T @ rows``; y = L⁻¹ (root @ z + rows.T @ data);
    and what these do not explain, ``left`` with zᵀz + dataᵀdata = yᵀy + leftᵀleft, which has at most as many
    rows as the data.

    By rotations, which form none of these sums: half the digits are lost. The data may have several columns.
    The root is a lower triangle, which may have zeros on its diagonal. Source: Bierman 1977, chapter 4.

    >>> seen = jnp.array([[3.0, 3.0]]), jnp.array([1.0])
    >>> factor, y, left = added(jnp.eye(2), jnp.zeros(2), *seen)
    >>> jnp.allclose(factor @ factor.T, jnp.array([[10.0, 9.0], [9.0, 10.0]])), jnp.allclose(factor @ y, 3.0)
    (Array(True, dtype=bool), Array(True, dtype=bool))
    >>> round(float(y @ y + left @ left), 4)
    1.0
    """
    n = len(root)
    if not 0 < n <= SMALL:
        whole = _reflected(root, z.reshape(n, -1), rows, data.reshape(len(data), -1))
        return whole if data.ndim == 2 else (whole[0], *(x[:, 0] for x in whole[1:]))
    columns = [[*(root[i, k] for i in range(k, n)), z[k]] for k in range(n)]
    left = []
    for row, seen in zip(rows, data, strict=True):
        rest = [*row, seen]
        for k, column in enumerate(columns):
            length = jnp.hypot(column[0], rest[0])
            some = jnp.where(length > 0.0, length, 1.0)
            c, s = jnp.where(length > 0.0, column[0] / some, 1.0), rest[0] / some
            columns[k] = [length, *(c * a + s * b for a, b in zip(column[1:], rest[1:], strict=True))]
            rest = [c * b - s * a for a, b in zip(column[1:], rest[1:], strict=True)]
        left.append(rest[0])
    zero = jnp.zeros((), root.dtype)
    factor = jnp.stack([jnp.stack([*[zero] * k, *column[:-1]]) for k, column in enumerate(columns)], 1)
    return factor, jnp.stack([column[-1] for column in columns]), jnp.stack(left) if left else data


def unit_given(rows: jax.Array, data: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""What ``data`` of ``rows @ e``, with noise of variance one, say of e ~ N(0, I): its mean, a factor of
    its covariance, and half the logarithm of the determinant of ``I + rows.T @ rows``.

    Row by row: with :math:`\rho_i` the row times the factor's column :math:`t_i` so far, and
    :math:`s_i = 1 + \rho_0^2 + \dots + \rho_i^2`, the new column is

    .. math:: \frac{s_{i-1} t_i - \rho_i (\rho_0 t_0 + \dots + \rho_{i-1} t_{i-1})}{\sqrt{s_{i-1} s_i}}

    and the mean moves by :math:`\sum_i \rho_i t_i` times what it leaves of the data, over the last s. Source:
    Carlson 1973, "Fast triangular formulation of the square root filter".

    >>> mean, factor, half = unit_given(jnp.array([[2.0, 1.0]]), jnp.array([3.0]))
    >>> mean.tolist(), round(float(half), 3)  # the last s is 6
    ([1.0, 0.5], 0.896)
    >>> (6.0 * factor @ factor.T).round(3).tolist()
    [[2.0, -2.0], [-2.0, 5.0]]
    """
    n = rows.shape[1]
    if not 0 < n <= SMALL:
        inner, after, _ = added(jnp.eye(n, dtype=rows.dtype), jnp.zeros(n, rows.dtype), rows, data)
        factor = solve_upper(inner.T, jnp.eye(n, dtype=rows.dtype))
        return factor @ after, factor, jnp.log(jnp.diagonal(inner)).sum()
    columns: list[list[Any]] = [[*[0.0] * i, 1.0] for i in range(n)]  # an upper triangle
    nothing: list[Any] = [0.0] * n
    mean, half = nothing, jnp.zeros((), rows.dtype)
    for row, seen in zip(rows, data, strict=True):
        entries, before, so_far = list(row), jnp.ones((), rows.dtype), nothing
        left = seen - _dot(entries, mean)
        for i, column in enumerate(columns):
            rho = _dot(entries, column)
            after = before + rho * rho
            scale = lax.rsqrt(before) * lax.rsqrt(after)
            columns[i] = [scale * (before * x - rho * y) for x, y in zip(column, so_far, strict=False)]
            so_far = [y + rho * x for x, y in zip_longest(column, so_far, fillvalue=0.0)]
            before = after
        mean = [x + y * left / before for x, y in zip(mean, so_far, strict=True)]
        half = half + 0.5 * jnp.log(before)
    padded = [jnp.stack([jnp.asarray(x, rows.dtype) for x in [*c, *[0.0] * (n - len(c))]]) for c in columns]
    return jnp.stack([jnp.asarray(x, rows.dtype) for x in mean]), jnp.stack(padded, 1), half


def _reflected(root, z, rows, data):
    n = len(root)
    whole = jnp.concatenate([jnp.concatenate([rows, data], 1), jnp.concatenate([root.T, z], 1)])
    order = jnp.argsort(-jnp.abs(whole[:, :n]).max(1))  # large rows first, or the small ones would be lost
    turned, upper = jnp.linalg.qr(whole[order, :n])
    sign = jnp.where(jnp.diagonal(upper) < 0.0, -1.0, 1.0)[:, None]
    # What is left may be zero, where the derivatives of a factor with it would be none.
    left = jnp.linalg.qr(whole[order], mode="r")[n:, n:]
    return (sign * upper).T, sign * (turned.T @ whole[order, n:]), left
