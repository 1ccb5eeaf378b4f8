"""Smoothing of NumPyro models: against Kalman and enumeration, streaming against batch, and what cannot be
smoothed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.smoothing import OnlineSmoother, additive, smooth
from tests.oracles import assert_unbiased
from tests.smoothing.problems import (
    FINITE_Y,
    GAUSSIAN_Y,
    Finite,
    Gaussian,
    finite_exact,
    finite_paths,
    gaussian_exact,
    gaussian_smoother,
)

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

PARAMS = {"phi": 0.9, "scale": 0.6}
TABLE = Finite()


def gaussian(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, scale))
        numpyro.sample("y", dist.Normal(x, 0.7), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def finite(y):
    logits = numpyro.sample("logits", dist.Normal(jnp.zeros((3, 3)), 1.0).to_event(2))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Categorical(logits=logits[x]))
        numpyro.sample("y", dist.Categorical(probs=jnp.asarray(TABLE.emission)[x]), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Categorical(probs=jnp.asarray(TABLE.initial_probs))), y)


LOGITS = np.log(np.where(TABLE.transition > 0, TABLE.transition, 1e-20)).astype(np.float32)
FUNCTIONALS = {
    "product": lambda t, x_prev, x: x_prev * x,
    "last": lambda t, x_prev, x: (x - 0.5 * x_prev) ** 2,
    "first": lambda t, x_prev, x: jnp.where(t == 0, x_prev, 0) * 1.0,
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "backward", ["mcmc", "dense", pytest.param("hybrid", marks=SLOW), pytest.param("path", marks=SLOW)]
)
def test_smoothed_sums_against_kalman(backward):
    smoother = smooth(gaussian, FUNCTIONALS, 400, backward)
    run = jax.jit(jax.vmap(lambda key: smoother.run(key, GAUSSIAN_Y, params=PARAMS).expectations))
    found = run(jax.random.split(jax.random.key(0), 50))
    for name, exact in gaussian_exact(Gaussian(), GAUSSIAN_Y).items():
        values = np.asarray(found[name])
        # what is left of the bias
        assert abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(50) + 0.01


def evidence(y):
    """Of the linear Gaussian model, as a density of the data."""
    num = len(y) + 1
    build = np.linalg.inv(np.eye(num) - 0.9 * np.eye(num, k=-1))
    covariance = (build @ np.diag([1.0] + [0.36] * (num - 1)) @ build.T)[1:, 1:] + 0.49 * np.eye(num - 1)
    return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])


def test_the_evidence_is_unbiased():
    smoother = smooth(gaussian, FUNCTIONALS, 50, ess_threshold=0.7)
    keys = jax.random.split(jax.random.key(1), 5000)
    run = jax.jit(jax.vmap(lambda key: smoother.run(key, GAUSSIAN_Y, params=PARAMS).log_evidence))
    assert_unbiased(np.exp(np.asarray(run(keys), np.float64) - evidence(GAUSSIAN_Y)), 1.0)


@pytest.mark.slow
def test_a_finite_model_against_enumeration():
    smoother = smooth(finite, {**FUNCTIONALS, "counts": additive.transition_counts(3)}, 1000, "mcmc")
    keys = jax.random.split(jax.random.key(0), 60)
    found = jax.jit(
        jax.vmap(lambda key: smoother.run(key, FINITE_Y, params={"logits": LOGITS}).expectations)
    )(keys)
    paths, probs = finite_paths(TABLE, FINITE_Y)
    pairs = np.eye(3)[paths]
    counts = np.einsum("p,pti,ptj->ij", probs, pairs[:, :-1], pairs[:, 1:])
    for name, exact in {**finite_exact(TABLE, FINITE_Y), "counts": counts}.items():
        values = np.asarray(found[name], np.float64)
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        assert (np.abs(values.mean(0) - exact) < 4.5 * error + 0.005).all(), (
            name,
            values.mean(0),
            exact,
            error,
        )


@pytest.mark.parametrize(
    "backward", ["mcmc", pytest.param("dense", marks=SLOW), pytest.param("hybrid", marks=SLOW)]
)
@pytest.mark.slow
def test_streaming_and_batch_agree_to_the_last_bit(backward):
    given = {**FUNCTIONALS, "score": additive.score()}
    y = np.concatenate([GAUSSIAN_Y, [np.nan], GAUSSIAN_Y])
    batch = smooth(gaussian, given, 64, backward).run(jax.random.key(3), y, params=PARAMS)
    online = OnlineSmoother(gaussian, given, 64, backward)
    states = [
        online.init(jax.random.key(3), params=PARAMS),
        online.init(jax.random.key(3), y[0], params=PARAMS),
    ]
    for state in states:
        for y_t in y:
            state = online.step(state, y_t)
        result = online.result(state)
        assert int(result.num_steps) == len(y)
        jax.tree.map(np.testing.assert_array_equal, result.expectations, batch.expectations)
        np.testing.assert_array_equal(result.log_evidence, batch.log_evidence)


def kalman_log_evidence(theta, y):
    """In unconstrained parameters, by the recursions."""
    phi, scale = 2.0 * jax.nn.sigmoid(theta["phi"]) - 1.0, jnp.exp(theta["scale"])

    def step(state, y_t):
        mean, var = phi * state[0], phi**2 * state[1] + scale**2
        gain = var / (var + 0.49)
        return (mean + gain * (y_t - mean), (1 - gain) * var), norm.logpdf(y_t, mean, jnp.sqrt(var + 0.49))

    return jax.lax.scan(step, (0.0, 1.0), y)[1].sum()


@pytest.mark.parametrize("backward", ["mcmc", pytest.param("dense", marks=SLOW)])
@pytest.mark.slow
def test_the_score_against_the_gradient_of_the_kalman_likelihood(backward):
    params = {"phi": 0.5, "scale": 1.5}
    theta = {"phi": jax.scipy.special.logit(0.75), "scale": jnp.log(1.5)}
    exact = jax.grad(kalman_log_evidence)(theta, jnp.asarray(GAUSSIAN_Y))
    smoother = smooth(gaussian, {"score": additive.score()}, 400, backward)
    run = jax.jit(jax.vmap(lambda key: smoother.run(key, GAUSSIAN_Y, params=params).expectations["score"]))
    found = run(jax.random.split(jax.random.key(0), 40))
    for name, value in exact.items():
        error = np.std(found[name]) / np.sqrt(40)
        assert abs(np.mean(found[name]) - value) < 4.5 * error + 0.02
        assert abs(value) > 6 * error + 0.03, "the test would not see a missing sign"


@pytest.mark.slow
def test_the_score_of_a_finite_model_against_enumeration():
    def log_evidence(logits):
        paths, _ = finite_paths(TABLE, FINITE_Y)
        moves = jax.nn.log_softmax(logits, -1)[paths[:, :-1], paths[:, 1:]].sum(1)
        emitted = jnp.log(jnp.asarray(TABLE.emission))[paths[:, 1:], FINITE_Y].sum(1)
        return jax.scipy.special.logsumexp(
            jnp.log(jnp.asarray(TABLE.initial_probs))[paths[:, 0]] + moves + emitted
        )

    run = smooth(finite, {"score": additive.score()}, 3000, "mcmc").run(
        jax.random.key(0), FINITE_Y, params={"logits": LOGITS}
    )
    np.testing.assert_allclose(
        run.expectations["score"]["logits"], jax.grad(log_evidence)(jnp.asarray(LOGITS)), atol=0.08
    )


@pytest.mark.slow
def test_moments_and_lag_covariances():
    given = {"moments": additive.moments(), "lags": additive.lag_covariances()}
    given["seen"] = additive.sufficient_statistics(lambda x_prev, x, y_t: x * y_t)
    smoother = smooth(gaussian, given, 400, "dense")
    run = jax.jit(jax.vmap(lambda key: smoother.run(key, GAUSSIAN_Y, params=PARAMS).expectations))
    found = jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), 50)))
    mean, cov = gaussian_smoother(Gaussian(), GAUSSIAN_Y)
    second = cov + np.outer(mean, mean)
    square = np.diag(second)
    exact = {
        "moments": {"x": [mean[1:].sum()], "xx": [[square[1:].sum()]]},
        "lags": {
            "before": [[square[:-1].sum()]],
            "cross": [[np.diag(second, 1).sum()]],
            "after": [[square[1:].sum()]],
        },
        "seen": mean[1:] @ GAUSSIAN_Y,
    }

    def close(values, value):  # what is left of the bias at 400 particles is below 0.01
        assert (np.abs(values.mean(0) - value) < 4.5 * values.std(0) / np.sqrt(50) + 0.01).all()

    jax.tree.map(close, found, jax.tree.map(np.asarray, exact, is_leaf=lambda x: isinstance(x, list)))


@pytest.mark.slow
def test_trajectories_are_draws_from_the_smoothing_law():
    run = smooth(gaussian, None, 2000).run(jax.random.key(0), GAUSSIAN_Y, params=PARAMS)
    drawn = run.sample(num_samples=4000)
    paths = np.concatenate([np.asarray(drawn["x0"])[:, None], drawn["x"]], 1)
    mean, cov = gaussian_smoother(Gaussian(), GAUSSIAN_Y)
    np.testing.assert_allclose(paths.mean(0), mean, atol=0.08)
    np.testing.assert_allclose(np.cov(paths.T), cov, atol=0.06)


@pytest.mark.slow
def test_the_report():
    y = np.concatenate([GAUSSIAN_Y, [np.nan]]).astype(np.float32)
    run = smooth(gaussian, FUNCTIONALS, 100).run(jax.random.key(0), y, params=PARAMS)
    report = run.to_arviz(num_samples=7)
    assert dict(report.posterior["x"].sizes) == {"chain": 1, "draw": 7, "time": 6} and report.posterior[
        "x0"
    ].shape == (1, 7)
    assert report.sample_stats["ess"].dims == ("chain", "draw", "time")
    terms = report["log_predictive_one_step"]["y"]
    np.testing.assert_allclose(terms.values[0, 3].sum(), run.log_evidence, rtol=1e-5)
    assert terms.values[0, 0, 5] == 0.0 and "time" in terms.dims
    assert report.attrs["inference_library"] == "ppl_ext"


@pytest.mark.slow
def test_nothing_seen_has_evidence_one_exactly():
    run = smooth(gaussian, FUNCTIONALS, 30).run(
        jax.random.key(0), np.full(4, np.nan, np.float32), params=PARAMS
    )
    assert float(run.log_evidence) == 0.0


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("length", [0, 1])
def test_one_particle_and_one_step(num_particles, length):
    run = smooth(gaussian, {**FUNCTIONALS, "score": additive.score()}, num_particles).run(
        jax.random.key(0), GAUSSIAN_Y[:length], params=PARAMS
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.expectations)) and run.ess.shape == (
        length,
    )


@pytest.mark.slow
def test_an_impossible_observation_ends_the_evidence_and_nothing_else():
    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.factor("y", jnp.where(y_t > 5.0, -jnp.inf, norm.logpdf(y_t, x, 1.0)))
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    run = smooth(model, FUNCTIONALS, 50).run(jax.random.key(0), np.array([0.1, 9.0, 0.3], np.float32))
    assert (
        np.isneginf(run.log_evidence)
        and np.isneginf(run.log_evidence_increments[1])
        and np.isfinite(run.log_evidence_increments[2])
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.expectations))


def second_order(y):
    def step(carry, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * carry[0] - 0.2 * carry[1], 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return (x, carry[0]), None

    x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))
    scan(step, (x0, x0), y)


@pytest.mark.slow
def test_a_model_whose_state_has_a_memory_is_smoothed_along_paths_only():
    given = {"sum": lambda t, before, after: after[0]}
    with pytest.raises(ModelError, match="backward='path'"):
        smooth(second_order, given, 20).run(jax.random.key(0), GAUSSIAN_Y)
    assert np.isfinite(
        smooth(second_order, given, 20, "path").run(jax.random.key(0), GAUSSIAN_Y).expectations["sum"]
    )


def noncentred(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y_t):
        x = scale * numpyro.sample("noise", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def student(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Gamma(2.0 + x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Gamma(2.0, 1.0)), y)


@pytest.mark.slow
def test_what_cannot_work_is_refused_by_name():
    with pytest.raises(ModelError, match="'scale'.*non-centred"):
        smooth(noncentred, {"score": additive.score()}, 20).run(
            jax.random.key(0), GAUSSIAN_Y, params={"scale": 1.0}
        )
    with pytest.raises(ArgumentError, match="log_bound"):
        smooth(student, FUNCTIONALS, 20, "hybrid").run(jax.random.key(0), GAUSSIAN_Y)
    with pytest.raises(ArgumentError, match="too low"):
        smooth(gaussian, FUNCTIONALS, 50, "hybrid", log_bound=-3.0).run(
            jax.random.key(0), GAUSSIAN_Y, params=PARAMS
        )
    with pytest.raises(ArgumentError, match="too low"):
        smooth(gaussian, None, 50, "hybrid", log_bound=-3.0).run(
            jax.random.key(0), GAUSSIAN_Y, params=PARAMS
        ).sample()
    with pytest.raises(ModelError, match="'scale'"):
        smooth(gaussian, FUNCTIONALS, 50).run(jax.random.key(0), GAUSSIAN_Y, params={"phi": 0.5})
    with pytest.raises(ArgumentTypeError, match="'s'"):
        smooth(gaussian, {"s": 3.0})
    with pytest.raises(ArgumentError, match="ess_threshold"):
        smooth(gaussian, ess_threshold=2.0)
    with pytest.raises(ArgumentError, match="backward"):
        OnlineSmoother(gaussian, backward="exact")
    with pytest.raises(ArgumentTypeError, match="state"):
        OnlineSmoother(gaussian).step(None, 0.3)
