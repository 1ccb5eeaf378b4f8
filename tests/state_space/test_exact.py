"""Exact evidence, smoothed moments and lag-one covariances, against the joint Gaussian and against every
path.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan

from ppl_ext import expectation, log_density, marginal, normalize, simulate
from ppl_ext.algorithms import ExactFilter
from ppl_ext.errors import ModelError
from ppl_ext.state_space import many_solves
from ppl_ext.state_space.exact import kind_of, smooth_exactly
from ppl_ext.state_space.model import lower
from tests.algorithms.state_spaces import (
    FINITE,
    LINEAR,
    Y,
    finite,
    finite_paths,
    linear,
    linear_joint,
    log_evidence,
    slopes,
)

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py


def smoothed(model, args, parameters):
    return jax.jit(lambda: smooth_exactly(lower(model, args, {}, parameters)))()


def test_linear_gaussian():
    found = smoothed(linear, (Y,), LINEAR)
    with jax.enable_x64(True):
        log_z, mean, covariance = map(
            np.asarray, linear_joint(**{n: jnp.asarray(v, jnp.float64) for n, v in LINEAR.items()})
        )
    np.testing.assert_allclose(found.log_evidence, log_z, rtol=1e-5)
    np.testing.assert_allclose(found.log_initial + found.log_increments.sum(), log_z, rtol=1e-5)
    np.testing.assert_allclose(np.r_[found.initial_mean, found.mean[:, 0]], mean, rtol=1e-4)
    np.testing.assert_allclose(
        np.r_[found.initial_covariance[0], found.covariance[:, 0, 0]], np.diag(covariance), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.r_[found.first_cross[0], found.cross[:, 0, 0]], np.diag(covariance, 1), rtol=1e-4
    )


@pytest.mark.slow
def test_finite():
    found = smoothed(finite, (Y,), FINITE)
    with jax.enable_x64(True):
        every, log_p = finite_paths(**{n: jnp.asarray(v, jnp.float64) for n, v in FINITE.items()})
        weights = np.exp(np.asarray(log_p - logsumexp(log_p)))
    assert float(found.log_evidence) == pytest.approx(log_evidence(finite, FINITE), rel=1e-5)
    assert float(found.log_initial + found.log_increments.sum()) == pytest.approx(
        float(found.log_evidence), rel=1e-5
    )
    mean = weights @ every
    covariance = (weights[:, None] * (every - mean)).T @ (every - mean)
    np.testing.assert_allclose(np.r_[found.initial_mean, found.mean[:, 0]], mean, rtol=1e-4)
    np.testing.assert_allclose(
        np.r_[found.first_cross[0], found.cross[:, 0, 0]], np.diag(covariance, 1), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(
        np.r_[found.initial_covariance[0], found.covariance[:, 0, 0]], np.diag(covariance), rtol=1e-4
    )
    for t in range(4):
        np.testing.assert_allclose(
            found.probs[t], np.bincount(every[:, t + 1], weights, minlength=3), rtol=1e-4
        )


@pytest.mark.parametrize(("model", "parameters"), [(linear, LINEAR), (finite, FINITE)])
@pytest.mark.slow
def test_what_is_filtered_is_what_is_smoothed_of_a_shorter_series(model, parameters):
    whole, shorter = smoothed(model, (Y,), parameters), smoothed(model, (Y[:2],), parameters)
    np.testing.assert_allclose(whole.filtered_mean[1], shorter.mean[1], rtol=1e-4)
    np.testing.assert_allclose(whole.filtered_covariance[1], shorter.covariance[1], rtol=1e-4)
    np.testing.assert_allclose(
        whole.log_initial + whole.log_increments[:2].sum(), shorter.log_evidence, rtol=1e-4
    )


@pytest.mark.parametrize(("model", "parameters"), [(linear, LINEAR), (finite, FINITE)])
@pytest.mark.slow
def test_derivatives_of_the_evidence(model, parameters):
    grads = jax.jit(jax.grad(lambda p: smooth_exactly(lower(model, (Y,), {}, p)).log_evidence))(parameters)
    for name, slope in slopes(model, parameters).items():
        assert float(grads[name]) == pytest.approx(slope, rel=1e-3)


def vector(y):
    """Two correlated coordinates, a drift, a second site that depends on the first, and observations with
    gaps.
    """

    def step(state, y_t):
        x = numpyro.sample(
            "x",
            dist.MultivariateNormal(
                jnp.array([[0.9, 0.2], [0.0, 0.7]]) @ state["x"] + 0.1, 0.5 * jnp.eye(2) + 0.1
            ),
        )
        v = numpyro.sample("v", dist.Normal(0.5 * state["v"] + x[0], 0.8))
        numpyro.sample("y", dist.MultivariateNormal(jnp.stack([x[0] + v, x[1]]), 0.3 * jnp.eye(2)), obs=y_t)
        return {"x": x, "v": v}, None

    x0 = numpyro.sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    v0 = numpyro.sample("v0", dist.Normal(0.0, 1.0))
    scan(step, {"x": x0, "v": v0}, y)


@pytest.mark.slow
def test_several_sites_and_gaps():
    """Against the Gaussian whose precision is the Hessian of the whole model's log density."""
    y = np.array([[0.4, -0.2], [np.nan, 0.5], [np.nan, np.nan], [1.0, np.nan]], np.float32)
    ss = lower(vector, (y,))
    found = smoothed(vector, (y,), {})

    def whole(flat):
        x, v = flat[3:].reshape(4, 3)[:, 1:], flat[3:].reshape(4, 3)[:, 0]
        begin = ss.initial({"v0": flat[0], "x0": flat[1:3]})
        total, particle = begin.log_initial + begin.log_emission, begin.particle
        for t in range(4):
            step = ss.step(particle, {"x": x[t], "v": v[t]}, ss.inputs(t))
            total, particle = total + step.log_transition + step.log_emission, step.particle
        return total

    zero = jnp.zeros(15)
    precision = -np.asarray(jax.hessian(whole)(zero), np.float64)
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.asarray(jax.grad(whole)(zero), np.float64)
    log_z = float(whole(jnp.asarray(mean, jnp.float32))) + 0.5 * (
        15 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1]
    )
    np.testing.assert_allclose(found.log_evidence, log_z, rtol=1e-4)
    np.testing.assert_allclose(np.r_[found.initial_mean, np.ravel(found.mean)], mean, rtol=1e-3, atol=1e-4)
    for t in range(3):
        here, there = slice(3 + 3 * t, 6 + 3 * t), slice(6 + 3 * t, 9 + 3 * t)
        np.testing.assert_allclose(found.cross[t], covariance[here, there], atol=1e-4)
        np.testing.assert_allclose(found.covariance[t], covariance[here, here], atol=1e-4)


def test_nothing_observed():
    y = np.full(5, np.nan, np.float32)
    assert abs(float(smoothed(linear, (y,), LINEAR).log_evidence)) < 1e-5
    assert abs(float(smoothed(finite, (y,), FINITE).log_evidence)) < 1e-5


@pytest.mark.slow
def test_one_time():
    assert float(smoothed(linear, (Y[:1],), LINEAR).log_evidence) == pytest.approx(
        log_evidence(linear, LINEAR, Y[:1]), rel=1e-5
    )
    assert float(smoothed(finite, (Y[:1],), FINITE).log_evidence) == pytest.approx(
        log_evidence(finite, FINITE, Y[:1]), rel=1e-5
    )


def volatility(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(x / 2)), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def growth(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(jnp.sin(x), 0.3))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def threshold(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(jnp.where(x > 0, 0.5, -0.3) * x, 0.3))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def student(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.StudentT(4.0, x, 0.3))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def test_which_models_have_an_exact_answer():
    assert kind_of(lower(linear, (Y,), {}, LINEAR)) == "gaussian"
    assert kind_of(lower(finite, (Y,), {}, FINITE)) == "finite"
    for model in (volatility, growth, student, threshold):
        ss = lower(model, (Y,))
        assert kind_of(ss) is None
        with pytest.raises(ModelError, match="No exact answer"):
            smooth_exactly(ss)
    with pytest.raises(ModelError, match="3 joint states, more than max_states=2"):
        smooth_exactly(lower(finite, (Y,), {}, FINITE), max_states=2)


@pytest.mark.parametrize(("model", "parameters"), [(linear, LINEAR), (finite, FINITE)])
@pytest.mark.slow
def test_as_an_algorithm(model, parameters):
    """Exact in a marginal, inside an expectation and outside, and its density is no estimate."""
    program = marginal(model, list(parameters), ExactFilter())
    density = log_density(program, parameters, Y, rng_key=jax.random.key(0))
    prior = float(lower(model, (Y,), {}, parameters).log_prior)
    assert float(density.total) - prior == pytest.approx(log_evidence(model, parameters), rel=1e-4)
    assert all(label.estimate.kind == "exact" for label in density.labels)
    inside = expectation(lambda: log_density(program, parameters, Y).total).value(jax.random.key(1))
    assert float(inside) == pytest.approx(float(density.total), rel=1e-5)
    with pytest.raises(ModelError, match="does not draw"):
        simulate(normalize(model, dict(parameters), ExactFilter()), Y, rng_key=jax.random.key(0))


def pairs(y, shapes, scale):
    def step(x, at):
        x = numpyro.sample("x", dist.MultivariateNormal(0.9 * x, scale_tril=scale * at[1] * jnp.eye(2)))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=at[0])
        return x, None

    scan(step, numpyro.sample("x0", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))), (y, shapes))


def test_a_long_series_is_read_in_parts(monkeypatch):
    rng = np.random.default_rng(2)
    y, shapes = rng.normal(size=11), rng.uniform(0.5, 1.0, size=11)  # ten pairs of steps, in parts of 3

    def log_evidence(scale):
        return smooth_exactly(lower(pairs, (y, shapes, scale), {})).log_evidence

    whole = jax.jit(jax.value_and_grad(log_evidence))(0.7)
    monkeypatch.setattr(many_solves, "AT_ONCE", 3 * 4**3)
    monkeypatch.setattr(many_solves, "_wait", lambda: True)
    parts = jax.jit(jax.value_and_grad(lambda x: log_evidence(x)))(0.7)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_what_is_observed_before_a_scan_without_a_first_state():
    """A parameter with data, or conditioned on, stands before a scan that starts at a number: an error of
    JAX's about an empty maximum.
    """

    def model(y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0), obs=1.0)

        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x + shift, 1.0), obs=y_t)
            return x, None

        scan(step, 0.0, y)

    found = smoothed(model, (jnp.array([1.0, 2.5]),), {})
    joint = dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 1.0], [1.0, 3.0]]))
    expected = dist.Normal(0.0, 1.0).log_prob(1.0) + joint.log_prob(jnp.array([1.0, 2.5]))
    np.testing.assert_allclose(found.log_evidence, expected, rtol=1e-5)
    np.testing.assert_allclose(found.mean[:, 0], [0.3, 0.9], rtol=1e-5)
