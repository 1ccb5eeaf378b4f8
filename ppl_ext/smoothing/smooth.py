"""Smoothing of a whole series: the stream's step, scanned."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ppl_ext.algorithms.filtering import Info
from ppl_ext.algorithms.resampling import Scheme
from ppl_ext.arguments import check_call, check_count, check_key
from ppl_ext.diagnostics.sites import refuse_open_handlers
from ppl_ext.smoothing.backward import BackwardKernel, Tally
from ppl_ext.smoothing.online import SmootherState, begin, check_excess, expectations, settings, step
from ppl_ext.smoothing.parameters import check_arrays, check_inside, outside, parameters
from ppl_ext.smoothing.report import SmoothingResult
from ppl_ext.smoothing.trajectories import trajectories, values_of


class smooth:
    """Filter a series and smooth additive functionals of its states: arguments as for
    :class:`~ppl_ext.smoothing.OnlineSmoother`, and the same results to the last bit.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> smoother = smooth(model, functionals={"s10": lambda t, x_prev, x: x_prev * x}, num_particles=200)
    >>> result = smoother.run(jax.random.key(0), jnp.array([0.3, -0.1, 0.5]), params={"phi": 0.9})
    >>> result.expectations["s10"].shape, result.sample(num_samples=5)["x"].shape
    ((), (5, 3))
    """

    def __init__(
        self,
        model: Callable,
        functionals: Mapping[str, Any] | None = None,
        num_particles: int = 1000,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
        resampling: str | Scheme = "systematic",
        ess_threshold: float = 0.5,
        log_bound: float | None = None,
        proposal: Callable | None = None,
        initial_proposal: Callable | None = None,
        look_ahead: Callable | None = None,
    ):
        how = (num_particles, backward, num_backward, resampling, ess_threshold, log_bound, proposal, initial_proposal, look_ahead)
        self.how = settings("smooth", model, functionals, *how)
        self._run = jax.jit(self._forward)
        self._sample = jax.jit(self._backward, static_argnums=5)

    def run(self, rng_key: jax.Array, *args: Any, params: Mapping[str, Any] | None = None, **kwargs: Any) -> SmoothingResult:
        """Smooth one series.

        :param args: with ``kwargs``, the arguments of the model.
        :param params: constrained values of the sites before the scan that are not part of the state.
        :raises ModelError: if the model has no state-space form, or its states do not suffice for a backward kernel.
        :raises ArgumentError: if a parameter is NaN or outside of its support, or a bound on the transition density is missing or
            turned out to be too low.
        """
        check_key("smooth: rng_key", rng_key)
        check_call("smooth: model", self.how.model, args, kwargs)
        check_arrays("smooth:", args, kwargs)
        refuse_open_handlers("smooth.run")
        params = parameters("smooth", params)
        state, found, infos, first, misplaced = self._run(rng_key, params, args, kwargs)
        check_inside("smooth", misplaced, params)
        check_excess(state.tally)
        return SmoothingResult(
            log_evidence=state.log_evidence,
            expectations=found,
            ess=infos.ess,
            resampled=infos.resampled,
            log_evidence_increments=infos.log_increment,
            log_evidence_initial=first,
            fallbacks=state.tally.fallbacks,
            model=self.how.model,
            args=args,
            kwargs=kwargs,
            params=params,
            rng_key=rng_key,
            draw=self.draw,
            how=self.how.told(),
        )

    def draw(self, rng_key, filter_key, params, args, kwargs, num_samples: int) -> dict[str, jax.Array]:
        """Trajectories drawn backward through the particles of the run that began with ``filter_key``; see
        :meth:`~ppl_ext.smoothing.report.SmoothingResult.sample`."""
        check_count("sample: num_samples", num_samples)
        values, tally = self._sample(rng_key, filter_key, params, args, kwargs, num_samples)
        check_excess(tally)
        return values

    def _forward(self, rng_key, params, args, kwargs):
        space, functional = self.how.begin(params, args, kwargs)
        state, _, first = begin(rng_key, params, self.how, space, functional)

        def body(state: SmootherState, x: Any) -> tuple[SmootherState, Info]:
            state, info, _ = step(self.how, space, functional, state, x)
            return state, info._replace(ancestors=info.ancestors[:0])  # kept, they would be N numbers a step

        state, infos = jax.lax.scan(body, state, space.lowered.xs)
        return state, expectations(state), infos, first.log_increment, outside(space.lowered)

    def _backward(self, rng_key, filter_key, params, args, kwargs, num_samples: int) -> tuple[dict[str, jax.Array], Tally]:
        space, _ = self.how.begin(params, args, kwargs)
        path, tally = trajectories(rng_key, filter_key, self.how, params, space, num_samples)
        return values_of(path), tally
