"""Whole trajectories: drawn backward through the clouds of a filter, or rebuilt from the values of their
sites.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward import Tally
from ppl_ext.smoothing.conditional_paris import ParticlePath, choose
from ppl_ext.smoothing.model_space import ModelSpace
from ppl_ext.smoothing.online import SmootherState, begin, step
from ppl_ext.smoothing.settings import Settings
from ppl_ext.smoothing.space import Particles, pairs_of
from ppl_ext.state_space.extinction import lost
from ppl_ext.state_space.model import Particle, StateSpace


def trajectories(rng_key, filter_key, how: Settings, params: Mapping[str, Any], space: ModelSpace, num: int):
    """``num`` trajectories, drawn backward through the particles of the filter whose key is ``filter_key``: a
    :class:`ParticlePath` of leaves (num, ...), those of the steps (num, T, ...), and the tally of the draws.
    Nothing but NaN where no particle survived."""
    state, first, _ = begin(filter_key, dict(params), how, space, None)

    def forward(state: SmootherState, x: Any):
        new, info, particles = step(how, space, None, state, x)
        return new, (state.filter.particles.carry, state.filter.log_weights, particles, info.ancestors)

    xs = space.lowered.xs
    state, clouds = jax.lax.scan(forward, state, xs)
    last_key, back_key = jax.random.split(rng_key)
    last = jax.vmap(lambda key: choose(key, state.filter.log_weights))(jax.random.split(last_key, num))

    def back(index, at):
        key, (carry, log_weights, particles, ancestors), x = at
        pairs = pairs_of(space, how.backward, carry, particles, x, log_weights, ancestors)
        drawn, tally = how.backward.draw(key, pairs, index, 1)
        return drawn.reshape(index.shape).astype(index.dtype), (
            jax.tree.map(lambda leaf: leaf[index], particles),
            tally,
        )

    keys = jax.random.split(back_key, space.lowered.num_steps)
    index, (steps, tallies) = jax.lax.scan(back, last, (keys, clouds, xs), reverse=True)
    start = jax.tree.map(lambda leaf: leaf[index], first)
    tally = Tally(tallies.fallbacks.sum(), tallies.excess.max(initial=-jnp.inf))
    path = ParticlePath(start, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), steps))
    return lost(path, state.filter.died >= 0), tally


def values_of(path: ParticlePath) -> dict[str, jax.Array]:
    """The latent sites of a trajectory, those of the scan stacked in the order of the run."""
    return {**path.initial.sites, **path.steps.sites}


def path_of(lowered: StateSpace, values: Mapping[str, jax.Array]) -> ParticlePath:
    """The trajectory whose latent sites have these values, in the order of the run: its states follow from
    them and the parameters.
    """
    initial = {name: values[name] for name in lowered.initial_sites}
    sites = {name: values[name] for name in lowered.step_sites}
    start = lowered.initial(initial).particle.carry

    def body(carry, at):
        values, x = at
        carry = lowered.step(Particle(carry, {}), values, x).particle.carry
        return carry, carry

    _, carries = jax.lax.scan(body, start, (sites, lowered.xs))
    return ParticlePath(Particles(start, initial), Particles(carries, sites))
