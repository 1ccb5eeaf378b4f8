"""Particle Gibbs for NumPyro's MCMC: conditional particle sweeps for the states of a ``scan``, NUTS for the
parameters.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.infer import HMC, NUTS
from numpyro.infer.gibbs import (
    GIBBS_SITES_KWARG,
    DiscreteGibbs,
    Gibbs,
    conditioned,
    latent_sample_sites,
    prototype_trace,
)
from numpyro.infer.mcmc import MCMCKernel
from numpyro.primitives import Messenger

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer.particle_mcmc.impossible_data import refuse_impossible
from ppl_ext.infer.svi.checks import begun, check_init_params, check_one_key, named
from ppl_ext.runtime.arguments import check_call, check_program, check_values, described
from ppl_ext.runtime.constants import odd_data_blamed
from ppl_ext.runtime.outside import Outside
from ppl_ext.smoothing.backward import BackwardKernel
from ppl_ext.smoothing.conditional_paris import conditional_paris
from ppl_ext.smoothing.paris_particle_gibbs import in_order
from ppl_ext.smoothing.settings import Options, Settings, settings
from ppl_ext.state_space.model import lower, scan_shape
from ppl_ext.tracing.scan_bodies import run_in_scan_body
from ppl_ext.tracing.scoped_scans import Reaching


class PathState(NamedTuple):
    """``z``: values of the path's sites. ``renewed`` (T + 1,): whether the last sweep changed the path, by
    time.
    """

    z: dict[str, jax.Array]
    rng_key: jax.Array
    renewed: jax.Array


class PathSweep(MCMCKernel):
    """The states of a ``scan`` given everything else, by one conditional particle sweep: a block of
    ``numpyro.infer.Gibbs``.

    It leaves the conditional law of the states invariant for any number of particles from 2 on; more of them
    renew the path faster. See :func:`~ppl_ext.smoothing.conditional_paris.conditional_paris`.

    :param model: the model, with one ``scan``.
    :param num_particles: N, at least 2.
    :param backward: how the new path is drawn; see :mod:`ppl_ext.smoothing.backward`.
    :param proposal: with ``initial_proposal``, programs that move the particles, as for
        :class:`~ppl_ext.algorithms.ParticleFilter`.
    :raises ArgumentError: for fewer than 2 particles, or when used outside of ``numpyro.infer.Gibbs``.
    :raises ModelError: when run, if its block is not all sites of the path.

    Of a scan with ``reverse=True`` NumPyro reads values in the order of the run, the last input first, so
    that in its ``Gibbs`` the samples of the states stand in that order, as they do under its NUTS;
    :class:`ParticleGibbs` hands them out in the order of the inputs.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from numpyro.infer import MCMC, NUTS, Gibbs
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> kernel = Gibbs([(NUTS(model), ["phi"]), (PathSweep(model, num_particles=10), ["x0", "x"])])
    >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=20, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.array([0.3, -0.1, 0.5]))
    >>> mcmc.get_samples()["x"].shape
    (20, 3)

    Source: Andrieu, Doucet, Holenstein 2010, section 2.4.3.
    """

    sample_field = "z"

    def __init__(
        self,
        model: Callable,
        num_particles: int = 100,
        backward: str | BackwardKernel = "mcmc",
        proposal: Callable | None = None,
        initial_proposal: Callable | None = None,
    ):
        self._how = sweep_settings("PathSweep", model, num_particles, backward, proposal, initial_proposal)
        self.model = model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> PathState:
        """``init_params``: values of the path's sites; ``numpyro.infer.Gibbs`` gives them."""
        check_one_key("PathSweep", rng_key)
        if not isinstance(init_params, Mapping) or not init_params:
            raise ArgumentError(
                "PathSweep updates the states given the parameters: use it as a block of Gibbs, or use "
                "ParticleGibbs."
            )
        lowered = self._lower(model_args, model_kwargs)
        wanted = {*lowered.initial_sites, *lowered.step_sites}
        if set(init_params) != wanted:
            raise ModelError(
                f"PathSweep updates the sites {sorted(wanted)} together, but its block is given "
                f"{sorted(init_params)}."
            )
        check_values("PathSweep: init_params", init_params)
        z = {name: jnp.asarray(x) for name, x in init_params.items()}
        return PathState(z, rng_key, jnp.zeros(lowered.num_steps + 1, bool))

    def sample(self, state: PathState, model_args, model_kwargs) -> PathState:
        rng_key, sweep_key = jax.random.split(state.rng_key)
        how = self._how._replace(model=self.model, gaps="refuse")
        space = how.begin({}, tuple(model_args), model_kwargs or {})
        sweep = conditional_paris(sweep_key, space, state.z)
        z = {name: jnp.asarray(sweep.path[name], x.dtype) for name, x in state.z.items()}
        return PathState(z, rng_key, in_order(space.lowered, sweep).renewed)

    def refresh(self, state: PathState, model_args, model_kwargs) -> PathState:
        """Nothing is kept that depends on the other sites."""
        return state

    def wrap_model(self, wrapper: Callable) -> "PathSweep":
        kernel = copy.copy(self)
        kernel.model = wrapper(self.model)
        return kernel

    def get_diagnostics_str(self, state: PathState) -> str:
        return f"path renewed {float(jnp.mean(state.renewed)):.0%}"

    def _lower(self, model_args, model_kwargs):
        return lower(self.model, tuple(model_args), model_kwargs or {}, gaps="refuse")


class Unmarked(Messenger):
    """No latent site is marked to be summed out, in ``scan`` neither: a kernel that samples the states needs
    a value of each.
    """

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: Unmarked())
        elif msg["type"] == "sample" and not msg["is_observed"]:
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "enumerate"}


class ParticleGibbs(MCMCKernel):
    r"""Parameters and states of a state-space model, each given the other.

    .. math:: \theta \sim p(\theta \mid x_{0:T}, y) \text{ by NUTS}, \qquad
        x_{0:T} \sim p(x_{0:T} \mid \theta, y) \text{ by a conditional sweep}

    Exact for any number of particles, unlike NUTS on a filter's noisy log evidence, which targets nothing in
    particular.

    :param model: a NumPyro model with one ``scan``.
    :param num_particles: N, at least 2.
    :param backward: how paths are drawn; see :mod:`ppl_ext.smoothing.backward`.
    :param proposal: with ``initial_proposal``, programs that move the particles, as for
        :class:`~ppl_ext.algorithms.ParticleFilter`.
    :param inner: the kernel for the parameters, built on the same model; by default ``NUTS(model)``. Beside
        ``NUTS`` or ``HMC``, which cannot, NumPyro's ``DiscreteGibbs`` samples finite parameters; those marked
        for enumeration too, since the sweep needs values.
    :param initial: sites before the scan that belong to the state, where the model does not say: by default
        those that reach the first carry and nothing else.
    :raises ArgumentError: for fewer than 2 particles, or an ``inner`` kernel of another model.
    :raises ModelError: when run, for no state-space form, states that do not suffice for backward draws, an
        empty series, or a discrete parameter with no finite list of values.

    States are in ``get_samples()`` beside the parameters, by time in the order of the inputs, of a reversed
    scan too. ``extra_fields=("renewed",)`` tells how often each time's state changed.

    Source: Andrieu, Doucet, Holenstein 2010, section 2.4.3, with backward draws (Whiteley 2010; Lindsten and
    Schön 2013).

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from numpyro.infer import MCMC
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> mcmc = MCMC(ParticleGibbs(model, num_particles=10), num_warmup=10, num_samples=20, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.array([0.3, -0.1, 0.5]))
    >>> {name: x.shape for name, x in sorted(mcmc.get_samples().items())}
    {'phi': (20,), 'x': (20, 3), 'x0': (20,)}
    """

    sample_field = "z"
    samples_by_input = True  # of a reversed scan, unlike NumPyro's kernels, which keep the order of the run

    def __init__(
        self,
        model: Callable,
        num_particles: int = 100,
        backward: str | BackwardKernel = "mcmc",
        inner: MCMCKernel | None = None,
        initial: tuple[str, ...] | None = None,
        proposal: Callable | None = None,
        initial_proposal: Callable | None = None,
    ):
        check_program("ParticleGibbs: model", model)
        if inner is not None and not isinstance(inner, MCMCKernel):
            raise ArgumentTypeError(
                f"ParticleGibbs: inner must be a NumPyro MCMCKernel, got {described(inner)}."
            )
        if inner is not None and getattr(inner, "model", None) is not model:
            raise ArgumentError("ParticleGibbs: inner must be built on the same model.")
        self.model, self._initial = model, initial_names("ParticleGibbs", initial)
        self._inner = NUTS(model) if inner is None else inner
        # for what they say of a mistake
        sweep_settings("ParticleGibbs", model, num_particles, backward, proposal, initial_proposal)
        self._sweep = PathSweep(model, num_particles, backward, proposal, initial_proposal)
        self._gibbs: Gibbs | None = None
        self._turned: frozenset[str] = frozenset()  # sites that NumPyro reads from the last input on
        self._seen: Outside | None = None

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> "ParticleGibbsState":
        with begun("ParticleGibbs", self):
            return self._first(rng_key, num_warmup, init_params, model_args, model_kwargs)

    def _first(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> "ParticleGibbsState":
        check_one_key("ParticleGibbs", rng_key)
        path = path_sites(self.model, tuple(model_args), dict(model_kwargs or {}), self._initial)
        scan = scan_shape(self.model, tuple(model_args), dict(model_kwargs or {}))
        if scan.rewritten:  # what NumPyro's kernels do not see
            self._run_on(Reaching(self.model))
        trace = prototype_trace(conditioned(self.model), jax.random.key(0), model_args, model_kwargs)
        if any(trace[name]["infer"].get("enumerate") == "parallel" for name in latent_sample_sites(trace)):
            self._run_on(Unmarked(self.model))
        if not scan.num_steps:
            raise ModelError(
                "ParticleGibbs: the series is empty, so there is no path to sample. The parameters follow "
                "their prior."
            )
        others = [name for name in latent_sample_sites(trace) if name not in path]
        refuse_impossible(trace, others)
        if init_params is not None:
            check_init_params("ParticleGibbs", init_params, {name: trace[name] for name in others})
        self._gibbs = Gibbs([*self._blocks({n: trace[n]["fn"] for n in others}), (self._sweep, path)])
        self._turned = frozenset(scan.latent if scan.reverse else ())
        return self._told(self._gibbs.init(rng_key, num_warmup, init_params, model_args, model_kwargs))

    def _run_on(self, model: Callable) -> None:
        """One wrapped model for all blocks, which must share it."""
        wrapped = self.wrap_model(lambda _: model)
        self.model, self._inner, self._sweep = wrapped.model, wrapped._inner, wrapped._sweep

    def _blocks(self, parameters: Mapping[str, Distribution]) -> list[tuple[MCMCKernel, list[str]]]:
        discrete = [
            n for n, fn in parameters.items() if fn.support.is_discrete and isinstance(self._inner, HMC)
        ]
        if endless := [n for n in discrete if not parameters[n].has_enumerate_support]:
            raise ModelError(
                f"ParticleGibbs: the parameter '{endless[0]}' ({type(parameters[endless[0]]).__name__}) is "
                "discrete and has no finite list of values, so neither NUTS nor DiscreteGibbs samples it. "
                "Pass inner=, a kernel for all parameters that does."
            )
        blocks = [
            (self._inner, [n for n in parameters if n not in discrete]),
            (DiscreteGibbs(self.model), discrete),
        ]
        return [(kernel, names) for kernel, names in blocks if names]

    def sample(self, state: "ParticleGibbsState", model_args, model_kwargs) -> "ParticleGibbsState":
        return self._told(self._running.sample(state.gibbs, model_args, model_kwargs))

    def refresh(self, state: "ParticleGibbsState", model_args, model_kwargs) -> "ParticleGibbsState":
        """Every sweep begins by refreshing its blocks."""
        return state

    def wrap_model(self, wrapper: Callable) -> "ParticleGibbs":
        kernel = copy.copy(self)
        kernel.model, kernel._gibbs = wrapper(self.model), None
        kernel._inner, kernel._sweep = self._inner.wrap_model(wrapper), self._sweep.wrap_model(wrapper)
        return kernel

    def postprocess_fn(self, model_args, model_kwargs):
        found = self._running.postprocess_fn(model_args, model_kwargs)
        turned = self._turned
        return (
            (lambda z: {n: x[::-1] if n in turned else x for n, x in found(z).items()}) if turned else found
        )

    def get_constrain_fn(self, model_args, model_kwargs):
        return self._running.get_constrain_fn(model_args, model_kwargs)

    def get_diagnostics_str(self, state: "ParticleGibbsState") -> str:
        return self._running.get_diagnostics_str(state.gibbs)

    @property
    def _running(self) -> Gibbs:
        if self._gibbs is None:
            raise ArgumentError(
                "ParticleGibbs: init must be called before sample; run it by numpyro.infer.MCMC."
            )
        return self._gibbs

    @staticmethod
    def _told(state: Any) -> "ParticleGibbsState":
        return ParticleGibbsState(state.z, state, state.block_states[-1].renewed)


class ParticleGibbsState(NamedTuple):
    """``z``: all sites, parameters unconstrained. ``gibbs``: the blocks' states. ``renewed`` (T + 1,): where
    the last sweep changed the path."""

    z: dict[str, jax.Array]
    gibbs: Any
    renewed: jax.Array


def initial_names(where: str, initial: Any) -> tuple[str, ...] | None:
    """Names of initial sites as a user gives them."""
    if initial is None:
        return None
    if (
        isinstance(initial, str)
        or not isinstance(initial, list | tuple)
        or not all(isinstance(name, str) for name in initial)
    ):
        raise ArgumentTypeError(f"{where}: initial must be a tuple of site names, got {described(initial)}.")
    return tuple(initial)


def sweep_settings(where: str, model, num_particles, backward, proposal, initial_proposal) -> Settings:
    """The settings of a conditional sweep, checked."""
    options = Options(num_particles, backward, proposal=proposal, initial_proposal=initial_proposal)
    return settings(where, model, None, options, frozen=True)


def path_sites(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    initial: tuple[str, ...] | None = None,
    where: str = "ParticleGibbs",
) -> list[str]:
    """Latent sites of the scan, and the sites before it that are its first state: those that reach the first
    carry and that no step, and no other site's law, uses otherwise.

    :raises ModelError: if the model has no state-space form.
    """
    own = {name: x for name, x in kwargs.items() if name != GIBBS_SITES_KWARG}
    check_call(f"{where}: model", model, args, own)
    with odd_data_blamed(f"{where}:", args, own), named(model, jax.random.key(0), args, kwargs):
        trace = prototype_trace(conditioned(Reaching(model)), jax.random.key(0), args, kwargs)
    fixed = scan_shape(model, args, kwargs).fixed
    latent = [name for name in latent_sample_sites(trace) if name not in fixed]
    before = {name: trace[name]["value"] for name in latent if not trace[name].get("_control_flow_done")}
    if initial is None:
        found = []
        for name in before:
            try:
                space = lower(model, args, kwargs, {n: x for n, x in before.items() if n != name})
            except ModelError:
                continue
            found += [name] if name in space.initial_sites else []
        initial = tuple(found)
    # With states integrated out a gap that is handed on is, too; a path of NumPyro's sites has no place for
    # it.
    gaps: Literal["draw", "refuse"] = "draw" if where in ("PMMH", "SMC2") else "refuse"
    lowered = lower(
        model, args, kwargs, {n: x for n, x in before.items() if n not in initial}, initial=initial, gaps=gaps
    )
    return [*lowered.initial_sites, *(name for name in lowered.step_sites if name not in lowered.imputed)]
