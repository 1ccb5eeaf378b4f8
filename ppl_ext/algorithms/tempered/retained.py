r"""A tempered run through a given particle, by which its density is estimated without bias.

The moves :math:`K_t` are reversible, so that from a draw :math:`x_T` of the target the way back

.. math:: x_{t-1} \sim K_t(x_t, \cdot), \qquad t = T, \dots, 1

is, read forward, a path as the run makes them and is weighed for (Neal 2001; Del Moral, Doucet, Jasra 2006,
section 3.3.2.3). A run in which one particle follows it, and the others are drawn as ever, is the conditional
one of Andrieu, Doucet and Holenstein (2010, section 4.1): :math:`\mathbb{E}[1 / \hat Z] = 1 / Z`. Waste-free,
the particles of the path are chains: the given one's place in its own is uniform, and the chain goes on from
there in both directions.
"""

import jax
import jax.numpy as jnp
from jax import lax, random

from ppl_ext.algorithms.tempered.points import Path, Points, points_at
from ppl_ext.algorithms.tempered.stages import Plan, Rules, State, first_state, is_under_way, planned_stage


def run_through(key: jax.Array, path: Path, rules: Rules, plan: Plan, position: jax.Array) -> State:
    """A run of a plan through a position (D,) at its end; ``rules.scheme`` draws independent ancestors."""
    back_key, draw_key, key = random.split(key, 3)
    last, broken = points_at(path, position[None])
    first, chains = _way_back(back_key, path, rules, plan, last)
    fresh = jax.vmap(path.draw)(random.split(draw_key, rules.num_particles - 1))
    others, num_nan = points_at(path, fresh)
    points = jax.tree.map(lambda x, more: jnp.concatenate([x, more]), first, others)

    def stage(state: State) -> State:
        kept = jax.tree.map(lambda x: x[state.stage], chains)
        return planned_stage(path, rules, state, plan, kept)

    begun = first_state(key, path, rules, points, num_nan + broken)
    return lax.while_loop(lambda state: is_under_way(state, rules), stage, begun)


def _way_back(key, path: Path, rules: Rules, plan: Plan, last: Points) -> tuple[Points, Points]:
    """The path's first point (1, ...), and what is kept of it after each stage, (S, ...): its point, or
    waste-free its chain.
    """
    length = rules.moves.num_steps + 1 if rules.waste_free else 1
    room = jax.tree.map(lambda x: jnp.zeros((rules.max_stages, length, *x.shape[1:]), x.dtype), last)

    def back(i, carry):
        at, kept = carry
        stage = plan.num_stages - 1 - i
        fitted = jax.tree.map(lambda x: x[stage], plan.fits)
        tau, stage_key = plan.temperatures[stage], random.fold_in(key, stage)
        if rules.waste_free:
            before, chain = _chain_around(stage_key, path, rules, tau, fitted, at)
        else:
            before, _ = rules.moves.run(stage_key, path, tau, at, fitted, False)
            chain = at
        return before, jax.tree.map(lambda all, x: all.at[stage].set(x), kept, chain)

    return lax.fori_loop(0, plan.num_stages, back, (last, room))


def _chain_around(key, path: Path, rules: Rules, tau, fitted, at: Points) -> tuple[Points, Points]:
    """A chain in which the point's place is uniform: its first point (1, ...), and all of it (P, ...)."""
    place_key, forth_key, back_key = random.split(key, 3)
    length = rules.moves.num_steps + 1
    place = random.randint(place_key, (), 0, length)
    forth, back = (
        jax.tree.map(
            lambda x, more: jnp.concatenate([x, more[:, 0]]),
            at,
            rules.moves.run(one, path, tau, at, fitted, True)[0],
        )
        for one in (forth_key, back_key)
    )
    index = jnp.arange(length) - place

    def joined(forth, back):
        is_after = (index >= 0).reshape(-1, *(1,) * (forth.ndim - 1))
        return jnp.where(is_after, forth[jnp.maximum(index, 0)], back[jnp.maximum(-index, 0)])

    chain = jax.tree.map(joined, forth, back)
    return jax.tree.map(lambda x: x[:1], chain), chain
