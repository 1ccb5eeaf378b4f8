"""Whole trajectories, drawn backward through the clouds of a filter. A trajectory is the values of its latent
sites by name, those of the steps in the order of the run.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward import Tally
from ppl_ext.smoothing.online import SmootherState, scanned
from ppl_ext.smoothing.space import Clouds, Space
from ppl_ext.state_space import filtering
from ppl_ext.state_space.extinction import lost
from ppl_ext.state_space.resampling import invert, weights_of


class Kept(NamedTuple):
    """A run of particles with everything kept: its end, the initial sites (N, ...) and what their weights are
    like, and of the steps the clouds and effective sample sizes."""

    state: SmootherState
    initial: dict[str, jax.Array]
    first: filtering.Info
    clouds: Clouds
    ess: jax.Array


def kept(rng_key: jax.Array, space: Space, through: dict[str, jax.Array] | None = None) -> Kept:
    """:param through: a trajectory that the first particle follows."""

    def keep(old: SmootherState, new: SmootherState, info: filtering.Info) -> tuple[Clouds, jax.Array]:
        before, after = old.filter, new.filter.particles
        return Clouds(before.particles.carry, before.log_weights, after.sites, info.ancestors), info.ess

    state, initial, first, (clouds, ess) = scanned(rng_key, space, keep, through)
    return Kept(state, initial, first, clouds, ess)


def drawn(rng_key: jax.Array, space: Space, run: Kept, num: int) -> tuple[dict[str, Any], jax.Array, Tally]:
    """``num`` trajectories of leaves (num, ...), those of the steps (num, T, ...); the particles (T + 1, num)
    that they go through; and the tally of the draws. Nothing but NaN where no particle survived."""
    last_key, back_key = jax.random.split(rng_key)
    weights = weights_of(run.state.filter.log_weights)
    uniforms = jax.vmap(jax.random.uniform)(jax.random.split(last_key, num))

    def back(index, at):
        key, clouds, x = at
        found, tally = space.backward.draw(key, space.pairs(clouds, x), index, 1)
        before = found.reshape(index.shape).astype(index.dtype)
        return before, (index, jax.tree.map(lambda leaf: leaf[index], clouds.sites), tally)

    keys = jax.random.split(back_key, space.lowered.num_steps)
    first, (indices, steps, tallies) = jax.lax.scan(
        back, invert(weights, uniforms), (keys, run.clouds, space.lowered.xs), reverse=True
    )
    start = jax.tree.map(lambda leaf: leaf[first], run.initial)
    path = start | jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), steps)
    tally = Tally(tallies.fallbacks.sum(), tallies.excess.max(initial=-jnp.inf))
    return lost(path, run.state.filter.died >= 0), jnp.concatenate([first[None], indices]), tally


def trajectories(rng_key: jax.Array, filter_key: jax.Array, space: Space, num: int) -> tuple[dict, Tally]:
    """``num`` trajectories through the particles of the filter whose key is ``filter_key``, as :func:`drawn`,
    and the tally."""
    path, _, tally = drawn(rng_key, space, kept(filter_key, space._replace(functional=None)), num)
    return path, tally
