"""The score of a model's parameters as an additive functional: derivatives of a step's densities at given
states."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from ppl_ext.errors import ModelError
from ppl_ext.smoothing.space import Functional
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.tracing.jaxprs import uses

Lower = Callable[[Mapping[str, Any]], StateSpace]


def of_parameters(lower: Lower, lowered: StateSpace) -> Functional:
    """The functional that :func:`~ppl_ext.smoothing.additive.score` stands for, while the model is traced.

    :param lower: makes its state-space form at other constrained parameters.
    """
    free = unconstrained(lowered)

    def at(theta):
        return lower(constrained(lowered, theta))

    refuse_moving_carries(at, lowered, free)
    moved = moving_inputs(at, lowered, free)

    def initial(particle):
        def term(theta):
            start = at(theta).initial(particle.sites)
            return start.log_initial + start.log_emission

        return jax.grad(term)(free)

    def step(inputs, carry, particle):
        def term(theta):
            step = at(theta).step(Particle(carry, {}), particle.sites, moved(inputs, theta))
            return step.log_transition + step.log_emission

        return jax.grad(term)(free)

    return Functional(initial, step)


def unconstrained(lowered: StateSpace) -> dict[str, jax.Array]:
    """The parameters on the whole real line, as NumPyro's samplers see them."""
    supports = {name: site.fn.support for name, site in lowered.parameter_sites.items()}
    if finite := [name for name, support in supports.items() if support.is_discrete]:
        raise ModelError(
            f"Parameter '{finite[0]}' is finite, so it has no gradient. Sum it out, or give it as an "
            "argument of the model."
        )
    return {name: biject_to(supports[name]).inv(jnp.asarray(x)) for name, x in lowered.parameters.items()}


def constrained(lowered: StateSpace, theta: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Back from the real line."""
    return {name: biject_to(lowered.parameter_sites[name].fn.support)(x) for name, x in theta.items()}


def moving_inputs(at: Lower, lowered: StateSpace, free: Mapping[str, jax.Array]) -> Callable[[Any, Any], Any]:
    """The inputs of a step as a function of them and the parameters, with the right value and derivative at
    ``free``: what a model computes before its scan, such as a regression's mean, may be made of parameters.

    Its derivatives are taken once for the whole series.
    """

    def series(theta):
        return jax.tree.leaves(at(theta).xs)

    traced, out = jax.make_jaxpr(series, return_shape=True)(dict(free))
    real = [i for i, x in enumerate(out) if jnp.issubdtype(x.dtype, jnp.floating) and lowered.num_steps]
    moving = [i for i in real if any(uses(traced, [k == i for k in range(len(out))]))]
    slopes = jax.jacfwd(lambda theta: [series(theta)[i] for i in moving])(dict(free)) if moving else []

    def moved(inputs, theta):
        leaves, tree = jax.tree.flatten(inputs)
        last = lowered.num_steps - 1
        number = last - inputs.number if lowered.reverse else inputs.number
        for i, slope in zip(moving, slopes, strict=True):
            for name, x in slope.items():
                # a stream's one input is that of its time, whatever the number of this
                row, away = x[jnp.clip(number, 0, last)], theta[name] - free[name]
                leaves[i] = leaves[i] + jnp.tensordot(row, away, away.ndim)
        return jax.tree.unflatten(tree, leaves)

    return moved


def refuse_moving_carries(at: Lower, lowered: StateSpace, free: Mapping[str, jax.Array]) -> None:
    """Whether the sites of a step, whatever the parameters, say which state it leads to."""
    values = {n: jnp.zeros(s.shape, s.dtype) for n, s in lowered.step_sites.items()}
    first = {n: jnp.zeros(s.shape, s.dtype) for n, s in lowered.initial_sites.items()}

    def carries(theta, first, values):
        moved = at(theta)
        start = moved.placed(first)
        x = jax.tree.map(lambda a: a[0] if len(a) else jnp.zeros(a.shape[1:], a.dtype), moved.xs)
        # The carry before a step counts as given: for a Markov model it does not reach the new one.
        return start.carry, moved.moved(Particle(lowered.placed(first).carry, {}), values, x).carry

    traced, out = jax.make_jaxpr(carries, return_shape=True)(dict(free), first, values)
    used = uses(traced, [True] * len(jax.tree.leaves(out)))
    names = [name for name in sorted(free) for _ in jax.tree.leaves(free[name])]
    if moving := [name for name, is_used in zip(names, used, strict=False) if is_used]:
        raise ModelError(
            f"The state depends on parameter '{moving[0]}' beyond the sites that are sampled (a non-centred "
            "model), so the score of given states is not the score of given sites. Sample the state itself: "
            "dist.Normal(loc, scale) instead of loc + scale * noise."
        )
