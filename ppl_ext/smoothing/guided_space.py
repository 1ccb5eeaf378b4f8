"""A state-space model whose particles are moved by a guide, itself a program with a ``scan``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ppl_ext.errors import ModelError
from ppl_ext.smoothing.conditional_paris import ParticlePath
from ppl_ext.smoothing.model_space import ModelSpace
from ppl_ext.smoothing.space import Particles
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.particle_keys import LaneKeys


class GuidedSpace:
    """Carries are pairs: of the model, and of the guide along the same path. Weights are model over guide;
    the backward law is the model's.

    :raises ModelError: if guide and model differ in their sites or their number of steps, or the guide
        observes something.
    """

    def __init__(self, model: StateSpace, guide: StateSpace):
        for which in ("initial_sites", "step_sites"):
            ours, theirs = set(getattr(guide, which)), set(getattr(model, which))
            if ours != theirs:
                where = "before the scan" if which == "initial_sites" else "in a step"
                raise ModelError(
                    f"The guide has the sites {sorted(ours)} {where} and the model {sorted(theirs)}; they "
                    "must be the same."
                )
        if guide.num_steps != model.num_steps:
            raise ModelError(f"The guide's scan has {guide.num_steps} steps, the model's {model.num_steps}.")
        if guide.reverse != model.reverse:
            raise ModelError(
                "Of the guide's scan and the model's one runs backward; both must run the same way."
            )
        if guide.initial_observed or guide.step_observed:
            raise ModelError("The guide observes something; it must only draw.")
        self.model, self.guide, self._plain = model, guide, ModelSpace(model)
        self.inputs = model.xs, guide.xs

    def initial(self, rng_key: jax.Array, num: int) -> Particles:
        def one(key):
            drawn, values, _ = self.guide.start(key)
            return Particles((self.model.initial(values).particle.carry, drawn.carry), values)

        return LaneKeys(rng_key, num).each(one)

    def weigh_initial(self, particles: Particles) -> jax.Array:
        def one(sites):
            terms = self.model.initial_terms(sites)[1]
            return terms.observed + terms.latent - self.guide.initial_terms(sites)[1].latent

        return jax.vmap(one, axis_size=len(jax.tree.leaves(particles)[0]))(particles.sites)

    def move(self, rng_key: jax.Array, carry: Any, inputs: Any) -> Particles:
        x, x_guide = inputs

        def one(key, carry):
            drawn, _ = self.guide.propagate(key, Particle(carry[1], {}), x_guide)
            after = self.model.step(Particle(carry[0], {}), drawn.sites, x).particle.carry
            return Particles((after, drawn.carry), drawn.sites)

        return LaneKeys(rng_key, len(jax.tree.leaves(carry)[0])).each(one, carry)

    def weigh(self, carry: Any, particles: Particles, inputs: Any) -> jax.Array:
        x, x_guide = inputs

        def one(carry, sites):
            terms = self.model.step_terms(Particle(carry[0], {}), sites, x)[1]
            return (
                terms.observed
                + terms.latent
                - self.guide.step_terms(Particle(carry[1], {}), sites, x_guide)[1].latent
            )

        return jax.vmap(one)(carry, particles.sites)

    def log_pair(
        self, carry: Any, particles: Particles, inputs: Any
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return self._plain.log_pair(carry[0], Particles(particles.carry[0], particles.sites), inputs[0])

    def log_bound(self, carry: Any, inputs: Any) -> jax.Array | None:
        return self._plain.log_bound(carry[0], inputs[0])


def guided_path(space: GuidedSpace, values: Mapping[str, jax.Array]) -> ParticlePath:
    """The trajectory with these sites, and both carries along it."""
    model, guide = space.model, space.guide
    initial = {name: values[name] for name in model.initial_sites}
    sites = {name: values[name] for name in model.step_sites}
    start = model.initial(initial).particle.carry, guide.initial(initial).particle.carry

    def body(carry, at):
        values, (x, x_guide) = at
        after = model.step(Particle(carry[0], {}), values, x).particle.carry
        carry = after, guide.step(Particle(carry[1], {}), values, x_guide).particle.carry
        return carry, carry

    _, carries = jax.lax.scan(body, start, (sites, space.inputs))
    return ParticlePath(Particles(start, initial), Particles(carries, sites))
