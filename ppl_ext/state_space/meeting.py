r"""A state of which a law is known, and an observation: what either says once they meet.

With the law :math:`\mathcal{N}(b, C)` and the observation :math:`\exp(\eta^\top x - \tfrac12 x^\top J x)`
these are

.. math:: D = (I + C J)^{-1}, \quad P = D C, \quad L = J D, \quad m = D (b + C \eta), \quad
          v = \eta - J m

P and m are the covariance and mean of the state, L and v what is known of b: where b is moved by δ the log
evidence is :math:`v^\top \delta - \tfrac12 \delta^\top L \delta` and a constant, and m moves by D δ.

The inverse is never taken: C goes with a factor, J with rows as :mod:`~ppl_ext.state_space.kalman` has them,
and the five come of rotations of these, so that small noise costs no digits. No derivative of a factor is
taken, since those of the five are made of the five.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.state_space.kalman import Sharp
from ppl_ext.state_space.small_matrices import added, cholesky, product, solve_lower


class Meeting(NamedTuple):
    """D, P, L, m and v, as above."""

    shrunk: jax.Array
    covariance: jax.Array
    precision: jax.Array
    mean: jax.Array
    score: jax.Array


class Roots(NamedTuple):
    """A factor of P, and L and v as ``rows`` and ``data``, with what of the observation is none."""

    factor: jax.Array
    rows: jax.Array
    data: jax.Array
    tilt: jax.Array
    rest: jax.Array


@jax.custom_jvp
def meeting(offset, covariance, precision, slope, root, sharp: Sharp) -> tuple[Meeting, Roots]:
    """The five and their roots, from b, C, J and η, a factor of C, and J and η in numbers that do not cancel.

    Here 3 is seen with noise 1/2 of a state that is 1 with noise 1:

    >>> sharp = Sharp(jnp.array([[2.0]]), jnp.array([6.0]), jnp.zeros(1), jnp.zeros((1, 1)))
    >>> met, _ = meeting(*map(jnp.asarray, ([1.0], [[1.0]], [[4.0]], [12.0], [[1.0]])), sharp)
    >>> [round(float(x.sum()), 3) for x in met]
    [0.2, 0.2, 0.8, 2.6, 1.6]
    """
    eye = jnp.eye(len(offset), dtype=offset.dtype)
    # what is no data first: rest and tilt, zero as a rule
    inner = cholesky(eye + product(root.T, sharp.rest, root))
    root = solve_lower(inner, root.T).T
    so_far = product(root, root.T)
    shrunk, tilt = eye - product(so_far, sharp.rest), sharp.tilt - product(sharp.rest, offset)
    mean, rest = offset + product(so_far, tilt), product(sharp.rest, shrunk)
    wide = jnp.concatenate(
        [product(sharp.rows, shrunk), (sharp.data - product(sharp.rows, mean))[:, None]], 1
    )
    nothing = jnp.zeros((len(eye), wide.shape[1]), wide.dtype)
    inner, after, left = added(eye, nothing, product(sharp.rows, root), wide)
    root = solve_lower(inner, root.T).T
    rows, data = left[:, :-1], left[:, -1]
    tilt = product(shrunk.T, tilt)
    met = Meeting(
        shrunk - product(root, after[:, :-1]),
        product(root, root.T),
        rest + product(rows.T, rows),
        mean + product(root, after[:, -1]),
        tilt + product(rows.T, data),
    )
    given = offset.sum() + covariance.sum() + precision.sum() + slope.sum()
    return jax.tree.map(lambda x: _by_the_rule_alone(x, given), met), Roots(root, rows, data, tilt, rest)


def _by_the_rule_alone(x: jax.Array, given: jax.Array) -> jax.Array:
    """x, with NaN for derivatives by what is given: those of the roots would not be all.

    JAX forgets the rule below in second derivatives that go backwards through a loop.
    """
    return x + jnp.sqrt(0.0 * given)  # which is zero, and has an infinite slope there


@meeting.defjvp
def _slopes_of_meeting(primals, slopes):
    d_b, d_c, d_j, d_eta, *_ = slopes
    met, roots = meeting(*primals)
    d, p, told, m, v = met
    of_law, of_seen = d_b + product(d_c, v), d_eta - product(d_j, m)
    return (met, roots), (
        Meeting(
            -product(d, d_c, told) - product(p, d_j, d),
            product(d, d_c, d.T) - product(p, d_j, p),
            product(d.T, d_j, d) - product(told, d_c, told),
            product(d, of_law) + product(p, of_seen),
            product(d.T, of_seen) - product(told, of_law),
        ),
        jax.tree.map(jnp.zeros_like, roots),
    )
