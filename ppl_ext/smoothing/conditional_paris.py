r"""Conditional PaRIS: particles with one of them frozen on a path, estimates from all, and a new path.

If the frozen path is a draw from the smoothing law, then the estimates are unbiased and the new path is again
such a draw, for any number of particles from 2 on (Cardoso, Janati El Idrissi, Le Corff, Moulines, Olsson
2023, theorem 1 and algorithm 2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.densities.log_density import log_mean_exp
from ppl_ext.smoothing.additive_statistic import advance, centre, effective, estimate, start
from ppl_ext.smoothing.backward import BackwardKernel, Tally
from ppl_ext.smoothing.backward.kernel import invert, known
from ppl_ext.smoothing.space import Functional, Particles, Space, first_values, pairs_of, terms
from ppl_ext.state_space.extinction import lost
from ppl_ext.state_space.resampling import any_left, weights_of


class ParticlePath(NamedTuple):
    """One trajectory: the state before the first step, and those of the steps, leaves (T, ...)."""

    initial: Particles
    steps: Particles


class Sweep(NamedTuple):
    """What one conditional sweep returns.

    :param path: the new trajectory.
    :param estimates: of the functionals, leaves (...); None without functionals.
    :param renewed: (T + 1,) whether the new path left the old one at that time.
    :param log_evidence: log of the estimated evidence; under a frozen path it is biased.
    :param ess: (T + 1,) effective sample size of the weights: 0 where no lane survives, not the frozen one
        either. What comes after it, the path and the estimates are then NaN.
    :param tally: of the backward draws.
    """

    path: ParticlePath
    estimates: Any
    renewed: jax.Array
    log_evidence: jax.Array
    ess: jax.Array
    tally: Tally


def conditional_paris(
    rng_key: jax.Array,
    space: Space,
    inputs: Any,
    path: ParticlePath,
    num_particles: int,
    kernel: BackwardKernel,
    num_draws: int = 2,
    functional: Functional | None = None,
) -> Sweep:
    """One sweep given ``path``: lane 0 runs along it, the other lanes are resampled multinomially from all
    lanes, and every lane draws backward, the frozen one as well.

    :param inputs: leaves (T, ...).
    :param num_particles: N, at least 2.
    """
    first_key, scan_key, last_key, back_key = jax.random.split(rng_key, 4)
    first = _freeze(space.initial(first_key, num_particles), path.initial)
    log_weights = known(space.weigh_initial(first))
    statistic = start(first_values(functional, space, first, inputs))
    num_steps = len(jax.tree.leaves(path.steps)[0])

    def forward(state, at):
        carry, log_weights, statistic, alive = state
        rng_key, given, frozen = at
        choice_key, move_key, draw_key = jax.random.split(rng_key, 3)
        ancestors = others(choice_key, log_weights)
        moved_from = _at(carry, ancestors)
        particles = _freeze(space.move(move_key, moved_from, given), frozen)
        new_log_weights = known(space.weigh(moved_from, particles, given))
        tally = nothing = Tally(jnp.zeros((), jnp.int32), jnp.full((), -jnp.inf))
        if functional is not None:
            pairs = pairs_of(space, kernel, carry, particles, given, log_weights, ancestors)
            statistic, tally = advance(
                draw_key, statistic, kernel, pairs, terms(functional.step, given, carry, particles), num_draws
            )
            tally = Tally(tally.fallbacks.astype(nothing.fallbacks.dtype), tally.excess)
        ran = carry, particles, log_weights, ancestors, tally, new_log_weights, alive
        statistic = centre(statistic, jnp.where(alive, new_log_weights, jnp.nan))
        return (particles.carry, new_log_weights, statistic, alive & any_left(new_log_weights)), ran

    keys = jax.random.split(scan_key, num_steps)
    begun = first.carry, log_weights, centre(statistic, log_weights), any_left(log_weights)
    state, (carries, clouds, before, ancestors, tallies, after, survived) = jax.lax.scan(
        forward, begun, (keys, inputs, path.steps)
    )
    all_log_weights = jnp.concatenate([log_weights[None], after])
    _, log_weights, statistic, alive = state

    last = choose(last_key, log_weights)

    def backward(index, at):
        rng_key, carry, particles, given, log_weights, ancestors = at
        pairs = pairs_of(space, kernel, carry, particles, given, log_weights, ancestors)
        drawn, tally = kernel.draw(rng_key, pairs, index[None], 1)
        return drawn[0, 0].astype(index.dtype), (index, tally.excess)

    keys = jax.random.split(back_key, num_steps)
    index, (indices, excess) = jax.lax.scan(
        backward, last, (keys, carries, clouds, inputs, before, ancestors), reverse=True
    )
    steps = jax.tree.map(lambda x: jax.vmap(lambda cloud, i: cloud[i])(x, indices), clouds)
    ess = jax.vmap(effective)(all_log_weights)
    return Sweep(
        path=lost(ParticlePath(_at(first, index), steps), ~alive),
        estimates=None if functional is None else estimate(statistic, jnp.where(alive, log_weights, jnp.nan)),
        renewed=jnp.concatenate([index[None], indices]) != 0,
        log_evidence=jax.vmap(log_mean_exp)(all_log_weights).sum(),
        ess=jnp.where(jnp.concatenate([jnp.ones(1, bool), survived]), ess, jnp.nan),
        tally=Tally(
            tallies.fallbacks.sum(),
            jnp.maximum(tallies.excess.max(initial=-jnp.inf), excess.max(initial=-jnp.inf)),
        ),
    )


def others(rng_key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Ancestors (N,): lane 0 its own, the others independent draws by weight from all lanes.

    Independent, not stratified: only then is the law of the others, given the frozen one, the one that a path
    drawn from the smoothing law leaves behind.
    """
    return invert(weights_of(log_weights), jax.random.uniform(rng_key, log_weights.shape)).at[0].set(0)


def choose(rng_key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """One index by weight; any, where no weight is left."""
    return invert(weights_of(log_weights), jax.random.uniform(rng_key))


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _freeze(particles: Any, frozen: Any) -> Any:
    """Lane 0 as given."""
    return jax.tree.map(lambda x, one: x.at[0].set(jnp.asarray(one, x.dtype)), particles, frozen)
