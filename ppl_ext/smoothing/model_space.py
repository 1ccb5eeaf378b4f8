"""A NumPyro model with a scan, as the cloud of particles that smoothing moves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward.kernel import rows
from ppl_ext.smoothing.density_peaks import log_peak
from ppl_ext.smoothing.space import Particles
from ppl_ext.state_space.filtering import Rules, propose_initial, propose_step
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.particle_keys import LaneKeys
from ppl_ext.state_space.resampling import multinomial
from ppl_ext.tracing.jaxprs import uses

BOOTSTRAP = Rules(1, multinomial, 1.0)


class ModelSpace:
    """The state-space form of a model as a :class:`~ppl_ext.smoothing.space.Space`. Like that form, it lives
    inside one trace.

    :param log_bound: of the transition density, where the user knows one.
    :param rules: with a proposal, particles move by it (:class:`~ppl_ext.algorithms.ParticleFilter` says how
        it is written).
    """

    def __init__(self, lowered: StateSpace, log_bound: Any = None, rules: Rules = BOOTSTRAP):
        self.lowered, self._given_bound, self._rules = lowered, log_bound, rules

    def initial(self, rng_key: jax.Array, num: int) -> Particles:
        keys = LaneKeys(rng_key, num)
        if self._rules.initial_proposal is None:
            particle, values, _ = keys.each(self.lowered.start)
            return Particles(particle.carry, values)
        values = keys.each(lambda key: propose_initial(self.lowered, self._rules, {}, key)[0])
        return Particles(jax.vmap(lambda v: self.lowered.initial(v).particle.carry)(values), values)

    def weigh_initial(self, particles: Particles) -> jax.Array:
        terms = jax.vmap(self.lowered.initial_terms, axis_size=len(jax.tree.leaves(particles)[0]))(
            particles.sites
        )[1]
        if self._rules.initial_proposal is None:
            return terms.observed + terms.rescaled
        log_q = jax.vmap(lambda sites: propose_initial(self.lowered, self._rules, sites, None)[1])(
            particles.sites
        )
        return terms.observed + terms.latent - log_q

    def move(self, rng_key: jax.Array, carry: Any, inputs: Any) -> Particles:
        keys = LaneKeys(rng_key, len(jax.tree.leaves(carry)[0]))
        if self._rules.proposal is None:
            particle, _ = keys.each(
                lambda key, c: self.lowered.propagate(key, Particle(c, {}), inputs), carry
            )
            return Particles(particle.carry, particle.sites)

        def one(key, c):
            values = propose_step(self.lowered, self._rules, Particle(c, {}), inputs, {}, key)[0]
            return Particles(*self.lowered.step(Particle(c, {}), values, inputs).particle)

        return keys.each(one, carry)

    def weigh(self, carry: Any, particles: Particles, inputs: Any) -> jax.Array:
        terms = jax.vmap(lambda c, sites: self.lowered.step_terms(Particle(c, {}), sites, inputs)[1])(
            carry, particles.sites
        )
        if self._rules.proposal is None:
            return terms.observed + terms.rescaled

        def log_q(c, sites):
            return propose_step(self.lowered, self._rules, Particle(c, {}), inputs, sites, None)[1]

        return terms.observed + terms.latent - jax.vmap(log_q)(carry, particles.sites)

    def log_pair(
        self, carry: Any, particles: Particles, inputs: Any
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def one(carry, sites):
            step = self.lowered.step(Particle(carry, {}), sites, inputs)
            return (
                step.log_transition + step.log_emission
                if self.lowered.emission_uses_carry
                else step.log_transition
            )

        def log_m(j, i):
            return jax.vmap(one)(rows(carry, j.ravel()), rows(particles.sites, i.ravel())).reshape(j.shape)

        return log_m

    def log_bound(self, carry: Any, inputs: Any) -> jax.Array | None:
        """The given one, or the largest peak of the laws of a step from these carries."""
        if self._given_bound is not None:
            return jnp.asarray(self._given_bound)
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
