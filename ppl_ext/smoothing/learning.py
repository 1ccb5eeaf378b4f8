r"""Parameters of a state-space model by its score: ascent on a series, and recursive maximum likelihood on a stream.

.. math:: \theta \leftarrow \theta + \gamma_k \, \hat\nabla_\theta \log p_\theta(y_{1:T})

with θ unconstrained, and the gradient by Fisher's identity from particles (:func:`ppl_ext.smoothing.additive.score`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppl_ext.algorithms.gaps import refuse_raw, without_gaps
from ppl_ext.algorithms.state_space import lower
from ppl_ext.algorithms.streams import check_streams, time_slice
from ppl_ext.arguments import check_call, check_count, check_flag, check_function, check_key, check_number, check_values, told
from ppl_ext.constants import compiled, odd_data_blamed
from ppl_ext.diagnostics.sites import refuse_open_handlers
from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.outside import Outside, reading, seen_by, still_there
from ppl_ext.smoothing.additive import constrained, score, sufficient_statistics, unconstrained
from ppl_ext.smoothing.backward import BackwardKernel
from ppl_ext.smoothing.conditional import conditional_paris
from ppl_ext.smoothing.online import SmootherState, begin, numbered, settings, step
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.trajectories import path_of, trajectories, values_of


class ScoreAscent:
    """Maximum likelihood by stochastic ascent: each step one conditional PaRIS sweep on the path that the last one drew.

    The path is kept warm, so that a few particles give a score with little bias from the second step on (Cardoso et al. 2023, section 4).

    :param optimizer: an optax transformation; it is given minus the score.
    :param num_particles: N, at least 2.
    :param average_from: the share of the steps after which iterates are averaged (Polyak and Ruppert); 1 for the last iterate alone.
    :param prior: whether the log prior, in constrained space, is ascended too.
    :raises ArgumentError: for fewer than 2 particles, or a share outside of [0, 1]; see :meth:`run` for the rest.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> ascent = ScoreAscent(model, optax.adam(0.1), num_particles=20)
    >>> result = ascent.run(jax.random.key(0), 200, jnp.array([2.3, 1.9, 2.5, 2.1]), params={"mean": 0.0})
    >>> bool(abs(result.params["mean"] - 2.2) < 0.2)
    True
    """

    def __init__(
        self,
        model: Callable,
        optimizer: optax.GradientTransformation,
        num_particles: int = 100,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
        average_from: float = 0.5,
        prior: bool = False,
    ):
        self._how = settings("ScoreAscent", model, {"score": score()}, num_particles, backward, num_backward, "systematic", 0.5, None)
        if num_particles < 2:
            raise ArgumentError("ScoreAscent: num_particles must be at least 2: one of them is frozen on the path.")
        if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
            raise ArgumentTypeError(f"ScoreAscent: optimizer must be an optax transformation, got {told(optimizer)}.")
        check_number("ScoreAscent: average_from", average_from, at_least=0.0)
        if average_from > 1.0:
            raise ArgumentError(f"ScoreAscent: average_from must be a share of the steps, from 0 to 1, got {average_from}.")
        check_flag("ScoreAscent: prior", prior)
        self._optimizer, self._average_from, self._prior = optimizer, float(average_from), bool(prior)
        self._run = compiled(self._ascend, 3, (5, 6))

    def run(self, rng_key: jax.Array, num_steps: int, *args: Any, params: Mapping[str, Any], **kwargs: Any) -> "Learned":
        """Ascend from ``params``, constrained values of all parameters.

        :raises NonFiniteError: if a score is not finite.
        :raises ModelError: see :func:`~ppl_ext.smoothing.additive.score`.
        """
        check_key("ScoreAscent: rng_key", rng_key)
        check_count("ScoreAscent: num_steps", num_steps)
        check_call("ScoreAscent: model", self._how.model, args, kwargs)
        refuse_open_handlers("ScoreAscent.run")
        params = parameters("ScoreAscent", params, floating=True)
        whole = without_gaps(args, kwargs)
        with odd_data_blamed("ScoreAscent:", args, kwargs), reading(self._how, self._optimizer) as seen:
            (iterates, scores, final), misplaced = self._run(seen, rng_key, params, args, kwargs, int(num_steps), whole)
        check_inside("ScoreAscent", misplaced, params)
        for name, x in scores.items():
            if not np.isfinite(x).all():
                if not whole:
                    refuse_raw("ScoreAscent", lambda: lower(self._how.model, args, kwargs, params))
                at = int(np.argmin(np.isfinite(np.asarray(x)).reshape(num_steps, -1).all(1)))
                raise NonFiniteError(
                    f"The score of '{name}' is not finite at step {at}. Begin nearer, or use a smaller learning rate. (Where no particle "
                    "survives the data, ppl_ext.smoothing.smooth at the parameters of that step says which of them.)"
                )
        return Learned(final, iterates, scores)

    def _ascend(self, seen: Outside, rng_key, params, args, kwargs, num_steps: int, whole: bool):
        how, model = self._how._replace(whole=whole), self._how.model
        at_start = lower(model, args, kwargs, params)
        theta = unconstrained(at_start)
        path_key, filter_key, sweep_key = jax.random.split(rng_key, 3)
        space, _ = how.begin(params, args, kwargs)
        values = jax.tree.map(lambda x: x[0], values_of(trajectories(path_key, filter_key, how, params, space, 1)[0]))

        def body(state, key):
            theta, optimizer, values = state
            params = constrained(at_start, theta)
            space, functional = how.begin(params, args, kwargs)
            path = path_of(space.lowered, values)
            sweep = conditional_paris(key, space, space.lowered.xs, path, how.num_particles, how.backward, how.num_backward, functional)
            slope = sweep.estimates["score"]
            if self._prior:
                prior = jax.grad(lambda theta: lower(model, args, kwargs, constrained(at_start, theta)).log_prior)(theta)
                slope = jax.tree.map(jnp.add, slope, prior)
            updates, optimizer = self._optimizer.update(jax.tree.map(jnp.negative, slope), optimizer, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, optimizer, values_of(sweep.path)), (theta, slope)

        start = theta, self._optimizer.init(theta), values
        _, (thetas, slopes) = jax.lax.scan(body, start, jax.random.split(sweep_key, num_steps))
        begun = min(int(self._average_from * num_steps), num_steps - 1)
        final = constrained(at_start, jax.tree.map(lambda x: x[begun:].mean(0), thetas))
        return (jax.vmap(lambda theta: constrained(at_start, theta))(thetas), slopes, final), outside(at_start)


@dataclass(frozen=True, eq=False)
class Learned:
    """What :meth:`ScoreAscent.run` found.

    :param params: the estimate, constrained.
    :param iterates: by step, (num_steps, ...).
    :param scores: in unconstrained parameters.

    >>> found = Learned({"mean": jnp.array(2.0)}, {"mean": jnp.array([0.0, 1.5, 2.5])}, {"mean": jnp.array([3.0, 0.5, -0.5])})
    >>> bool(found.iterates["mean"][1:].mean() == found.params["mean"])  # as ScoreAscent.run with average_from=1/3 returns it
    True
    """

    params: dict[str, jax.Array]
    iterates: dict[str, jax.Array]
    scores: dict[str, jax.Array]


class LearnerState(NamedTuple):
    """``smoother``: particles and statistics, with the present parameters in ``params``. ``theta``: unconstrained. ``average``: the
    statistic that the next parameters are made from (online EM), or their running mean (recursive maximum likelihood).

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.LogNormal(0.0, 1.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> learner = RecursiveMaximumLikelihood(model, lambda t: t**-0.6, num_particles=10)
    >>> state = learner.init(jax.random.key(0), 0.0, params={"mean": 1.0})
    >>> float(state.smoother.params["mean"]), float(state.theta["mean"])  # a positive parameter, and its logarithm
    (1.0, 0.0)
    """

    smoother: SmootherState
    theta: dict[str, jax.Array]
    average: Any


class _Online:
    """What both stream learners share."""

    def __init__(self, where, model, functionals, num_particles, backward, num_backward, step_size):
        self._how = settings(where, model, functionals, num_particles, backward, num_backward, "systematic", 0.5, None)
        check_function(f"{where}: step_size", step_size)
        check_call(f"{where}: step_size, called with the number of the step:", step_size, (1.0,), {})
        self._where, self._step_size = where, step_size
        self._begin = compiled(self._first, 3, slices=time_slice)
        self._step = compiled(self._next, 2, donate=1, slices=time_slice)

    def init(self, rng_key: jax.Array, *args: Any, params: Mapping[str, Any], **kwargs: Any) -> LearnerState:
        """The state before the first observation. ``args`` and ``kwargs``: one time slice, for its shapes; ``params``: where to begin."""
        check_key(f"{self._where}.init: rng_key", rng_key)
        params = parameters(f"{self._where}.init", params, floating=True)
        with odd_data_blamed(f"{self._where}.init:", args, kwargs), reading(*self._programs()) as seen:
            state, misplaced = self._begin(seen, rng_key, params, args, kwargs)
        check_inside(f"{self._where}.init", misplaced, params)
        check_streams(self._how.model, *self._begin.arguments(seen, args, kwargs), params)
        return state._replace(smoother=state.smoother._replace(seen=seen))

    def step(self, state: LearnerState, *args: Any, **kwargs: Any) -> LearnerState:
        """One observation: filter it, then move the parameters. ``state`` is donated."""
        if not isinstance(state, LearnerState):
            raise ArgumentTypeError(f"{self._where}.step: state must be what init or step returned, got {told(state)}.")
        with odd_data_blamed(f"{self._where}.step:", args, kwargs), seen_by(state.smoother.seen, *self._programs()) as seen:
            return self._step(seen, state._replace(smoother=state.smoother._replace(seen=seen)), args, kwargs)

    def _programs(self) -> tuple:
        return self._how, self._step_size, getattr(self, "_maximize", None)

    def _first(self, seen: Outside, rng_key, params, args, kwargs):
        space, functional = self._how.begin(params, args, kwargs)
        smoother, _, _ = begin(rng_key, params, self._how, space, functional)
        return self._started(smoother, unconstrained(space.lowered)), outside(space.lowered)

    def _next(self, seen: Outside, state: LearnerState, args, kwargs):
        still_there(f"{self._where}.step", seen, *self._programs())
        space, functional = self._how.begin(state.smoother.params, args, kwargs)
        return self._moved(state, space, functional)

    def _started(self, smoother, theta) -> LearnerState:
        raise NotImplementedError

    def _moved(self, state, space, functional) -> LearnerState:
        raise NotImplementedError


class RecursiveMaximumLikelihood(_Online):
    r"""Follow the maximum of the likelihood along a stream.

    .. math:: \theta_t = \theta_{t-1} + \gamma_t \, \hat\nabla \log p(y_t \mid y_{<t})

    The gradient of one term is the change of the smoothed score from one step to the next (LeGland and Mevel 1997), whose mean over the
    particles is taken out at every step, so that nothing grows with time.

    :param step_size: t, counted from 1, to γ_t; its sum should diverge and that of its squares not, as ``lambda t: t**-0.6``.
    :param optimizer: an optax transformation for the scaled gradient; plain ascent by default.

    ``state.smoother.params`` holds the parameters, ``state.average`` their running mean over time.
    :raises ArgumentError: for counts below 1 or, from :meth:`init`, parameters that are not the model's or outside of their support.
    :raises ModelError: if the model has no state-space form, or its states do not suffice for a backward kernel.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> learner = RecursiveMaximumLikelihood(model, lambda t: t**-0.6, num_particles=100, backward="path")
    >>> state = learner.init(jax.random.key(0), 0.0, params={"mean": 0.0})
    >>> state = learner.step(state, 2.3)
    >>> bool(0.0 < state.smoother.params["mean"] < 2.3)  # on the way from 0 to what was seen
    True
    """

    def __init__(
        self,
        model: Callable,
        step_size: Callable,
        num_particles: int = 1000,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
    ):
        super().__init__("RecursiveMaximumLikelihood", model, {"score": score()}, num_particles, backward, num_backward, step_size)

    def _started(self, smoother, theta):
        return LearnerState(smoother, theta, smoother.params)

    def _moved(self, state, space, functional):
        x = numbered(state.smoother, space.lowered.inputs(0))
        before = state.smoother.statistic.shared
        smoother, _, _ = step(self._how, space, functional, state.smoother, x)
        # The mean that centring took out is the new term; the sum itself is of no interest.
        slope = jax.tree.map(jnp.subtract, smoother.statistic.shared, before)["score"]
        statistic = smoother.statistic._replace(shared=jax.tree.map(jnp.zeros_like, before), rest=jax.tree.map(jnp.zeros_like, before))
        time = smoother.filter.time.astype(jnp.result_type(float))
        theta = jax.tree.map(lambda a, g: a + self._step_size(time) * g, state.theta, slope)
        params = constrained(space.lowered, theta)
        average = jax.tree.map(lambda mean, x: mean + (x - mean) / time, state.average, params)
        return LearnerState(smoother._replace(params=params, statistic=statistic), theta, average)


class OnlineEM(_Online):
    r"""Expectation maximisation along a stream, for steps whose maximisation is closed.

    .. math:: \hat s_t = \mathbb{E}[(1 - \gamma_t)\, \hat s_{t-1} + \gamma_t\, s(x_{t-1}, x_t, y_t)], \qquad \theta_t = \bar\theta(\hat s_t)

    (Cappé 2011, equations 9 to 11), the expectation by PaRIS.

    :param statistics: ``(x_prev, x, inputs)`` to a pytree s, where ``inputs`` is what the scan hands to the step.
    :param maximize: that tree, averaged, to constrained parameters by name.
    :param step_size: t, counted from 1, to γ_t, as ``lambda t: t**-0.6``; γ_1 should be 1.
    :param wait: steps before the first maximisation.

    ``state.smoother.params`` holds the parameters, ``state.average`` the statistic.
    :raises ArgumentError: for counts below 1, or if ``maximize`` does not return the parameters in their shapes.
    :raises ModelError: if the model has no state-space form, or its states do not suffice for a backward kernel.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> learner = OnlineEM(model, lambda x_prev, x, y_t: y_t, lambda s: {"mean": s}, lambda t: 1 / t, 10, backward="path", wait=1)
    >>> state = learner.init(jax.random.key(0), 0.0, params={"mean": 0.0})
    >>> for y_t in [2.0, 3.0, 4.0]:
    ...     state = learner.step(state, y_t)
    >>> round(float(state.smoother.params["mean"]), 3)  # of a statistic that is seen no expectation has to be taken: the mean
    3.0
    """

    def __init__(
        self,
        model: Callable,
        statistics: Callable,
        maximize: Callable,
        step_size: Callable = lambda t: t**-0.6,
        num_particles: int = 1000,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
        wait: int = 20,
    ):
        check_function("OnlineEM: statistics", statistics)
        functionals = {"statistics": sufficient_statistics(statistics)}
        super().__init__("OnlineEM", model, functionals, num_particles, backward, num_backward, step_size)
        check_function("OnlineEM: maximize", maximize)
        check_call("OnlineEM: maximize, called with the averaged statistics:", maximize, (None,), {})
        check_count("OnlineEM: wait", wait)
        self._maximize, self._wait = maximize, int(wait)

    def _started(self, smoother, theta):
        return LearnerState(smoother, theta, smoother.statistic.shared["statistics"])

    def _moved(self, state, space, functional):
        x = numbered(state.smoother, space.lowered.inputs(0))
        rate = self._step_size((state.smoother.filter.time + 1).astype(jnp.result_type(float)))
        scaled = functional._replace(step=lambda *args: jax.tree.map(lambda term: rate * term, functional.step(*args)))
        old = state.smoother.statistic
        # All of it, values and what they share, shrinks by one factor; the new term then enters with the rest of the weight.
        shrunk = jax.tree.map(lambda v: (1.0 - rate) * v, old)
        smoother, _, _ = step(self._how, space, scaled, state.smoother._replace(statistic=shrunk), x)
        average = smoother.statistic.shared["statistics"]
        params = self._maximize(average)
        check_values("OnlineEM: maximize", params)
        if set(params) != set(state.smoother.params):
            raise ArgumentError(f"OnlineEM: maximize must return {sorted(state.smoother.params)}, got {sorted(params)}.")
        waits = smoother.filter.time < self._wait
        for name, x in state.smoother.params.items():
            if jnp.shape(params[name]) != x.shape:
                raise ArgumentError(f"OnlineEM: maximize must return '{name}' with the shape {x.shape}, got {jnp.shape(params[name])}.")
        params = {name: jnp.where(waits, x, jnp.asarray(params[name], x.dtype)) for name, x in state.smoother.params.items()}
        return LearnerState(smoother._replace(params=params), state.theta, average)
