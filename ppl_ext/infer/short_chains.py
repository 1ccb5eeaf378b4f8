"""Short chains from draws: what is the posterior stays where it is, and what is not moves towards it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.handlers import seed, substitute, trace

from ppl_ext.algorithms.absent_sites import draw_absent
from ppl_ext.algorithms.hidden_sites import Inner, unused_run
from ppl_ext.algorithms.target import ImposeSome, RecordInside, Target
from ppl_ext.algorithms.tempered.unconstrained import Unconstrained
from ppl_ext.diagnostics.sites import FullPlates, given
from ppl_ext.diagnostics.verdicts.stays import STEPS, Ends, most_evidence, reason_of_ends
from ppl_ext.errors import ModelError
from ppl_ext.program import Program
from ppl_ext.runtime.constants import compiled
from ppl_ext.runtime.outside import reading
from ppl_ext.runtime.random_choices import log_uniforms
from ppl_ext.runtime.verdict import Reason

NUM_CHAINS, MOST_LEAPS, ACCEPTED = 1024, 16, 0.8
"""Chains in all, leaps of a step at most (each takes one to so many), and the acceptance aimed at."""


def reasons_of_particles_moves(result: Any) -> list[Reason]:
    """What short chains from the particles of an :class:`~ppl_ext.infer.SMCResult` say of these."""
    every = max(1, result.num_particles // NUM_CHAINS)
    values = {n: np.asarray(x)[None] for n, x in result.values.items()}
    first = {n: x[:, ::every][:, :NUM_CHAINS] for n, x in values.items()}
    params = {n: np.asarray(x)[None] for n, x in result.params.items()}
    ends = moved_on(jax.random.key(0), result.model, first, result.args, result.kwargs, params)
    reason = None if ends is None else reason_of_ends(values, ends)
    return [] if reason is None else [reason]


def moved_on(
    rng_key: jax.Array,
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
) -> Ends | None:
    r"""Hamiltonian Monte Carlo from each of the draws, ``STEPS`` steps of a random number of leaps.

    Every draw begins a chain of its own, so that what they are at the end is as independent as they were. The
    mass is that of the draws' own spreads; the step size comes to ``ACCEPTED`` in the first half, from all
    chains together, and stays. Where a restart has impossible draws, they stay where they are.

    :param values: by site (chain, draw, ...), constrained.
    :param params: of model, leaves (chain, ...).
    """
    ended: list[dict[str, np.ndarray]] = []
    most: list[float] = []
    with reading(model) as outside:
        for c in range(len(next(iter(values.values())))):
            here, of_model = (
                jax.tree.map(lambda x, c=c: jnp.asarray(x[c]), dict(x)) for x in (values, params)
            )
            key = random.fold_in(rng_key, c)
            try:
                found = _moving(outside, model, args, kwargs, key, here, of_model)
            except (ModelError, NotImplementedError):
                return None
            at_end, log_p, positions = jax.device_get(found)
            ended.append(at_end)
            most.append(most_evidence(log_p.astype(np.float64), positions.astype(np.float64)))
    begun = {n: np.asarray(values[n]) for n in ended[0] if n in values}
    return Ends(begun, {n: np.stack([x[n] for x in ended]) for n in begun}, np.array(most))


def _run(outside, model, args, kwargs, rng_key, values, params):
    """The values (draw, step, ...) at the last steps of chains from values (draw, ...), by site, those of
    deterministic ones among them; and log densities and positions without bounds at the very last.
    """
    whole = substitute(partial(FullPlates.around, model, args, kwargs), data=params)
    target = _target(Program(whole), jax.tree.map(lambda x: x[0], values))
    draw_absent(target)
    space = Unconstrained("verdict", target, from_prior=False)
    names = space.free.continuous
    made = [n for n, s in target.sites.items() if s["type"] == "deterministic" and n in values]
    begun = jax.vmap(lambda x: space.position({n: x[n] for n in names}))({n: values[n] for n in names})

    def log_density(u):
        log_p, log_det = space.joint(u)
        return log_p + log_det

    def at(u):
        found = space.values(u)
        with trace() as record:
            seed(given(whole, found), random.key(0))()
        return found | {n: record[n]["value"] for n in made}

    places = hmc(rng_key, log_density, begun)
    return jax.vmap(jax.vmap(at))(jnp.swapaxes(places, 0, 1)), jax.vmap(log_density)(places[-1]), places[-1]


_moving = compiled(_run, 2, static_argnums=(1,))


def _target(program: Program, values: Mapping[str, jax.Array]) -> Target:
    pilot = Inner("verdict", unused_run(), {}, frozenset(), True)
    with pilot, (record := RecordInside()), ImposeSome(dict(values), set()):
        program()
    free = tuple(n for n, s in record.sites.items() if s["type"] == "sample" and not s["is_observed"])
    return Target(program, {}, free, pilot, record.sites)


def hmc(rng_key: jax.Array, log_density: Callable, begun: jax.Array) -> jax.Array:
    """Positions (step, draw, D) in the last fifth of ``STEPS`` steps of Hamiltonian Monte Carlo from (draw,
    D).

    >>> import jax, jax.numpy as jnp
    >>> begun = 0.3 * jax.random.normal(jax.random.key(0), (500, 2))  # too narrow
    >>> ends = hmc(jax.random.key(1), lambda u: -0.5 * (u**2).sum(), begun)
    >>> ends.shape, bool(abs(ends.std() - 1.0) < 0.05)
    ((10, 500, 2), True)
    """
    scale = jnp.maximum(begun.std(0), 1e-6)
    value_and_grad = jax.vmap(jax.value_and_grad(lambda x: log_density(x * scale)))

    def step(carry, inputs):
        at, value, grad, log_size = carry
        key, adapting = inputs
        for_momentum, for_leaps, for_choice = random.split(key, 3)
        leaps = random.randint(for_leaps, (), 1, MOST_LEAPS + 1)
        momentum = random.normal(for_momentum, at.shape)
        size = jnp.exp(log_size)

        def leap(_, carry):
            x, p, _, g = carry
            p = p + 0.5 * size * g
            x = x + size * p
            v, g = value_and_grad(x)
            return x, p + 0.5 * size * g, v, g

        x, p, v, g = lax.fori_loop(0, leaps, leap, (at, momentum, value, grad))
        gain = v - value - 0.5 * (p**2).sum(-1) + 0.5 * (momentum**2).sum(-1)
        gain = jnp.where(
            jnp.isfinite(gain) & jnp.isfinite(x).all(-1) & jnp.isfinite(g).all(-1), gain, -jnp.inf
        )
        accepted = jnp.exp(jnp.minimum(gain, 0.0))
        take = log_uniforms(for_choice, gain.shape) < jnp.minimum(gain, 0.0)
        at, grad = (jnp.where(take[:, None], new, old) for new, old in ((x, at), (g, grad)))
        log_size = log_size + adapting * (accepted.mean() - ACCEPTED)
        return (at, jnp.where(take, v, value), grad, log_size), at

    first = begun / scale
    value, grad = value_and_grad(first)
    adapting = jnp.where(jnp.arange(STEPS) < STEPS // 2, 1.0, 0.0)
    start = (first, value, grad, jnp.log(0.5 * first.shape[-1] ** -0.25))
    _, places = lax.scan(step, start, (random.split(rng_key, STEPS), adapting))
    return places[-(STEPS // 5) :] * scale
