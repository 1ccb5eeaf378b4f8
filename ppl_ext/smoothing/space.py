"""What smoothing adds to a model that filters move particles through: additive functionals, and the law of
the particle before, given the one after.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward import BackwardKernel, Pairs
from ppl_ext.smoothing.backward.kernel import rows
from ppl_ext.smoothing.density_peaks import log_peak
from ppl_ext.state_space.filtering import Rules
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.tracing.jaxprs import uses


class Functional(NamedTuple):
    """Terms of an additive functional, of one pair of states: ``step(inputs, carry, particle)``, and
    ``initial(particle)`` of the state before the first step. None instead of ``initial`` or of a subtree of
    what it returns stands for zeros."""

    initial: Callable[[Particle], Any] | None
    step: Callable[[Any, Any, Particle], Any]


class Clouds(NamedTuple):
    """Two neighbouring clouds: carries and weights of the particles before, what was sampled of those after,
    and which each of these came from; leaves (N, ...)."""

    carry: Any
    log_weights: jax.Array
    sites: dict[str, jax.Array]
    ancestors: jax.Array


class Space(NamedTuple):
    """A model at its parameters, and how it is smoothed: by which rules particles move, and how they are
    drawn backward. Like the model's state-space form, it lives inside one trace.

    :param num_backward: backward draws a particle.
    :param given_bound: of the transition density, where the user knows one.
    :param functional: whose expectation the particles carry along.
    """

    lowered: StateSpace
    rules: Rules
    backward: BackwardKernel
    num_backward: int = 2
    given_bound: Any = None
    functional: Functional | None = None

    def pairs(self, clouds: Clouds, inputs: Any) -> Pairs:
        """The clouds as the backward kernel sees them: with m, or with m times the emission where that
        depends on the carry, and the bound if the kernel reads one."""

        def one(carry, sites):
            step = self.lowered.step(Particle(carry, {}), sites, inputs)
            joint = self.lowered.emission_uses_carry
            return step.log_transition + step.log_emission if joint else step.log_transition

        def log_pair(j, i):
            earlier, later = rows(clouds.carry, j.ravel()), rows(clouds.sites, i.ravel())
            return jax.vmap(one)(earlier, later).reshape(j.shape)

        bound = self.log_bound(clouds.carry, inputs) if self.backward.needs_bound else None
        return Pairs(clouds.log_weights, clouds.ancestors, log_pair, bound)

    def log_bound(self, carry: Any, inputs: Any) -> jax.Array | None:
        """A number that m never exceeds from these carries (N, ...): the given one, or the largest peak of
        the laws of a step; None where none is known."""
        if self.given_bound is not None:
            return jnp.asarray(self.given_bound)
        if self.lowered.emission_uses_carry or self.lowered.is_scaled or self.lowered.imputed:
            return None
        anywhere = {name: jnp.zeros(site.shape, site.dtype) for name, site in self.lowered.step_sites.items()}
        known = True

        def peak(values, carry):
            nonlocal known
            peaks = [log_peak(fn) for fn in self.lowered.laws(Particle(carry, {}), values, inputs).values()]
            known = all(p is not None for p in peaks)
            return sum((jnp.sum(p) for p in peaks if p is not None), jnp.zeros(()))

        one = jax.tree.map(lambda x: x[0], carry)
        used = uses(jax.make_jaxpr(peak)(anywhere, one), [True])
        # A law whose width depends on another site of the same step has a peak for each of that site's
        # values.
        if not known or any(used[: len(anywhere)]):
            return None
        return jax.vmap(lambda c: peak(anywhere, c))(carry).max()

    def first_values(self, particles: Particle, initial: dict[str, jax.Array]) -> Any:
        """Values of the functional at the particles before the first step, leaves (N, ...).

        :param particles: with sites of a step, for their shapes.
        :param initial: the sites that were sampled before the scan.
        """
        if self.functional is None:
            return None
        begin, step = self.functional
        x = jax.tree.map(  # there may be no step to take it from
            lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), self.lowered.xs
        )
        shapes = jax.eval_shape(jax.vmap(step, (None, 0, 0)), x, particles.carry, particles)
        values = None if begin is None else jax.vmap(begin)(Particle(particles.carry, initial))

        def filled(value, shape):
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape) if value is None else value

        return jax.tree.map(filled, values, shapes, is_leaf=lambda x: x is None)


def terms(step: Callable, inputs: Any, carry: Any, particles: Particle) -> Callable:
    """A functional's step for pairs: ``(j, i)`` to leaves that begin with the shape of the two index
    arrays.
    """

    def increment(j, i):
        earlier, later = rows(carry, j.ravel()), rows(particles, i.ravel())
        values = jax.vmap(lambda before, after: step(inputs, before, after))(earlier, later)
        return jax.tree.map(lambda x: x.reshape(j.shape + x.shape[1:]), values)

    return increment
