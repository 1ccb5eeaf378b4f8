r"""Filtering laws of a linear-Gaussian chain at all times at once, by products of operators in a tree.

What lies between two times is one operator: the law of the state at its end given that at its beginning and
the observations between, and how likely these are,

.. math:: \mathcal{N}(x_j; A x_i + b, C), \qquad \exp(\eta^\top x_i - \tfrac12 x_i^\top J x_i)

and two neighbours make one, so that a tree of products has those from the beginning to every time. With
the five of :mod:`~ppl_ext.state_space.meeting` for the state where two meet, the product of an earlier
operator, 1, and a later one, 2, is

.. math:: A = A_2 D A_1, \quad b = A_2 m + b_2, \quad C = A_2 P A_2^\top + C_2, \quad
          \eta = A_1^\top v + \eta_1, \quad J = A_1^\top L A_1 + J_1

Sources: Särkkä and García-Fernández 2021, "Temporal parallelization of Bayesian smoothers"; with other square
roots Yaghoobi, Corenflos, Hassan and Särkkä 2022, "Parallel square-root statistical linear regression".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ppl_ext.state_space.kalman import Behind, Law, Normal, Seen, Sharp, root_of
from ppl_ext.state_space.many_solves import mapped
from ppl_ext.state_space.meeting import meeting
from ppl_ext.state_space.prefixes import prefixes
from ppl_ext.state_space.small_matrices import added, product


class Operator(NamedTuple):
    """From the state at one time to that at a later one; ``root`` is a lower triangle, the factor of the
    covariance, and ``seen`` is of the earlier state.
    """

    slope: jax.Array
    offset: jax.Array
    covariance: jax.Array
    root: jax.Array
    seen: Seen


def joined(first: Operator, second: Operator) -> Operator:
    """One operator for two that are neighbours, the earlier one first."""
    seen = second.seen
    met, roots = meeting(first.offset, first.covariance, seen.precision, seen.slope, first.root, _whole(seen))
    covariance = product(second.slope, met.covariance, second.slope.T) + second.covariance
    earlier, later, before = lax.stop_gradient((first.slope, second.slope, _whole(first.seen)))
    nothing = jnp.zeros_like(second.offset)
    spread = product(later, roots.factor).T
    root, *_ = added(lax.stop_gradient(second.root), nothing, spread, jnp.zeros_like(spread[:, 0]))
    rows, data, _ = added(before.rows.T, before.data, product(roots.rows, earlier), roots.data)
    tilt = before.tilt + product(earlier.T, roots.tilt)
    rest = before.rest + product(earlier.T, roots.rest, earlier)
    return Operator(
        product(second.slope, met.shrunk, first.slope),
        product(second.slope, met.mean) + second.offset,
        0.5 * (covariance + covariance.T),
        root,
        Seen(
            first.seen.precision + product(first.slope.T, met.precision, first.slope),
            first.seen.slope + product(first.slope.T, met.score),
            Sharp(rows.T, data, tilt, rest),
        ),
    )


def of_step(law: Law, seen: Seen) -> Operator:
    """The operator of one step, whose observations are of its state, or of that before it too."""
    n0, n = law.slope.shape[1], len(law.offset)
    nothing, one = jnp.zeros_like(law.covariance), jnp.eye(n, dtype=law.offset.dtype)
    slope, offset, covariance, root = law.slope, law.offset, law.covariance, root_of(law.covariance)
    if len(seen.slope) > n:  # of both states together, the first of which is known
        slope = jnp.concatenate([jnp.eye(n0, dtype=one.dtype), slope])
        offset = jnp.concatenate([jnp.zeros_like(slope[0, :n0]), offset])
        covariance, root = (
            jnp.zeros((n0 + n, n0 + n), one.dtype).at[n0:, n0:].set(x) for x in (covariance, root)
        )
        one = jnp.concatenate([jnp.zeros((n, n0), one.dtype), one], 1)
    moved = Operator(slope, offset, covariance, root, _unseen(law.slope[0]))
    seen = seen._replace(sharp=_whole(seen))
    return joined(moved, Operator(one, jnp.zeros_like(law.offset), nothing, nothing, seen))


def filtered_laws(first: Normal, steps: tuple[Law, Seen]) -> Normal:
    """The law of the state before each of the steps, from that before the first of them, given what was
    observed up to there.

    :param steps: a law and what is seen of each, stacked.
    """
    nothing = jnp.zeros_like(first.covariance)
    begun = Operator(nothing, *first, root_of(first.covariance), _unseen(first.mean))
    each = mapped(of_step, 2 * len(nothing))(*steps)
    every = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more])[: len(more)], begun, each)
    eye = jnp.eye(len(nothing), dtype=nothing.dtype)
    one = Operator(eye, jnp.zeros_like(first.mean), nothing, nothing, _unseen(first.mean))
    until = prefixes(joined, every, one, rows=2 * len(nothing))
    return Normal(until.offset, until.covariance)


def smoothed_laws(last: Normal, behind: Behind) -> Normal:
    """The law of the state after each step given all data: from the last one, and from those of the states
    before the steps given the next one, stacked.
    """

    def through(before, after):
        slope, offset, covariance = before
        spread = product(slope, after[2], slope.T)
        return product(slope, after[0]), product(slope, after[1]) + offset, spread + covariance

    given, gain, at = behind
    each = gain, given.mean - (gain @ at[..., None])[..., 0], given.covariance
    nothing = jnp.zeros_like(last.covariance)
    every = jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]])[1:], each, (nothing, *last))
    one = jnp.eye(len(nothing), dtype=nothing.dtype), jnp.zeros_like(last.mean), nothing
    return Normal(*prefixes(through, every, one, reverse=True)[1:])


def _whole(seen: Seen) -> Sharp:
    """With what is not data of it, which is nothing where all is."""
    if isinstance(seen.sharp, Sharp):
        return seen.sharp
    return Sharp(*seen.sharp, jnp.zeros_like(seen.slope), jnp.zeros_like(seen.precision))


def _unseen(state: jax.Array) -> Seen:
    nothing = jnp.zeros_like(state)
    square = jnp.zeros((len(state), len(state)), state.dtype)
    return Seen(square, nothing, Sharp(square, nothing, nothing, square))
