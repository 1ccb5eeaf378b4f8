"""A state-space model whose particles are moved by a guide, itself a program with a ``scan``."""

from collections.abc import Mapping
from typing import Any

from ppl_ext.errors import ModelError
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.site_runs import Terms


class GuidedSpace(StateSpace):
    """The model, with the guide's laws as those that its sites are drawn from. Carries and inputs are pairs:
    of the model, and of the guide along the same path. Weights are model over guide; the backward law is the
    model's.

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
        vars(self).update(vars(model))  # what is asked of the model alone
        self.model, self.guide = model, guide
        self.xs: Any = model.xs, guide.xs

    def run_initial(self, values: Mapping[str, Any], key):
        return self.guide.run_initial(values, key)

    def run_step(self, particle: Particle, values: Mapping[str, Any], x_t: Any, key):
        return self.guide.run_step(Particle(particle.carry[1], {}), values, x_t[1], key)

    def initial_terms(self, values: Mapping[str, Any]) -> tuple[Particle, Terms]:
        return _joined(self.model.initial_terms(values), self.guide.initial_terms(values))

    def step_terms(self, particle: Particle, values: Mapping[str, Any], x_t: Any) -> tuple[Particle, Terms]:
        spaces = zip((self.model, self.guide), particle.carry, x_t, strict=True)
        return _joined(*(space.step_terms(Particle(c, {}), values, x) for space, c, x in spaces))

    def laws(self, particle: Particle, values: Mapping[str, Any], x_t: Any) -> dict[str, Any]:
        return self.model.laws(Particle(particle.carry[0], {}), values, x_t[0])


def _joined(ours: tuple[Particle, Terms], guides: tuple[Particle, Terms]) -> tuple[Particle, Terms]:
    (particle, terms), (guide, of_guide) = ours, guides
    weight = terms.latent - of_guide.drawn
    joint = Terms(terms.latent, terms.observed, of_guide.drawn, weight)
    return Particle((particle.carry, guide.carry), particle.sites), joint
