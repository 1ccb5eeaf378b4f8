"""Chains of finite states whose steps read more than one state back: chains of the first order over the last
few states together.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.distributions import elements
from ppl_ext.gradients import finite_support
from ppl_ext.state_space.lowering import Inputs
from ppl_ext.state_space.model import Particle, Site, Start, StateSpace, Step
from ppl_ext.tracing.jaxprs import uses

ORDERS = (2, 3)


class Lags(NamedTuple):
    """What a step is given: its number in the run, its inputs, and those of the steps before, the earliest
    first.
    """

    number: jax.Array
    own: Inputs
    before: tuple[Inputs, ...]


class Lagged:
    """A state space whose state is that of the last ``order`` steps; beside the sites of a step it has their
    copies of the steps before.

    The carry is rebuilt from these: from the first one of the run through the steps whose states are known.
    After ``order`` of them nothing is left of where it began. Before the run begins there are no states, and
    each copy has its first outcome.

    It has of a :class:`~ppl_ext.state_space.model.StateSpace` what sums over its states need.
    """

    def __init__(self, ss: StateSpace, order: int):
        self.space, self.order = ss.for_sums(), order
        self.num_steps, self.imputed, self.initial_sites = ss.num_steps, ss.imputed, ss.initial_sites
        self.copies = {n: [_copy(n, k) for k in range(1, order)] for n in ss.step_sites}
        self.step_sites: dict[str, Site] = dict(ss.step_sites)
        for name, copies in self.copies.items():
            self.step_sites |= {c: ss.step_sites[name]._replace(name=c) for c in copies}
        self.nothing = {
            n: jnp.asarray(finite_support(elements(s.fn))[0], s.dtype) for n, s in ss.step_sites.items()
        }
        numbers = jnp.arange(ss.num_steps)
        before = tuple(_earlier(self.space.xs, k) for k in range(order - 1, 0, -1))
        self.xs = Lags(numbers, self.space.xs, before)

    def inputs(self, t) -> Lags:
        return jax.tree.map(lambda a: a[t], self.xs)

    def initial(self, values: Mapping[str, Any]) -> Start:
        start = self.space.initial(values)
        return start._replace(particle=self.placed(values))

    def placed(self, values: Mapping[str, Any]) -> Particle:
        """The particle of :meth:`initial`, without its densities."""
        sites = {
            c: jnp.full(self.step_sites[c].shape, self.nothing[n])
            for n, copies in self.copies.items()
            for c in (n, *copies)
        }
        return Particle(self.space.placed(values).carry, sites)

    def anywhere(self) -> Particle:
        """A particle of the right shapes."""
        return self.placed({})

    def step(self, particle: Particle, values: Mapping[str, Any], x_t: Any) -> Step:
        """A step to these values, whose copies must be the states that the particle has."""
        own = self.own(values)
        one = self.space.step(Particle(particle.carry, self.own(particle.sites)), own, x_t.own)
        agrees = jnp.ones((), bool)
        for name, copies in self.copies.items():
            for k, copy in enumerate(copies, 1):
                there = particle.sites[name if k == 1 else copies[k - 2]]
                known = jnp.where(x_t.number >= k, there, self.nothing[name])
                agrees &= jnp.all(values[copy] == known)
        return Step(
            self.moved(particle, values, x_t),
            jnp.where(agrees, one.log_transition, -jnp.inf),
            one.log_emission,
        )

    def moved(self, particle: Particle, values: Mapping[str, Any], x_t: Any) -> Particle:
        """The particle of :meth:`step`, without its densities."""
        own, carry = self.own(values), self.space.placed({}).carry
        for k, x in zip(range(self.order - 1, 0, -1), x_t.before, strict=True):
            lagged = {n: values[copies[k - 1]] for n, copies in self.copies.items()}
            moved = self.space.moved(Particle(carry, own), lagged, x).carry
            carry = jax.tree.map(lambda new, old, k=k: jnp.where(x_t.number >= k, new, old), moved, carry)
        carry = self.space.moved(Particle(carry, own), own, x_t.own).carry
        return Particle(carry, dict(values))

    def own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the step itself, without the copies."""
        return {n: values[n] for n in self.copies}

    def ordered(self, series: Any) -> Any:
        return self.space.ordered(series)

    def ordered_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return self.space.ordered_values(
            {n: v for n, v in values.items() if n not in self.step_sites or n in self.copies}
        )

    def own_columns(self) -> list[int]:
        """Which entries of a state, as a flat vector, are those of the step itself."""
        flat = np.concatenate(
            [np.full(s.shape, n in self.copies).ravel() for n, s in sorted(self.step_sites.items())]
        )
        return np.flatnonzero(flat).tolist()


def lagged(ss: StateSpace) -> Lagged | None:
    """The chain over the last few states together; ``None`` if they are not finite, or not enough to say what
    the state is.
    """
    finite = bool(ss.step_sites) and all(s.fn.has_enumerate_support for s in ss.step_sites.values())
    if not finite or ss.initial_sites or ss.imputed or not ss.num_steps:
        return None
    space = ss.for_sums()
    return next((Lagged(ss, order) for order in ORDERS if _forgets(space, order)), None)


def _forgets(space: StateSpace, order: int) -> bool:
    """Whether after so many steps nothing is left of the carry before them, as far as the traced program
    shows.
    """
    start = jax.eval_shape(lambda: space.placed({}))
    x = space.inputs(0)

    def run(carry, states):
        for values in states:
            carry = space.moved(Particle(carry, values), values, x).carry
        return carry

    states = [{n: jnp.zeros(s.shape, s.dtype) for n, s in space.step_sites.items()}] * order
    closed = jax.make_jaxpr(run)(start.carry, states)
    used = uses(closed, [True] * len(closed.jaxpr.outvars))
    return not any(used[: len(jax.tree.leaves(start.carry))])


def _copy(name: str, lag: int) -> str:
    return f"{name} {lag} before"


def _earlier(xs: Any, lag: int) -> Any:
    """The inputs of so many steps before, by step; those of the first ones stand where there is none."""
    return jax.tree.map(
        lambda a: jnp.concatenate([a[:1].repeat(min(lag, len(a)), axis=0), a[: max(len(a) - lag, 0)]]), xs
    )
