r"""Parameters of a state-space model by its score: ascent on a series, and recursive maximum likelihood on a
stream.

.. math:: \theta \leftarrow \theta + \gamma_k \, \hat\nabla_\theta \log p_\theta(y_{1:T})

with θ unconstrained, and the gradient by Fisher's identity from particles
(:func:`ppl_ext.smoothing.additive.score`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import (
    check_call,
    check_count,
    check_function,
    check_key,
    check_values,
    described,
)
from ppl_ext.runtime.constants import compiled, odd_data_blamed
from ppl_ext.runtime.outside import Outside, reading, seen_by, still_there
from ppl_ext.smoothing.additive import score, sufficient_statistics
from ppl_ext.smoothing.backward import BackwardKernel
from ppl_ext.smoothing.fisher_score import constrained, unconstrained
from ppl_ext.smoothing.online import SmootherState, begin, numbered, step
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.settings import Options, settings
from ppl_ext.state_space.streams import check_streams, time_slice


class LearnerState(NamedTuple):
    """``smoother``: particles and statistics, with the present parameters in ``params``. ``theta``:
    unconstrained. ``average``: the statistic that the next parameters are made from (online EM), or their
    running mean (recursive maximum likelihood).

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
    >>> # a positive parameter, and its logarithm
    >>> float(state.smoother.params["mean"]), float(state.theta["mean"])
    (1.0, 0.0)
    """

    smoother: SmootherState
    theta: dict[str, jax.Array]
    average: Any


class _Online:
    """What both stream learners share."""

    def __init__(self, where, model, functionals, num_particles, backward, num_backward, step_size):
        self._how = settings(where, model, functionals, Options(num_particles, backward, num_backward))
        check_function(f"{where}: step_size", step_size)
        check_call(f"{where}: step_size, called with the number of the step:", step_size, (1.0,), {})
        self._where, self._step_size = where, step_size
        self._begin = compiled(self._first, 3, slices=time_slice)
        self._step = compiled(self._next, 2, donate=1, slices=time_slice)

    def init(self, rng_key: jax.Array, *args: Any, params: Mapping[str, Any], **kwargs: Any) -> LearnerState:
        """The state before the first observation. ``args`` and ``kwargs``: one time slice, for its shapes;
        ``params``: where to begin.
        """
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
            raise ArgumentTypeError(
                f"{self._where}.step: state must be what init or step returned, got {described(state)}."
            )
        with (
            odd_data_blamed(f"{self._where}.step:", args, kwargs),
            seen_by(state.smoother.seen, *self._programs()) as seen,
        ):
            return self._step(seen, state._replace(smoother=state.smoother._replace(seen=seen)), args, kwargs)

    def _programs(self) -> tuple:
        return self._how, self._step_size, getattr(self, "_maximize", None)

    def _first(self, seen: Outside, rng_key, params, args, kwargs):
        space = self._how.begin(params, args, kwargs)
        smoother = begin(rng_key, space)[0]._replace(params=params)
        return self._started(smoother, unconstrained(space.lowered)), outside(space.lowered)

    def _next(self, seen: Outside, state: LearnerState, args, kwargs):
        still_there(f"{self._where}.step", seen, *self._programs())
        return self._moved(state, self._how.begin(state.smoother.params, args, kwargs))

    def _started(self, smoother, theta) -> LearnerState:
        raise NotImplementedError

    def _moved(self, state, space) -> LearnerState:
        raise NotImplementedError


class RecursiveMaximumLikelihood(_Online):
    r"""Follow the maximum of the likelihood along a stream.

    .. math:: \theta_t = \theta_{t-1} + \gamma_t \, \hat\nabla \log p(y_t \mid y_{<t})

    The gradient of one term is the change of the smoothed score from one step to the next (LeGland and Mevel
    1997), whose mean over the particles is taken out at every step, so that nothing grows with time.

    :param step_size: t, counted from 1, to γ_t; its sum should diverge and that of its squares not, as
        ``lambda t: t**-0.6``.

    ``state.smoother.params`` holds the parameters, ``state.average`` their running mean over time.

    :raises ArgumentError: for counts below 1 or, from :meth:`init`, parameters that are not the model's or
        outside of their support.
    :raises ModelError: if the model has no state-space form, or its states do not suffice for a backward
        kernel.

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
        super().__init__(
            "RecursiveMaximumLikelihood",
            model,
            {"score": score()},
            num_particles,
            backward,
            num_backward,
            step_size,
        )

    def _started(self, smoother, theta):
        return LearnerState(smoother, theta, smoother.params)

    def _moved(self, state, space):
        x = numbered(state.smoother, space.lowered.inputs(0))
        before = state.smoother.statistic.shared
        smoother, _ = step(space, state.smoother, x)
        # The mean that centring took out is the new term; the sum itself is of no interest.
        slope = jax.tree.map(jnp.subtract, smoother.statistic.shared, before)["score"]
        statistic = smoother.statistic._replace(
            shared=jax.tree.map(jnp.zeros_like, before), rest=jax.tree.map(jnp.zeros_like, before)
        )
        time = smoother.filter.time.astype(jnp.result_type(float))
        theta = jax.tree.map(lambda a, g: a + self._step_size(time) * g, state.theta, slope)
        params = constrained(space.lowered, theta)
        average = jax.tree.map(lambda mean, x: mean + (x - mean) / time, state.average, params)
        return LearnerState(smoother._replace(params=params, statistic=statistic), theta, average)


class OnlineEM(_Online):
    r"""Expectation maximisation along a stream, for steps whose maximisation is closed.

    .. math:: \hat s_t = \mathbb{E}[(1 - \gamma_t)\, \hat s_{t-1} + \gamma_t\, s(x_{t-1}, x_t, y_t)], \qquad
        \theta_t = \bar\theta(\hat s_t)

    (Cappé 2011, equations 9 to 11), the expectation by PaRIS.

    :param statistics: ``(x_prev, x, inputs)`` to a pytree s, where ``inputs`` is what the scan hands to the
        step.
    :param maximize: that tree, averaged, to constrained parameters by name.
    :param step_size: t, counted from 1, to γ_t, as ``lambda t: t**-0.6``; γ_1 should be 1.
    :param wait: steps before the first maximisation.

    ``state.smoother.params`` holds the parameters, ``state.average`` the statistic.

    :raises ArgumentError: for counts below 1, or if ``maximize`` does not return the parameters in their
        shapes.
    :raises ModelError: if the model has no state-space form, or its states do not suffice for a backward
        kernel.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> statistic, maximised = lambda x_prev, x, y_t: y_t, lambda s: {"mean": s}
    >>> learner = OnlineEM(model, statistic, maximised, lambda t: 1 / t, 10, backward="path", wait=1)
    >>> state = learner.init(jax.random.key(0), 0.0, params={"mean": 0.0})
    >>> for y_t in [2.0, 3.0, 4.0]:
    ...     state = learner.step(state, y_t)
    >>> # of a statistic that is seen no expectation has to be taken: the mean
    >>> round(float(state.smoother.params["mean"]), 3)
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

    def _moved(self, state, space):
        x, functional = numbered(state.smoother, space.lowered.inputs(0)), space.functional
        rate = self._step_size((state.smoother.filter.time + 1).astype(jnp.result_type(float)))
        scaled = functional._replace(
            step=lambda *args: jax.tree.map(lambda term: rate * term, functional.step(*args))
        )
        old = state.smoother.statistic
        # All of it, values and what they share, shrinks by one factor; the new term then enters with the rest
        # of the weight.
        shrunk = jax.tree.map(lambda v: (1.0 - rate) * v, old)
        scaled = space._replace(functional=scaled)
        smoother, _ = step(scaled, state.smoother._replace(statistic=shrunk), x)
        average = smoother.statistic.shared["statistics"]
        params = self._maximize(average)
        check_values("OnlineEM: maximize", params)
        if set(params) != set(state.smoother.params):
            raise ArgumentError(
                f"OnlineEM: maximize must return {sorted(state.smoother.params)}, got {sorted(params)}."
            )
        waits = smoother.filter.time < self._wait
        for name, x in state.smoother.params.items():
            if jnp.shape(params[name]) != x.shape:
                raise ArgumentError(
                    f"OnlineEM: maximize must return '{name}' with the shape {x.shape}, got "
                    f"{jnp.shape(params[name])}."
                )
        params = {
            name: jnp.where(waits, x, jnp.asarray(params[name], x.dtype))
            for name, x in state.smoother.params.items()
        }
        return LearnerState(smoother._replace(params=params), state.theta, average)
