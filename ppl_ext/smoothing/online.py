"""Smoothing of a stream: state O(N), one step at a time. The batch form scans the same step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_key, described
from ppl_ext.runtime.constants import compiled, odd_data_blamed
from ppl_ext.runtime.outside import Outside, reading, seen_by, still_there
from ppl_ext.runtime.results import as_html, number
from ppl_ext.runtime.sharding import along
from ppl_ext.runtime.verdict import Verdict
from ppl_ext.smoothing.additive_statistic import Statistic, advance, centre, estimate, start
from ppl_ext.smoothing.backward import BackwardKernel, Tally
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.settings import Options, settings
from ppl_ext.smoothing.space import Clouds, Space, terms
from ppl_ext.state_space import filtering
from ppl_ext.state_space.extinction import is_extinct, warn_extinct
from ppl_ext.state_space.resampling import Scheme
from ppl_ext.state_space.streams import check_streams, time_slice

TOLERANCE = 1e-3
"""Nats by which rounding may carry a density above its bound."""


class SmootherState(NamedTuple):
    """Everything that a stream needs to go on: a pytree of arrays, O(N), which can be saved and loaded.

    :param filter: of :mod:`ppl_ext.state_space.filtering`: key, particles, weights, evidence, time.
    :param statistic: values of the functionals.
    :param tally: of backward draws.
    :param seen: no array: what the programs read from outside of their arguments when the stream began.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(0.6 * x_prev, 0.8))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> from ppl_ext.smoothing import OnlineSmoother
    >>> state = OnlineSmoother(model, num_particles=10).init(jax.random.key(0), 0.0)
    >>> state.filter.log_weights.shape, int(state.filter.time), float(state.log_evidence)
    ((10,), 0, 0.0)
    """

    filter: filtering.State
    params: dict[str, jax.Array]
    statistic: Statistic
    tally: Tally
    seen: Outside | None = None

    @property
    def log_evidence(self) -> jax.Array:
        """log p(y_1, ..., y_t) so far."""
        return self.filter.log_evidence.value


def begin(
    rng_key: jax.Array, space: Space, frozen: dict[str, jax.Array] | None = None
) -> tuple[SmootherState, dict[str, jax.Array], filtering.Info]:
    """The state before the first step, the initial sites of its particles, and what their weights are like.

    :param frozen: initial sites of the first particle, in a conditional run.
    """
    state, sites, info = filtering.begin(space.lowered, space.rules, rng_key, frozen=frozen)
    statistic = centre(start(space.first_values(state.particles, sites)), state.log_weights)
    tally = Tally(jnp.zeros((), jnp.int32), jnp.full((), -jnp.inf))
    return SmootherState(state, {}, statistic, tally), sites, info


def step(
    space: Space, state: SmootherState, inputs: Any, frozen: dict[str, jax.Array] | None = None
) -> tuple[SmootherState, filtering.Info]:
    """One observation more: the new state, and what the filter says of the step.

    :param frozen: latent sites of the first particle, in a conditional run.
    """
    old = filtering.whole_weights(space.rules, state.filter)
    new, info = filtering.advance(space.lowered, space.rules, old, inputs, frozen=frozen)
    statistic, tally = state.statistic, state.tally
    if space.functional is not None:
        back_key = jax.random.fold_in(old.key, 0xB4C)  # the filter splits this key in three
        before, after = old.particles.carry, new.particles
        pairs = space.pairs(Clouds(before, old.log_weights, after.sites, info.ancestors), inputs)
        increments = terms(space.functional.step, inputs, before, after)
        statistic, seen = advance(back_key, statistic, space.backward, pairs, increments, space.num_backward)
        statistic = centre(
            statistic._replace(values=along(space.rules.mesh, statistic.values)), new.log_weights
        )
        tally = Tally(
            tally.fallbacks + seen.fallbacks.astype(jnp.int32), jnp.maximum(tally.excess, seen.excess)
        )
    return state._replace(filter=new, statistic=statistic, tally=tally), info


def scanned(
    rng_key: jax.Array, space: Space, keep: Callable, through: dict[str, jax.Array] | None = None
) -> tuple[SmootherState, dict[str, jax.Array], filtering.Info, Any]:
    """The batch form: :func:`begin`, then :func:`step` scanned over the inputs. Returns the last state, the
    initial sites of the particles and what their weights are like, and of each step what ``keep`` makes of
    the state before, that after, and what the filter says.

    :param through: a trajectory that the first particle follows.
    """
    first, rest = filtering.apart(space.lowered, through)

    def body(state: SmootherState, at: Any) -> tuple[SmootherState, Any]:
        new, info = step(space, state, *at)
        return new, keep(state, new, info)

    state, sites, info = begin(rng_key, space, first)
    state, kept = jax.lax.scan(body, state, (space.lowered.xs, rest))
    return state, sites, info, kept


def numbered(state: SmootherState, inputs: Any) -> Any:
    """Inputs with the step's number in the stream, where each slice is the first of its series."""
    return inputs._replace(number=state.filter.time)


class OnlineResult(NamedTuple):
    """What is known of the stream so far.

    :param log_evidence: log p(y_1, ..., y_t).
    :param expectations: by functional.
    :param num_steps: t.
    :param fallbacks: backward rows that were zero throughout.

    >>> # of OnlineSmoother.result
    >>> result = OnlineResult(jnp.array(-9.5), {"square": jnp.array(12.0)}, jnp.array(4), jnp.array(0))
    >>> float(result.expectations["square"] / result.num_steps)  # additive functionals grow with t
    3.0
    """

    log_evidence: jax.Array
    expectations: dict[str, Any]
    num_steps: jax.Array
    fallbacks: jax.Array

    def __repr__(self) -> str:
        known = f"log_evidence={number(self.log_evidence)}, expectations={[*self.expectations]}"
        return f"OnlineResult({known}, num_steps={number(self.num_steps)})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.smoothing.verdicts import of_stream

        return of_stream(self)

    def summary(self) -> str:
        from ppl_ext.smoothing.summaries import of_stream

        return of_stream(self)

    def print_summary(self) -> None:
        """Print the summary."""
        print(f"{self.summary()}\n{self.verdict()}")

    def _repr_html_(self) -> str:
        return as_html(f"{self.summary()}\n{self.verdict()}")

    def to_arviz(self) -> Any:
        """The ArviZ report: ``estimates`` with the log evidence, the expectations and how many steps they are
        of. No ``posterior``: a stream keeps no trajectories."""
        from ppl_ext.smoothing.arviz_reports import of_stream

        return of_stream(self)


class OnlineSmoother:
    r"""Filter a stream and carry smoothed expectations of additive functionals along, in memory that does not
    grow.

    .. math:: \mathbb{E}\Bigl[\sum_{s \le t} \tilde h_s(x_{s-1}, x_s) \Bigm| y_{1:t}\Bigr]

    The model is the batch model; it is called with one time slice after another, each a series of length one.
    A scan that runs backward begins at the last observation, which a stream does not have: it is refused.

    :param model: a NumPyro model with one ``scan``, whose data arguments are series.
    :param functionals: by name, functions ``(t, x_prev, x)`` of the carry before and after a step, or those
        of :mod:`ppl_ext.smoothing.additive`.
    :param num_particles: N.
    :param backward: ``"mcmc"``, ``"dense"``, ``"hybrid"``, ``"path"``, or a kernel of
        :mod:`ppl_ext.smoothing.backward`.
    :param num_backward: backward draws a particle and step; with one the variance grows as with ``"path"``.
    :param resampling: a scheme of :mod:`ppl_ext.state_space.resampling`.
    :param ess_threshold: resample where the effective sample size is below this share of N.
    :param log_bound: of the log transition density, for ``"hybrid"``, if the model's laws do not give it.
    :param proposal: guided filter: a program ``proposal(parameters, carry, x)`` that draws the step's sites,
        given a particle's carry and the scan's input; the backward law does not depend on it.
    :param initial_proposal: the same for the initial sites, of parameters.
    :param look_ahead: auxiliary filter: ``look_ahead(parameters, carry, x)``, the log of a positive guess at
        p(y_t | carry).
    :param mesh: devices over which the particles are spread,
        ``jax.make_mesh((8,), ("particles",), axis_types=(AxisType.Auto,))``; N is then a multiple of their
        number.
    :raises ArgumentError: for options out of range; from :meth:`init`, for parameters that are not the
        model's or outside of their support.
    :raises ModelError: from :meth:`init`, if the model has no state-space form, or its states do not suffice
        for a backward kernel.

    Source: Olsson and Westerborn 2017, algorithm 2 (PaRIS).

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> online = OnlineSmoother(model, {"square": lambda t, x_prev, x: x**2}, num_particles=200)
    >>> state = online.init(jax.random.key(0), params={"phi": 0.9})
    >>> for y_t in [0.3, -0.1, 0.5]:
    ...     state = online.step(state, y_t)
    >>> result = online.result(state)
    >>> int(result.num_steps), bool(0.8 < result.expectations["square"] < 2.0)
    (3, True)
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
    ):
        moves = proposal, initial_proposal, look_ahead
        options = Options(
            num_particles, backward, num_backward, resampling, ess_threshold, log_bound, *moves, mesh
        )
        self._how = settings("OnlineSmoother", model, functionals, options)
        self._begin = compiled(self._first, 3, slices=time_slice)
        self._step = compiled(self._next, 2, donate=1, slices=time_slice)
        self._result = jax.jit(expectations)

    def init(
        self, rng_key: jax.Array, *args: Any, params: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """The state before the first observation. What the model reads from outside of its arguments is read
        here; if it changes while a stream goes on, this stream goes on with what was read, and one that
        begins later with what is there then.

        :param args: with ``kwargs``, one time slice as :meth:`step` takes it, for its shapes. Without it the
            particles are made by the first step.
        :param params: constrained values of the sites before the scan that are not part of the state.
        """
        check_key("OnlineSmoother.init: rng_key", rng_key)
        params = parameters("OnlineSmoother.init", params)
        if not args and not kwargs:
            return _Waiting(jnp.array(rng_key), params)
        with odd_data_blamed("OnlineSmoother.init:", args, kwargs), reading(self._how) as seen:
            state, misplaced = self._begin(seen, rng_key, params, args, kwargs)
        check_inside("OnlineSmoother.init", misplaced, params)
        check_streams(self._how.model, *self._begin.arguments(seen, args, kwargs), params)
        return state._replace(seen=seen)

    def step(self, state: Any, *args: Any, **kwargs: Any) -> SmootherState:
        """The state with one time slice more. ``state`` is donated: its memory is reused, so it cannot be
        used again.

        :raises ModelError: if what the model reads from outside has changed since the stream began, and steps
            on data of this shape were not compiled before.
        """
        if not isinstance(state, SmootherState | _Waiting):
            raise ArgumentTypeError(
                f"OnlineSmoother.step: state must be what init or step returned, got {described(state)}."
            )
        with odd_data_blamed("OnlineSmoother.step:", args, kwargs):
            if isinstance(state, _Waiting):
                state = self.init(state.rng_key, *args, params=state.params, **kwargs)
            with seen_by(state.seen, self._how) as seen:
                return self._step(seen, state._replace(seen=seen), args, kwargs)

    def result(self, state: SmootherState) -> OnlineResult:
        """Estimates so far. After a step that no particle survived, which a warning names, the evidence is 0
        and expectations are NaN.

        :raises ArgumentError: if the bound on the transition density turned out to be too low.
        """
        if not isinstance(state, SmootherState):
            raise ArgumentTypeError(
                f"OnlineSmoother.result: state must be what step returned, got {described(state)}."
            )
        check_excess(state.tally)
        if is_extinct(state.log_evidence):
            died, num = int(state.filter.died), self._how.num_particles
            place = f"step {died - 1}" if died else "what is observed before the scan"
            warn_extinct("OnlineSmoother", place, num, int(state.filter.num_nan))
        return OnlineResult(state.log_evidence, self._result(state), state.filter.time, state.tally.fallbacks)

    def _first(self, seen: Outside, rng_key, params, args, kwargs):
        space = self._how.begin(params, args, kwargs)
        return begin(rng_key, space)[0]._replace(params=params), outside(space.lowered)

    def _next(self, seen: Outside, state: SmootherState, args, kwargs):
        still_there("OnlineSmoother.step", seen, self._how)
        space = self._how.begin(state.params, args, kwargs)
        xs = space.lowered.xs
        return jax.lax.scan(lambda s, x: (step(space, s, numbered(s, x))[0], None), state, xs)[0]


class _Waiting(NamedTuple):
    """Before the first observation, where nothing says yet what the data look like."""

    rng_key: jax.Array
    params: dict[str, jax.Array]


def expectations(state: SmootherState) -> dict[str, Any]:
    """Expectations of the functionals; NaN where a bound was exceeded, for those who run it inside a trace,
    where nothing can be raised.
    """
    found = estimate(state.statistic, state.filter.log_weights) or {}
    return jax.tree.map(lambda x: jnp.where(state.tally.excess > TOLERANCE, jnp.nan, x), found)


def check_excess(tally: Tally) -> None:
    """:raises ArgumentError: if a pair had a density above its bound."""
    if not isinstance(tally.excess, jax.core.Tracer) and float(tally.excess) > TOLERANCE:
        raise ArgumentError(
            "The bound on the log transition density is too low: a pair exceeded it by "
            f"{float(tally.excess):.3g} nats, so backward draws are not from their law. Pass a larger "
            "log_bound, or use backward='mcmc'."
        )
