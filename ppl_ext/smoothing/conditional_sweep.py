"""Particle Gibbs as an algorithm of the core, and as the chain of Markov score climbing."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from numpyro.primitives import prng_key

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.particle_filter import ParticleFilter
from ppl_ext.algorithms.target import Retained, Target, log_quotient
from ppl_ext.errors import ArgumentError, ModelError, StrategyError
from ppl_ext.gradients import Constant
from ppl_ext.runtime.arguments import check_count, check_flag, described
from ppl_ext.smoothing.backward import BackwardKernel, backward_kernel
from ppl_ext.smoothing.conditional_paris import conditional_paris
from ppl_ext.smoothing.guided_space import GuidedSpace
from ppl_ext.smoothing.settings import check_markov
from ppl_ext.smoothing.space import Space
from ppl_ext.state_space.filtering import Rules, paths
from ppl_ext.state_space.model import StateSpace, lower
from ppl_ext.state_space.resampling import multinomial


def _reversible(where: str, backward: str | BackwardKernel) -> BackwardKernel:
    kernel = backward_kernel(f"{where}: backward", backward)
    if not kernel.reversible:
        raise ArgumentError(
            f"{where}: backward must be 'dense', 'hybrid' or 'path', or a kernel of your own that states "
            f"reversible = True, so that sweeps are reversible; got {described(backward)}."
        )
    return kernel


class SweptParticleFilter(Algorithm):
    r"""A particle filter's draw, moved on by conditional sweeps:
    ``normalize(ssm, {}, SweptParticleFilter(20, num_sweeps=10))``.

    .. math:: x^0, \hat Z \sim \text{filter}, \quad x^k \sim K(x^{k-1}, \cdot), \quad
        \mathbb{E}[\hat Z f(x^k)] = \int f(x) \, p(x, y) \, dx

    The sweeps K leave the posterior unchanged and are reversible (Chopin and Singh 2015), so that the
    filter's :math:`\hat Z` is a proper weight of the path that they end at, as in annealed importance
    sampling (Neal 2001): the draw comes closer to the posterior with every sweep, and p(x, y) / Ẑ still
    estimates its density. A given path is scored the way back: sweeps, and then a conditional filter through
    where they end. As an evidence it is the filter alone.

    :param num_particles: N, at least 2.
    :param num_sweeps: k.
    :param backward: ``"dense"``, ``"hybrid"`` or ``"path"``.
    :param proposal: with ``initial_proposal``, as for :class:`~ppl_ext.algorithms.ParticleFilter`.
    :raises ModelError: when run, as :class:`~ppl_ext.algorithms.ParticleFilter`.
    :raises StrategyError: where an expectation asks for gradients of its draws; hold them fixed
        (``ppl_ext.handlers.detach``), or use ParticleFilter.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext import normalize, simulate
    >>> def model(y):
    ...     def step(x, y_t):
    ...         x = numpyro.sample("x", dist.Normal(0.9 * x, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> posterior = normalize(model, {}, SweptParticleFilter(8, num_sweeps=5))
    >>> simulate(posterior, jnp.ones(3), rng_key=jax.random.key(0)).values["x"].shape
    (3,)
    """

    num_particles: int = eqx.field(static=True)
    num_sweeps: int = eqx.field(static=True, default=10)
    backward: str | BackwardKernel = eqx.field(static=True, default="dense")
    proposal: Any = None
    initial_proposal: Any = None

    scans = True

    def __check_init__(self):
        self._filter()
        check_count("SweptParticleFilter: num_sweeps", self.num_sweeps)
        _reversible("SweptParticleFilter", self.backward)
        if self.num_particles < 2:
            raise ArgumentError(
                "SweptParticleFilter: num_particles must be at least 2: one of them is frozen on the path."
            )

    def _filter(self) -> ParticleFilter:
        return ParticleFilter(
            self.num_particles,
            "multinomial",
            1.0,
            proposal=self.proposal,
            initial_proposal=self.initial_proposal,
            gradient="fisher",
        )

    def evidence(self, target: Target) -> jax.Array:
        return self._filter().evidence(target)

    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        return self._filter().evidence_through(target, retained)

    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        space, run = self._filter()._filtered(target, keep_history=True, independent=True)
        if target.has_strategies:
            self._check_fixed(target, space)
        index, possible = target.pick(run.state.log_weights)
        before = paths(space, run, index)
        # From where nothing was possible no sweep leads on; the weight is zero, and what has it must be a
        # number.
        moved = self._sweep(target, space, before)
        values = {name: jnp.where(possible, moved[name], x) for name, x in before.items()}
        log_density = target.log_density(values).total
        return values, log_quotient(log_density, space.log_prior + run.state.log_evidence.value, possible)

    def _check_fixed(self, target: Target, space: StateSpace) -> None:
        """Within an expectation draws have gradients, and a sweep's have none: the handlers outside must hold
        them fixed.
        """
        for name in (*space.initial_sites, *space.step_sites):
            if not isinstance(target.annotations(name, dist.Normal(), {}).get("gradient"), Constant):
                raise StrategyError(
                    f"The draws of SweptParticleFilter (site '{name}') have no gradient. Hold them fixed, "
                    "ppl_ext.handlers.detach(program) around the normalized program, or use ParticleFilter."
                )

    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        with target.inside():
            space = lower(target.program, parameters=target.given, initial="rest", gaps="refuse")
        before = self._sweep(target, space, values)
        log_density = target.log_density(values).total
        return log_density - self.evidence_through(target, Retained(before, log_density, lambda: log_density))

    def _sweep(self, target: Target, space: StateSpace, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        moving = Space(space, self._filter().rules(), backward_kernel("", self.backward))
        check_markov(space, moving.backward)

        def one(path: dict[str, jax.Array], key):
            return conditional_paris(key, moving, path).path, None

        keys = jax.random.split(target.key(), self.num_sweeps)
        moved = jax.lax.scan(one, space.ordered_values(values), keys)[0]
        return stop_gradient(space.ordered_values(moved))


class Moved(NamedTuple):
    """What a step of :class:`~ppl_ext.objectives.MarkovScoreClimbing`'s chain returns; see
    ``ppl_ext.objectives.Move``.
    """

    values: Any
    particles: Any
    weights: jax.Array


@dataclass(frozen=True)
class ConditionalSweep:
    """The chain of :class:`~ppl_ext.objectives.MarkovScoreClimbing` for a state-space model: one conditional
    particle sweep a step.

    ``MarkovScoreClimbing(ConditionalSweep(20))`` follows the guide's score at smoothing draws, where
    importance sampling of whole paths would need ever more particles as the series grows. The guide has the
    latent sites of the model's scan and no others; parameters are ``numpyro.param``.

    :param num_particles: N, at least 2.
    :param backward: how the new path is drawn.
    :param guided: move the particles by the guide, which must be a ``scan`` itself; by default they move by
        the model.
    :raises ArgumentError: for fewer than 2 particles, or an unknown kernel.
    :raises ModelError: when run, if the guide's sites are not those of the model's scan, or its states do not
        suffice for backward draws.

    >>> from ppl_ext.objectives import MarkovScoreClimbing
    >>> MarkovScoreClimbing(ConditionalSweep(20, backward="dense"))
    MarkovScoreClimbing(kernel=ConditionalSweep(num_particles=20, backward='dense', guided=True))

    Sources: Naesseth, Lindsten, Blei 2020, for score climbing; Cardoso et al. 2023, for the sweep.
    """

    num_particles: int = 20
    backward: str | BackwardKernel = "mcmc"
    guided: bool = True

    def __post_init__(self):
        check_count("ConditionalSweep: num_particles", self.num_particles)
        check_flag("ConditionalSweep: guided", self.guided)
        backward_kernel("ConditionalSweep: backward", self.backward)
        if self.num_particles < 2:
            raise ArgumentError(
                "ConditionalSweep: num_particles must be at least 2: one of them is frozen on the path."
            )

    def __call__(self, model, guide, values) -> Moved:
        key, kernel = prng_key(), backward_kernel("", self.backward)
        lowered = lower(model, initial="rest", gaps="refuse")
        names = {*lowered.initial_sites, *lowered.step_sites}
        if set(values) != names:
            raise ModelError(
                f"ConditionalSweep moves the sites {sorted(names)} of the model's scan, but the guide has "
                f"{sorted(values)}."
            )
        check_markov(lowered, kernel)
        moved = GuidedSpace(lowered, lower(guide, initial="rest")) if self.guided else lowered
        space = Space(moved, Rules(self.num_particles, multinomial, 1.0), kernel)
        drawn = lowered.ordered_values(conditional_paris(key, space, lowered.ordered_values(values)).path)
        new = type(values)(
            {name: jnp.asarray(drawn[name], jnp.result_type(x)) for name, x in values.items()},
            values.auxiliary,
        )
        return Moved(new, jax.tree.map(lambda x: x[None], new), jnp.ones(1))
