"""Streams that go on while what their model reads from outside changes."""

import pickle

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ModelError
from ppl_ext.smoothing import OnlineSmoother, RecursiveMaximumLikelihood

KEY = jax.random.key(0)
SERIES = (0.3, -0.5, 1.2, 0.4)


def walk(outside):
    def model(y):
        rate = numpyro.sample("rate", dist.Beta(2.0, 2.0))

        def step(x_prev, y_t):
            x = numpyro.sample("x", dist.Normal(rate * x_prev + outside["drift"], 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    return model


def smoother(model):
    return OnlineSmoother(model, {"x": lambda t, x_prev, x: x}, num_particles=20)


def learner(model):
    return RecursiveMaximumLikelihood(model, lambda t: 0.1 * t**-0.6, num_particles=20)


def told(state):
    inner = getattr(state, "smoother", state)
    return [np.asarray(x) for x in (inner.log_evidence, inner.params["rate"], inner.filter.log_weights)]


def begun(online, y=0.0):
    return online.init(KEY, y, params={"rate": 0.5})


def alone(make, drift):
    """A stream by itself, whose data do not change."""
    online = make(walk({"drift": drift}))
    state = begun(online)
    for y in SERIES:
        state = online.step(state, y)
    return told(state)


@pytest.mark.parametrize("make", [smoother, learner])
def test_two_open_streams_each_go_on_with_what_they_began_with(make):
    outside = {"drift": 0.0}
    online = make(walk(outside))
    first = online.step(begun(online), SERIES[0])
    outside["drift"] = 3.0
    second = online.step(begun(online), SERIES[0])
    for y in SERIES[1:]:
        first, second = online.step(first, y), online.step(second, y)
    for state, drift in ((first, 0.0), (second, 3.0)):
        for found, expected in zip(told(state), alone(make, drift), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", [smoother, learner])
def test_a_first_step_after_a_change_is_refused(make):
    outside = {"drift": 0.0}
    online = make(walk(outside))
    state = begun(online)
    outside["drift"] = 3.0
    with pytest.raises(
        ModelError,
        match="the item 'drift' of a dict that the program reads has changed since the stream began",
    ):
        online.step(state, SERIES[0])


def test_a_state_that_another_process_saved_goes_on_with_what_is_there():
    online = smoother(walk({"drift": 1.0}))
    state = begun(online)
    for y in SERIES[:2]:
        state = online.step(state, y)
    words = jax.random.key_data(state.filter.key)
    kept = pickle.loads(pickle.dumps(jax.device_get(state._replace(filter=state.filter._replace(key=words)))))
    assert not kept.seen.here
    other = smoother(walk({"drift": 1.0}))
    state = kept._replace(filter=kept.filter._replace(key=jax.random.wrap_key_data(kept.filter.key)))
    for y in SERIES[2:]:
        state = other.step(state, y)
    for found, expected in zip(told(state), alone(smoother, 1.0), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", [smoother, learner])
def test_all_steps_of_a_stream_are_one_program(make):
    state = begun(online := make(walk({"drift": 0.0})))
    avals = jax.tree.map(lambda x: x.aval, state)
    assert jax.tree.map(lambda x: x.aval, online.step(state, SERIES[0])) == avals
