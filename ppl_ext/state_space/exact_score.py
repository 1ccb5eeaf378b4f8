r"""The evidence of a linear-Gaussian series with its derivatives by the disturbance smoother.

JAX would go back through each step's update. How the evidence changes with the law of a state that is coming,
:math:`\mathcal{N}(m, P)`, is a vector and a matrix instead, which a short run backwards carries:

.. math:: \frac{\partial \log p}{\partial m} = r, \qquad
          \frac{\partial \log p}{\partial P} = \tfrac12 (r r^\top - N)

.. math:: r = u + K^\top r^+, \quad N = W + K^\top N^+ K, \qquad
          u = P^{-1} (m^+ - m), \quad K = I - P^+ A, \quad W = P^{-1} (P - P^+) P^{-1}

for an update by observations of precision A, with r⁺ and N⁺ those of the law after it. A transition
:math:`x' = F x + c` with noise Q takes them to :math:`F^\top r, F^\top N F`. They are numbers of the size of
the data's surprise, also where noise is so small that precisions are not to be had. Where observations are
of the state before a step too, the same holds of both states together. Source: Koopman and Shephard 1992,
"Exact score for time series models in state space form".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ppl_ext.state_space.kalman import Law, Normal, Seen, after_step, step
from ppl_ext.state_space.many_solves import mapped
from ppl_ext.state_space.small_matrices import product, solve_root


@jax.custom_jvp
def later_evidences(first: Normal, laws: Law, seen: Seen) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The steps after a first one, in order of time: log evidences but for the observations' own log
    densities, the states at which these are to be taken, and zero.

    The zero has the derivatives of the sum of the evidences; the others have none, so that the observations'
    densities are to be taken at places that are held fixed.

    :param laws: of each step, stacked, and what is ``seen`` at each.
    """
    return _run(first, laws, seen)[0]


def _run(first: Normal, laws: Law, seen: Seen):
    of_both = seen.slope.shape[1] > first.mean.shape[0]

    def forth(law, given):
        new, rest, place = step(law, *given)
        return new, (rest, new, place if of_both else None)

    _, (rests, after, places) = lax.scan(forth, first, (laws, seen))
    before = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more])[: len(more)], first, after)
    if not of_both:
        places = jnp.concatenate([before.mean, after.mean], 1)
    fixed = lax.stop_gradient(places)
    # A first derivative's values have derivatives of their own, when there is a second one.
    whole = rests + jax.vmap(_said)(places, seen) - jax.vmap(_said)(fixed, seen)
    none = (whole - lax.stop_gradient(whole)).sum()
    return (lax.stop_gradient(rests), fixed, none), before, after


def _said(place: jax.Array, seen: Seen) -> jax.Array:
    state = place[len(place) - len(seen.slope) :]
    return seen.slope @ state - 0.5 * state @ product(seen.precision, state)


@later_evidences.defjvp
def _with_slopes(primals, slopes):
    first, laws, seen = primals
    found, before, after = _run(*primals)
    updates = mapped(_update, 2 * after.mean.shape[1])(before, laws, seen, after)

    def back(given, update):
        pull, lost = given
        pull = update.pull + product(update.keep.T, pull)
        lost = update.lost + product(update.keep.T, lost, update.keep)
        return (product(update.moves.T, pull), product(update.moves.T, lost, update.moves)), (
            given,
            pull,
            lost,
        )

    end = jax.tree.map(jnp.zeros_like, tuple(first))
    (pull, lost), adjoints = lax.scan(back, end, updates, reverse=True)
    d_first, d_laws, d_seen = slopes
    total = pull @ d_first.mean + 0.5 * ((jnp.outer(pull, pull) - lost) * d_first.covariance).sum()
    each = jax.vmap(_change)(before, updates, adjoints, d_laws, d_seen)
    return found, (jnp.zeros_like(found[0]), jnp.zeros_like(found[1]), total + each.sum())


class _Update(NamedTuple):
    """A step's update, of its state or of that and the one before: ``moves`` takes the one before to what is
    updated, ``keep`` that to the mean after it, of the step's own state; ``after`` is the law of all of it.
    """

    moves: jax.Array
    pull: jax.Array
    keep: jax.Array
    lost: jax.Array
    after: Normal


def _update(before: Normal, law: Law, seen: Seen, new: Normal) -> _Update:
    n = len(law.offset)
    moves, prior, factor, after = after_step(before, law, seen, new)
    rest = jnp.eye(len(prior.mean), dtype=prior.mean.dtype) - product(after.covariance, seen.precision)
    pull = solve_root(factor, after.mean - prior.mean)
    lost = solve_root(factor, solve_root(factor, prior.covariance - after.covariance).T)
    return _Update(moves, pull, rest[-n:], lost, after)


def _change(before: Normal, update: _Update, adjoints: Any, d_law: Law, d_seen: Seen) -> jax.Array:
    (pull_after, lost_after), pull, lost = adjoints
    n, curved = len(pull_after), jnp.outer(pull, pull) - lost
    of_slope = jnp.outer(pull, before.mean) + product(curved, update.moves, before.covariance)
    law = (of_slope[-n:] * d_law.slope).sum() + pull[-n:] @ d_law.offset + d_law.excess
    law = law + 0.5 * (curved[-n:, -n:] * d_law.covariance).sum()
    # What is seen counts at the smoothed state, but for what its density counts at the place held fixed.
    mean, covariance = update.after
    place, shared = lax.stop_gradient(mean), covariance[:, -n:]
    away = product(shared, pull_after) + mean - place
    spread = covariance - product(shared, lost_after, shared.T) + jnp.outer(away, away)
    seen = (d_seen.slope - product(d_seen.precision, place)) @ away
    return law + seen - 0.5 * (spread * d_seen.precision).sum()
