"""Scores of models whose scan is handed numbers that are made of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ExactFilter
from ppl_ext.errors import ModelError
from ppl_ext.smoothing import OnlineSmoother, additive, smooth

T = 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, 2)).astype(np.float32)
Y = RNG.normal(size=T).astype(np.float32)
AT = {"beta": jnp.array([1.5, -1.0]), "width": jnp.array(0.4), "seen": jnp.array(0.5)}


def regression(x, y, reverse=False):
    """The mean of a step and its width come in with the data, the noise of these does not."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    seen = numpyro.sample("seen", dist.HalfNormal(1.0))

    def step(state, at):
        state = numpyro.sample("state", dist.Normal(0.8 * state + at["mean"], at["width"]))
        numpyro.sample("y", dist.Normal(state, seen), obs=at["y"])
        return state, None

    at = {"mean": x @ beta, "width": jnp.broadcast_to(width, len(x)), "y": y}
    scan(step, numpyro.sample("start", dist.Normal(0.0, 1.0)), at, reverse=reverse)


def exact_score(reverse):
    """Of the evidence, in unconstrained parameters."""
    program = marginal(regression, list(AT), ExactFilter())

    def evidence(theta):
        values = {"beta": theta["beta"], **{n: jnp.exp(theta[n]) for n in ("width", "seen")}}
        prior = dist.Normal(0.0, 1.0).log_prob(values["beta"]).sum()
        prior += sum(dist.HalfNormal(1.0).log_prob(values[n]) for n in ("width", "seen"))
        return log_density(program, values, X, Y, reverse).total - prior

    return jax.grad(evidence)({"beta": AT["beta"], **{n: jnp.log(AT[n]) for n in ("width", "seen")}})


@pytest.mark.parametrize("reverse", [False, True])
def test_the_score_is_that_of_the_evidence(reverse):
    smoother = smooth(regression, {"score": additive.score()}, backward="exact")
    found = smoother.run(jax.random.key(0), X, Y, reverse, params=AT).expectations["score"]
    right = exact_score(reverse)
    assert all(np.abs(x).max() > 0.2 for x in right.values())
    for name in right:
        np.testing.assert_allclose(found[name], right[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_by_particles_of_a_series_and_of_a_stream():
    functionals, right = {"score": additive.score()}, exact_score(False)
    whole = smooth(regression, functionals, 3000, "dense").run(jax.random.key(0), X, Y, params=AT)
    stream = OnlineSmoother(regression, functionals, 3000, "dense")
    state = stream.init(jax.random.key(1), params=AT)
    for x, y in zip(X, Y, strict=True):
        state = stream.step(state, x, y)
    for found in (whole.expectations["score"], stream.result(state).expectations["score"]):
        for name in right:
            scale = 0.05 * np.abs(right[name]).max() + 0.3
            np.testing.assert_allclose(found[name], right[name], atol=scale, err_msg=name)


def test_inputs_that_are_whole_numbers_and_no_steps():
    """A threshold that is made of a parameter has no derivative, and an empty series has a score of zero."""

    def model(y):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))

        def step(state, at):
            state = numpyro.sample("state", dist.Normal(jnp.where(at[0] > 0, 0.8, 0.1) * state, 1.0))
            numpyro.sample("y", dist.Normal(state + level, 1.0), obs=at[1])
            return state, None

        above = jnp.broadcast_to((level > 0.0).astype(int), len(y))
        scan(step, 0.0, (above, y))

    smoother = smooth(model, {"score": additive.score()}, backward="exact")
    found = smoother.run(jax.random.key(0), Y, params={"level": 0.5}).expectations["score"]["level"]
    program = marginal(model, ["level"], ExactFilter())
    right = jax.grad(lambda level: log_density(program, {"level": level}, Y).total + 0.5 * level**2)(0.5)
    np.testing.assert_allclose(found, right, rtol=1e-4)
    empty = smooth(model, {"score": additive.score()}, 5).run(jax.random.key(0), Y[:0], params={"level": 0.5})
    assert float(empty.expectations["score"]["level"]) == 0.0


def test_a_state_that_moves_with_an_input_is_refused():
    def shifted(y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))

        def step(state, at):
            state = numpyro.sample("state", dist.Normal(0.8 * state, 1.0))
            numpyro.sample("y", dist.Normal(state + at[0], 1.0), obs=at[1])
            return state + at[0], None

        scan(step, 0.0, (jnp.broadcast_to(shift, len(y)), y))

    with pytest.raises(ModelError, match="'shift'.*non-centred"):
        smooth(shifted, {"score": additive.score()}, 20).run(jax.random.key(0), Y, params={"shift": 0.3})
