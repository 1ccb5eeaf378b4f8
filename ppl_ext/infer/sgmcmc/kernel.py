"""What the stochastic gradient kernels share: set-up, the loop over steps, and what NumPyro's MCMC asks of a
kernel.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from ppl_ext.errors import ArgumentError
from ppl_ext.infer.sgmcmc.noise import normals
from ppl_ext.infer.sgmcmc.potential import Target, Values, set_up
from ppl_ext.infer.sgmcmc.schedule import schedule_of
from ppl_ext.infer.svi.checks import begun
from ppl_ext.runtime.arguments import (
    check_count,
    check_function,
    check_key,
    check_number,
    check_program,
    check_values,
    described,
)
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.random_bits import split


class SGState(NamedTuple):
    """``z``: unconstrained values by site. ``momentum``: the last move by site; empty for a kernel without.
    ``adapt_state``: the kernel's own. ``potential_energy``: estimated from the last minibatch, before the
    move. ``step_size``, ``sampling``: of the last step, the latter False where a schedule leaves the noise
    out. ``i``: steps so far.

    ``diverging``: whether an estimated gradient was not finite; from then on all draws are NaN.
    ``failed_at``: which step that was, else -1; ``culprit``: by which site (the index of its name in
    alphabetical order), else -1.
    """

    i: jax.Array
    z: Values
    momentum: Values
    adapt_state: Any
    potential_energy: jax.Array
    step_size: jax.Array
    sampling: jax.Array
    diverging: jax.Array
    failed_at: jax.Array
    culprit: jax.Array
    rng_key: jax.Array


class StochasticGradientKernel(MCMCKernel):
    """A chain without a Metropolis step that follows minibatch estimates of the gradient.

    A kernel says how one step moves: :meth:`begin` and :meth:`move`.
    """

    sample_field = "z"
    default_fields = ("z", "diverging")  # as NumPyro's HMC has it

    def __init__(
        self,
        model: Callable,
        batch_size: int | None,
        step_size: float | Callable[[Any], Any],
        temperature: float,
        num_steps: int,
        clip: float | None,
        init_strategy: Callable,
    ):
        here = type(self).__name__
        check_program(f"{here}: model", model)
        if batch_size is not None:
            check_count(f"{here}: batch_size", batch_size)
        check_number(f"{here}: temperature", temperature, at_least=0.0)
        check_count(f"{here}: num_steps", num_steps)
        if clip is not None:
            check_number(f"{here}: clip", clip)
            if not clip > 0.0:
                raise ArgumentError(f"{here}: clip must be a positive number or None, got {described(clip)}.")
        if not np.isfinite(temperature):
            raise ArgumentError(f"{here}: temperature must be finite, got {described(temperature)}.")
        check_function(f"{here}: init_strategy", init_strategy)
        self.model = model
        self._batch_size, self._num_steps, self._init_strategy = batch_size, num_steps, init_strategy
        self._temperature, self._clip = float(temperature), clip
        self._step_size, self._schedule = step_size, schedule_of(f"{here}: step_size", step_size)
        self._target: Target | None = None
        self._seen: Outside | None = None
        self._num_warmup = 0

    # --- what a kernel says

    @abstractmethod
    def begin(self, z: Values) -> tuple[Values, Any]:
        """Momentum and adaptive state at the start."""

    @abstractmethod
    def move(
        self,
        state: SGState,
        gradient: Values,
        noise: Values,
        step_size: jax.Array,
        temperature: jax.Array,
        key: jax.Array,
    ) -> tuple[Values, Values, Any]:
        """The step added to ``z``, the momentum, and the adaptive state. ``noise`` is standard normal;
        ``key`` for what else is drawn.
        """

    # --- what NumPyro asks

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> SGState:
        """``init_params``: unconstrained values by site, with a leading axis of chains if there are several
        keys.
        """
        with begun(type(self).__name__, self):
            return self._begun(rng_key, num_warmup, init_params, model_args, model_kwargs)

    def _begun(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> SGState:
        here, args, kwargs = type(self).__name__, tuple(model_args), dict(model_kwargs or {})
        single = is_prng_key(rng_key)
        check_key(
            f"{here}: rng_key",
            rng_key if single or not getattr(rng_key, "ndim", 0) or not len(rng_key) else rng_key[0],
        )
        self._target = set_up(
            here, self.model, self._batch_size, rng_key if single else rng_key[0], args, kwargs
        )
        self._num_warmup = num_warmup * self._num_steps
        keys = (
            jax.random.split(rng_key) if single else jnp.swapaxes(jax.vmap(jax.random.split)(rng_key), 0, 1)
        )
        if init_params is None:
            z = self._target.start(here, keys[0], args, kwargs, self._init_strategy)
        else:
            z = self._checked(init_params, () if single else rng_key.shape[:1])
        return self._first(z, keys[1]) if single else jax.vmap(self._first)(z, keys[1])

    def sample(self, state: SGState, model_args, model_kwargs) -> SGState:
        _ = self._set_up  # raises before init
        args, kwargs = tuple(model_args), dict(model_kwargs or {})

        def steps(state):
            if self._num_steps == 1:
                return self._step(state, args, kwargs)
            return jax.lax.fori_loop(0, self._num_steps, lambda _, s: self._step(s, args, kwargs), state)

        return steps(state) if is_prng_key(state.rng_key) else jax.vmap(steps)(state)

    def refresh(self, state: SGState, model_args, model_kwargs) -> SGState:
        """Nothing is kept that depends on the other sites or on the data."""
        return state

    def wrap_model(self, wrapper: Callable) -> "StochasticGradientKernel":
        kernel = copy.copy(self)
        kernel.model, kernel._target = wrapper(self.model), None
        return kernel

    def postprocess_fn(self, model_args, model_kwargs):
        return lambda z: self._set_up.constrain(z, tuple(model_args), dict(model_kwargs or {}))

    def get_diagnostics_str(self, state: SGState) -> str:
        if bool(state.diverging):
            return (
                f"not finite since step {int(state.failed_at)}, at site "
                f"'{sorted(state.z)[int(state.culprit)]}'"
            )
        return f"step size {float(state.step_size):.2e}"

    def why_failed(
        self, state: SGState, model_args: tuple, model_kwargs: Mapping[str, Any] | None = None
    ) -> str | None:
        """Which site made the gradient of a chain not finite, when, and what to do; ``None`` if all is well.

        :param state: ``mcmc.last_state``, of one chain or of several.
        """
        diverging = np.atleast_1d(np.asarray(state.diverging))
        if not diverging.any():
            return None
        c = int(np.argmax(diverging))
        step, site = (np.atleast_1d(np.asarray(x))[c] for x in (state.failed_at, state.culprit))
        words = (
            f"{type(self).__name__}: {diverging.sum()} of {len(diverging)} chains broke down, and their "
            f"draws are NaN from then on: at step {step} the estimated gradient by site "
            f"'{sorted(state.z)[int(site)]}' was not finite"
        )
        trouble = self._set_up.trouble(jax.random.key(0), tuple(model_args), dict(model_kwargs or {}))
        if trouble.startswith("no point"):
            trouble = (
                "the log density is finite at draws from the prior: take a smaller step_size, or clip the "
                "gradient."
            )
        return f"{words}. There, {trouble}" if "prior:" in trouble else f"{words}: {trouble}"

    # --- the loop

    @property
    def _set_up(self) -> Target:
        if self._target is None:
            raise ArgumentError(
                f"{type(self).__name__}: init must be called before sample; run it by numpyro.infer.MCMC."
            )
        return self._target

    def _first(self, z: Values, rng_key: jax.Array) -> SGState:
        momentum, adapt_state = self.begin(z)
        dtype = jnp.result_type(*z.values())
        no, never = jnp.zeros((), bool), jnp.full((), -1, jnp.int32)
        zero = jnp.zeros((), dtype)
        step_size = jnp.asarray(self._schedule(0), dtype)
        return SGState(
            jnp.zeros((), jnp.int32),
            z,
            momentum,
            adapt_state,
            zero,
            step_size,
            ~no,
            no,
            never,
            never,
            rng_key,
        )

    def _step(self, state: SGState, args: tuple, kwargs: Mapping[str, Any]) -> SGState:
        rng_key, batch_key, noise_key, other_key = split(state.rng_key, (4,))
        dtype = state.potential_energy.dtype
        potential, gradient = jax.value_and_grad(self._set_up.estimate)(state.z, batch_key, args, kwargs)
        step_size = jnp.asarray(self._schedule(state.i), dtype)
        sampling = (
            self._schedule.sampling(state.i) if hasattr(self._schedule, "sampling") else jnp.ones((), bool)
        )
        temperature = jnp.where(sampling, jnp.asarray(self._temperature, dtype), 0.0)
        flat, unravel = ravel_pytree(state.z)
        noise = unravel(normals(noise_key, flat.size, flat.dtype))
        move, momentum, adapt_state = self.move(
            state, self._clipped(gradient), noise, step_size, temperature, other_key
        )

        finite = jnp.stack([jnp.isfinite(jnp.sum(gradient[name])) for name in sorted(gradient)])
        ok = finite.all() & jnp.isfinite(potential)
        diverging = state.diverging | ~ok
        new = diverging & ~state.diverging
        # NumPyro's loop cannot stop; draws that are NaN cannot be taken for a posterior, as a chain that
        # stands still could.
        z = jax.tree.map(lambda x, dx: jnp.where(diverging, jnp.nan, x + dx), state.z, move)
        return SGState(
            state.i + 1,
            z,
            momentum,
            adapt_state,
            potential.astype(dtype),
            step_size,
            sampling,
            diverging,
            jnp.where(new, state.i, state.failed_at),
            jnp.where(new, jnp.argmin(finite).astype(jnp.int32), state.culprit),
            rng_key,
        )

    def _clipped(self, gradient: Values) -> Values:
        if self._clip is None:
            return gradient
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in gradient.values()))
        factor = jnp.minimum(1.0, self._clip * self._set_up.num_rows / norm)
        return jax.tree.map(lambda g: factor * g, gradient)

    def _checked(self, init_params: Any, chains: tuple[int, ...]) -> Values:
        here, names = type(self).__name__, sorted(self._set_up.transforms)
        check_values(f"{here}: init_params", init_params)
        if set(init_params) != set(names):
            raise ArgumentError(
                f"{here}: init_params must hold {names}, unconstrained, got {sorted(init_params)}."
            )
        for name, x in self._set_up.example.items():
            if jnp.shape(init_params[name]) != (*chains, *x.shape):
                raise ArgumentError(
                    f"{here}: init_params of site '{name}' must have shape {(*chains, *x.shape)}, got "
                    f"{jnp.shape(init_params[name])}."
                )
        return {name: jnp.asarray(init_params[name]) for name in self._set_up.transforms}


DEFAULT_INIT = init_to_uniform
