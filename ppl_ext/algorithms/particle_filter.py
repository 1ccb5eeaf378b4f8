"""The particle filter as an algorithm: it sums the states of a ``scan`` out of a program."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import ClassVar, Literal

import equinox as eqx
import jax
from jax import random
from jax.lax import stop_gradient
from jax.sharding import Mesh
from numpyro.contrib.control_flow import scan

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.filter_sites import Sited
from ppl_ext.algorithms.target import Retained, Target, log_quotient
from ppl_ext.errors import ArgumentError, ModelError, StrategyError
from ppl_ext.runtime.arguments import check_count, check_function, check_number, described
from ppl_ext.runtime.sharding import check_mesh
from ppl_ext.state_space.filtering import FilterRun, Rules, paths, run_filter
from ppl_ext.state_space.model import StateSpace, lower
from ppl_ext.state_space.resampling import Scheme, multinomial, scheme_of
from ppl_ext.state_space.site_runs import Proposal

# Samplers of NumPyro that take the density of a program for a number that is the same whenever it is asked.
_SAMPLERS = {
    f"numpyro.infer.{name}" for name in ("hmc", "barker", "sa", "mixed_hmc", "hmc_gibbs", "ensemble")
}


class ParticleFilter(Algorithm):
    r"""N particles through a program with one ``numpyro.contrib.control_flow.scan``.

    .. math:: w = p(\theta) \, \hat Z, \qquad \hat Z = \prod_t \sum_i \omega_{t,i}, \qquad \mathbb{E}[w] =
        p(\theta, y)

    with the weights of :mod:`ppl_ext.state_space.filtering`. Kept sites before the scan are parameters θ; the
    others are each particle's own and must go through the carry.
    ``marginal(model, ["phi", "sigma"], ParticleFilter(100))`` inside an importance-weighted bound is the
    filtering variational objective (Maddison et al. 2017; Naesseth et al. 2018). The conditional run keeps
    one lane on a given path (Andrieu, Doucet and Holenstein 2010); a draw is one particle's path. In both,
    ancestors are independent whatever the scheme.

    Gradients of log w. Inside an expectation every random choice has its strategy, so that the gradient of
    the objective is unbiased: states along their path where their law allows, other states and ancestors
    (``"marginal/index"``) by the score function. Then particles are resampled independently at every time,
    since other schemes have no density. ``gradient="fisher"``, and the default elsewhere: draws held fixed,
    :math:`\nabla \log w = \sum_i W_i \nabla \log p(\theta, x^i_{0:T}, y)`. It estimates ∇ log p(θ, y), with a
    bias of order 1/N and far less variance than scores of ancestors; any resampling goes, and proposals get
    no gradient.

    :param num_particles: N, at least 1.
    :param resampling: ``"systematic"`` (default outside expectations), ``"stratified"``, ``"residual"``,
        ``"multinomial"`` or a function ``(key, log_weights, num) -> ancestors`` with unbiased counts.
    :param threshold: resample where the effective sample size is below this share of N: 0 never, 1 always.
        0.5 by default.
    :param proposal: guided filter: a program ``proposal(parameters, carry, x)`` that draws the step's sites,
        given a particle's carry and the scan's input. Its ``numpyro.param`` sites are learned with the
        program's.
    :param initial_proposal: the same for the initial sites, ``initial_proposal(parameters)``.
    :param look_ahead: auxiliary filter: ``look_ahead(parameters, carry, x)``, the log of a positive guess at
        p(y_t | carry).
    :param gradient: ``"fisher"``, or by default as said above.
    :param mesh: devices over which the particles are spread,
        ``jax.make_mesh((8,), ("particles",), axis_types=(AxisType.Auto,))``; N is then a multiple of their
        number.
    :raises ModelError: when run: the program has no state-space form (:mod:`ppl_ext.state_space.model`), a
        proposal does not fit, or an MCMC method of NumPyro asks for the density.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from ppl_ext import log_density, marginal
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> filtered = marginal(model, ["phi"], ParticleFilter(1000))
    >>> log_w = log_density(filtered, {"phi": 0.0}, jnp.ones(3), rng_key=jax.random.key(0)).total
    >>> bool(abs(log_w - (dist.Normal(0, 2 ** 0.5).log_prob(jnp.ones(3)).sum() - jnp.log(2.0))) < 0.2)
    True
    """

    num_particles: int = eqx.field(static=True)
    resampling: str | Scheme | None = eqx.field(static=True, default=None)
    threshold: float | None = eqx.field(static=True, default=None)
    proposal: Callable | None = None
    initial_proposal: Callable | None = None
    look_ahead: Callable | None = None
    gradient: Literal["fisher"] | None = eqx.field(static=True, default=None)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    scans: ClassVar[bool] = True

    def __check_init__(self):
        check_count("ParticleFilter: num_particles", self.num_particles)
        if self.resampling is not None:
            scheme_of("ParticleFilter: resampling", self.resampling)
        if self.threshold is not None:
            check_number("ParticleFilter: threshold", self.threshold, 0.0)
        for name in ("proposal", "initial_proposal", "look_ahead"):
            if getattr(self, name) is not None:
                check_function(f"ParticleFilter: {name}", getattr(self, name))
        if self.gradient not in (None, "fisher"):
            raise ArgumentError(
                f"ParticleFilter: gradient must be 'fisher' or None, got {described(self.gradient)}."
            )
        check_mesh("ParticleFilter", self.mesh, self.num_particles, "num_particles")

    def rules(self, params: dict | None = None, sited: bool = False) -> Rules:
        """The filter's parts as :mod:`ppl_ext.state_space.filtering` wants them."""
        threshold = self.threshold if self.threshold is not None else (1.0 if sited else 0.5)
        scheme = scheme_of(
            "ParticleFilter: resampling", self.resampling or ("multinomial" if sited else "systematic")
        )
        return Rules(
            self.num_particles,
            scheme,
            threshold,
            self.proposal,
            self.initial_proposal,
            self.look_ahead,
            params or {},
            self.mesh,
        )

    def evidence(self, target: Target) -> jax.Array:
        space, run = self._filtered(target)
        return space.log_prior + run.state.log_evidence.value

    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        space, run = self._filtered(target, through=retained.values)
        return space.log_prior + run.state.log_evidence.value

    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        # so that the conditional run scores this very law
        space, run = self._filtered(target, keep_history=True, independent=True)
        index, possible = target.pick(run.state.log_weights)
        values = paths(space, run, index)
        log_density = target.log_density(values).total
        return values, log_quotient(log_density, space.log_prior + run.state.log_evidence.value, possible)

    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        log_density = target.log_density(values).total
        return log_density - self.evidence_through(target, Retained(values, log_density, lambda: log_density))

    def _filtered(self, target: Target, independent: bool = False, **options) -> tuple[StateSpace, FilterRun]:
        paths_matter = "keep_history" in options or "through" in options
        learns = target.has_strategies and self.gradient is None
        with target.inside():
            gaps: Literal["draw", "refuse"] = "refuse" if paths_matter else "draw"
            space = lower(target.program, parameters=target.given, initial="rest", gaps=gaps, whole=learns)
        params = self._admit(target, space)
        if learns:
            self._check_strategies()
            draws, key = Sited(target.annotations), target.key()
            with target.inside():
                return space, run_filter(
                    space, self.rules(params, True), key, draws=draws, loop=scan, **options
                )
        _refuse_samplers()
        rules = self.rules(params)
        if independent:
            rules = rules._replace(scheme=multinomial)
        if "through" in options:
            options["through"] = stop_gradient(options["through"])
        return space, run_filter(space, rules, target.key(), **options)

    def _check_strategies(self) -> None:
        if self.resampling not in (None, "multinomial"):
            raise StrategyError(
                f"Resampling {self.resampling!r} has no density, and so no gradient strategy. Inside an "
                "objective leave it out, for independent ancestors, or use ParticleFilter(..., "
                "gradient='fisher')."
            )
        if self.threshold is not None and 0 < self.threshold < 1:
            raise StrategyError(
                f"With threshold={self.threshold:g} the evidence estimate jumps where the effective sample "
                "size crosses it, which no gradient sees. Inside an objective leave it out, to resample at "
                "every time, or use ParticleFilter(..., gradient='fisher')."
            )

    def _admit(self, target: Target, space: StateSpace) -> dict:
        """Run the proposals once, outside of any ``vmap``, so that NumPyro learns their parameters."""
        programs: list[tuple[Callable, tuple]] = []
        if self.initial_proposal is not None:
            programs.append((self.initial_proposal, (space.parameters,)))
        if self.proposal is not None and space.num_steps:
            start = space.placed(space.draw_initial(random.key(0)))
            programs.append((self.proposal, (space.parameters, start.carry, space.inputs(0).x)))
        for program, args in programs:
            with target.unused(), Proposal({}, random.key(0), None):
                program(*args)
        return target.params


def _refuse_samplers() -> None:
    """A sampler that takes one fixed noise for the density, or another at every step, samples from something
    else.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name in _SAMPLERS:
            raise ModelError(
                f"{name} needs the density itself, and a particle filter has a noisy estimate of it: the "
                "samples would follow another law. Use particle Gibbs or particle marginal "
                "Metropolis-Hastings (ppl_ext.infer), or fit(...) with an objective."
            )
        frame = frame.f_back
