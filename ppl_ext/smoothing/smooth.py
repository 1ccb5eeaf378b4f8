"""Smoothing of a whole series: the stream's step, scanned."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.runtime.arguments import check_call, check_count, check_flag, check_key
from ppl_ext.runtime.constants import compiled, odd_data_blamed
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.sharding import gathered
from ppl_ext.smoothing.additive import Context, joined
from ppl_ext.smoothing.backward import BackwardKernel, Tally
from ppl_ext.smoothing.backward.kernel import no_bound_needed
from ppl_ext.smoothing.online import SmootherState, check_excess, expectations, scanned
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.quantiles import weighted_quantiles
from ppl_ext.smoothing.report import SmoothingResult
from ppl_ext.smoothing.settings import Options, settings
from ppl_ext.smoothing.trajectories import trajectories
from ppl_ext.state_space.extinction import is_broken, is_extinct, lost, shown, warn_extinct, where_lost
from ppl_ext.state_space.filtering import Info
from ppl_ext.state_space.gaps import no_exact_answer, refuse_raw, without_gaps
from ppl_ext.state_space.model import StateSpace, lower
from ppl_ext.state_space.resampling import Scheme, weights_of


class smooth:
    """Filter a series and smooth additive functionals of its states: arguments as for
    :class:`~ppl_ext.smoothing.OnlineSmoother`, and the same results to the last bit.

    ``backward="exact"`` takes no particles: finite states are smoothed by forward-backward sums (up to 4096
    joint states, any functional), linear-Gaussian ones by Kalman's recursions (functionals of degree two at
    most, such as scores, moments and lag covariances). Which it is, is read off the model; the result is of
    the same type, without what only particles have (``ess`` and ``resampled`` are None). With
    ``parallel=True`` all times are smoothed at once, as :class:`~ppl_ext.algorithms.ExactFilter` says: the
    same numbers to rounding, faster on accelerators, slower on a CPU. Trajectories are drawn a step after the
    other all the same.

    A scan with ``reverse=True`` is run from its last inputs to its first, and everything by time is returned
    in the order of the inputs, as NumPyro stacks it; a functional's ``t`` is the number of the input, and
    ``x_prev`` the state that the step received, that of t + 1.

    :raises ArgumentError: for options out of range; see :meth:`run` for what the model may lack.

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

    Source: Olsson and Westerborn 2017, algorithm 2 (PaRIS).
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
        mesh: Mesh | None = None,
        parallel: bool = False,
    ):
        self.exact, self.parallel = isinstance(backward, str) and backward == "exact", parallel
        kernel = "path" if self.exact else backward
        if self.exact and mesh is not None:
            raise ArgumentError(
                "smooth: backward='exact' has no particles that a mesh could hold. Leave mesh out."
            )
        check_flag("smooth: parallel", parallel)
        if parallel and not self.exact:
            raise ArgumentError(
                "smooth: parallel=True is for backward='exact'; particles move a step after the other. Leave "
                "it out, or take backward='exact'."
            )
        moves = proposal, initial_proposal, look_ahead
        options = Options(
            num_particles, kernel, num_backward, resampling, ess_threshold, log_bound, *moves, mesh
        )
        self.how = settings("smooth", model, functionals, options)
        # What the programs read from outside is an argument of what is compiled, so that it is compiled anew
        # when that changes.
        self._run = compiled(self._exactly if self.exact else self._forward, 3, (5,))
        self._sample = compiled(self._backward, 3, (5, 6))
        self._quantiles = compiled(self._filtered, 3, (6,))

    def run(
        self, rng_key: jax.Array, *args: Any, params: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> SmoothingResult:
        """Smooth one series.

        Where no particle survives a step, a warning names it: the evidence is 0, ``ess`` is 0 there, and
        everything that follows from it is NaN (integers are handed out as real numbers then; inside a trace,
        as the least integer).

        :param args: with ``kwargs``, the arguments of the model.
        :param params: constrained values of the sites before the scan that are not part of the state.
        :raises ModelError: if the model has no state-space form, its states do not suffice for a backward
            kernel, or ``"exact"`` has no exact answer for the model or for a functional of it.
        :raises ArgumentError: if a parameter is NaN or outside of its support, or a bound on the transition
            density is missing or turned out to be too low.
        """
        check_key("smooth: rng_key", rng_key)
        check_call("smooth: model", self.how.model, args, kwargs)
        refuse_open_handlers("smooth.run")
        params = parameters("smooth", params)
        with odd_data_blamed("smooth:", args, kwargs), reading(self.how) as seen:
            found, misplaced, tally, inexact, num_nan = self._run(
                seen, rng_key, params, args, kwargs, without_gaps(args, kwargs)
            )
        check_inside("smooth", misplaced, params)
        check_excess(tally)
        for name, is_wrong in inexact.items():
            if not isinstance(is_wrong, jax.core.Tracer) and bool(is_wrong):
                from ppl_ext.smoothing.exact import no_closed_form

                raise ModelError(no_closed_form(name))
        if is_broken(found["log_evidence"]):
            self._explain(params, args, kwargs)
        if is_extinct(found["log_evidence"]):
            place = where_lost(found["log_evidence_initial"], found["log_evidence_increments"])
            warn_extinct("smooth", place, None if self.exact else self.how.num_particles, int(num_nan))
        return SmoothingResult(
            **found,
            fallbacks=tally.fallbacks,
            model=self.how.model,
            args=args,
            kwargs=kwargs,
            params=params,
            rng_key=rng_key,
            draw=partial(self.draw, seen),
            how={"backward": "exact"} if self.exact else self.how.described(),
            quantiles=partial(self.quantiles, seen),
            outside=seen,
        )

    def _explain(self, params, args, kwargs) -> None:
        """:raises ModelError: if a gap in the data is why there is no evidence."""
        if without_gaps(args, kwargs):
            return
        refuse_raw("smooth", lambda: self._lowered(params, args, kwargs, False))
        space = self._lowered(params, args, kwargs, False)
        if self.exact and space.imputed and not _has_exact_answer(space) and bool(space.has_gap()):
            raise ModelError(no_exact_answer(next(iter(space.imputed))))

    def draw(
        self, seen: Outside, rng_key, filter_key, params, args, kwargs, num_samples: int
    ) -> dict[str, jax.Array]:
        """Trajectories drawn backward through the particles of the run that began with ``filter_key``; see
        :meth:`~ppl_ext.smoothing.report.SmoothingResult.sample`."""
        check_count("sample: num_samples", num_samples)
        seen.check("sample", self.how)
        values, tally = self._sample(
            seen, (rng_key, filter_key), params, args, kwargs, num_samples, without_gaps(args, kwargs)
        )
        check_excess(tally)
        return shown(values)

    def quantiles(
        self, seen: Outside, filter_key, params, args, kwargs, levels: jax.Array
    ) -> dict[str, jax.Array]:
        """Quantiles of the filtering laws; see :meth:`~ppl_ext.smoothing.report.SmoothingResult.filtered`."""
        seen.check("filtered", self.how)
        return shown(
            self._quantiles(seen, filter_key, params, args, kwargs, levels, without_gaps(args, kwargs))
        )

    def _lowered(self, params, args, kwargs, whole: bool):
        return lower(self.how.model, args, kwargs, params, whole=whole)

    def _exactly(self, seen: Outside, rng_key, params, args, kwargs, whole: bool):
        exact = _exact(self._lowered(params, args, kwargs, whole), self.parallel)

        def lowered(params):
            at = self._lowered(params, args, kwargs, whole)
            return at.for_sums() if exact.lowered.imputed else at.as_observed()

        found, wrong = exact.expectations(joined(self.how.functionals, Context(lowered, exact.space)))
        found = {
            n: jax.tree.map(lambda v, n=n: jnp.where(wrong.get(n, False), jnp.nan, v), x)
            for n, x in found.items()
        }
        s = exact.smoothed
        fields = {
            "log_evidence": s.log_evidence,
            "expectations": found,
            "log_evidence_increments": exact.lowered.ordered(s.log_increments),
            "log_evidence_initial": s.log_initial,
        }
        return fields, outside(exact.space), no_bound_needed(jnp.zeros((), jnp.int32)), wrong, 0

    def _forward(self, seen: Outside, rng_key, params, args, kwargs, whole: bool):
        space = self.how._replace(whole=whole).begin(params, args, kwargs)

        def keep(before: SmootherState, after: SmootherState, info: Info) -> Info:
            return info._replace(ancestors=info.ancestors[:0])  # kept, they would be N numbers a step

        state, _, first, infos = scanned(rng_key, space, keep)
        infos = space.lowered.ordered(infos)
        fields = {
            "log_evidence": state.log_evidence,
            "expectations": expectations(state),
            "log_evidence_increments": infos.log_increment,
            "log_evidence_initial": first.log_increment,
            "ess": infos.ess,
            "resampled": infos.resampled,
        }
        return gathered(
            self.how.rules.mesh, (fields, outside(space.lowered), state.tally, {}, state.filter.num_nan)
        )

    def _filtered(self, seen: Outside, filter_key, params, args, kwargs, levels, whole: bool):
        if self.exact:
            return _exact(self._lowered(params, args, kwargs, whole), self.parallel).quantiles(levels)
        space = self.how._replace(whole=whole).begin(params, args, kwargs)._replace(functional=None)

        def keep(before: SmootherState, after: SmootherState, info: Info) -> dict[str, jax.Array]:
            state = after.filter
            weights = weights_of(state.log_weights)

            def of(values):
                flat = weighted_quantiles(values.reshape(len(values), -1), weights, levels)
                return flat.reshape(len(levels), *values.shape[1:])

            own = {n: x for n, x in state.particles.sites.items() if n not in space.lowered.imputed}
            return lost(jax.tree.map(of, own), state.died >= 0)

        found = space.lowered.ordered(scanned(filter_key, space, keep)[-1])
        return gathered(self.how.rules.mesh, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), found))

    def _backward(
        self, seen: Outside, keys, params, args, kwargs, num_samples: int, whole: bool
    ) -> tuple[dict[str, jax.Array], Tally]:
        if self.exact:
            exact = _exact(self._lowered(params, args, kwargs, whole), self.parallel)
            return exact.draws(keys[0], num_samples), no_bound_needed(jnp.zeros((), jnp.int32))
        space = self.how._replace(whole=whole).begin(params, args, kwargs)
        rng_key, filter_key = keys
        path, tally = trajectories(rng_key, filter_key, space, num_samples)
        return gathered(self.how.rules.mesh, (jax.vmap(space.lowered.ordered_values)(path), tally))


# Exact answers are asked for by name: nobody who takes particles loads them.


def _exact(space: StateSpace, parallel: bool):
    from ppl_ext.smoothing.exact import Exact

    return Exact(space, parallel)


def _has_exact_answer(space: StateSpace) -> bool:
    from ppl_ext.state_space.exact import exact_form

    return exact_form(space)[1] is not None
