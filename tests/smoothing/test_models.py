"""Models beyond a number that follows a number: vectors, several sites, plates, emissions that look back,
long series.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext.smoothing import additive, smooth
from ppl_ext.smoothing.backward import Hybrid
from ppl_ext.smoothing.density_peaks import log_peak
from ppl_ext.smoothing.space import Space
from ppl_ext.state_space.filtering import Rules
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import multinomial
from tests.smoothing.problems import GAUSSIAN_Y
from tests.smoothing.test_smooth import gaussian

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


def difference(y):
    """The emission looks at the state before: backward draws must weigh it."""

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x - x_prev, 0.4), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def difference_exact(y):
    """E of the sum of x_{t-1} x_t and of x_0."""
    num = len(y) + 1
    moves, seen = np.eye(num) - 0.5 * np.eye(num, k=-1), (np.eye(num) - np.eye(num, k=-1))[1:]
    precision = moves.T @ moves + seen.T @ seen / 0.16
    covariance = np.linalg.inv(precision)
    mean = covariance @ seen.T @ y / 0.16
    return {"product": (np.diag(covariance, 1) + mean[:-1] * mean[1:]).sum(), "first": mean[0]}


@pytest.mark.parametrize("backward", ["mcmc", pytest.param("dense", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_emission_that_looks_back_is_weighed(backward):
    given = {
        "product": lambda t, x_prev, x: x_prev * x,
        "first": lambda t, x_prev, x: jnp.where(t == 0, x_prev, 0.0),
    }
    smoother = smooth(difference, given, 300, backward)
    found = jax.jit(jax.vmap(lambda key: smoother.run(key, GAUSSIAN_Y).expectations))(
        jax.random.split(jax.random.key(0), 50)
    )
    for name, exact in difference_exact(GAUSSIAN_Y).items():
        values = np.asarray(found[name])
        assert abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(50) + 0.02


COVARIANCE = jnp.array([[0.5, 0.2], [0.2, 0.4]])


def rich(y):
    """A finite site, a vector in a dict, a plate, and a gap in the data."""

    def step(carry, y_t):
        k = numpyro.sample("k", dist.Categorical(logits=jnp.array([[1.0, 0.0], [0.0, 1.0]])[carry["k"]]))
        x = numpyro.sample("x", dist.MultivariateNormal(0.8 * carry["x"], COVARIANCE))
        with numpyro.plate("series", 2):
            numpyro.sample("y", dist.Normal(x + k, 0.7), obs=y_t)
        return {"k": k, "x": x}, None

    k0 = numpyro.sample("k0", dist.Categorical(logits=jnp.zeros(2)))
    x0 = numpyro.sample("x0", dist.MultivariateNormal(jnp.zeros(2), COVARIANCE))
    scan(step, {"k": k0, "x": x0}, y)


RICH_Y = np.array([[0.5, 1.2], [np.nan, 0.3], [1.5, 0.2], [0.3, np.nan]], np.float32)


@pytest.mark.slow
def test_kernels_agree_on_a_model_with_several_kinds_of_sites():
    given = {
        "x": lambda t, before, after: before["x"] * after["x"],
        "k": lambda t, before, after: before["k"] * (1 - after["k"]),
    }
    keys = jax.random.split(jax.random.key(0), 40)
    found = {}
    for backward in ("dense", "mcmc", "hybrid"):
        smoother = smooth(rich, given, 200, backward)
        found[backward] = jax.jit(
            jax.vmap(lambda key, smoother=smoother: smoother.run(key, RICH_Y).expectations)
        )(keys)
    for backward in ("mcmc", "hybrid"):
        for name, dense in found["dense"].items():
            # of the same clouds, since the keys are the same
            apart = np.asarray(found[backward][name]) - np.asarray(dense)
            assert (np.abs(apart.mean(0)) < 4.5 * apart.std(0) / np.sqrt(40) + 1e-3).all()


@pytest.mark.slow
def test_the_bound_follows_from_the_laws_of_a_step():
    def bound(lowered, carry):
        space = Space(lowered, Rules(3, multinomial, 1.0), Hybrid())
        return space.log_bound(carry, lowered.inputs(0))

    lowered = lower(rich, (RICH_Y,))
    carry = {"k": jnp.array([0, 1, 1]), "x": jnp.zeros((3, 2))}
    peak = np.log(np.e / (1 + np.e)) - np.log(2 * np.pi) - 0.5 * np.log(np.linalg.det(COVARIANCE))
    np.testing.assert_allclose(bound(lowered, carry), peak, rtol=1e-5)
    assert bound(lower(difference, (GAUSSIAN_Y,)), jnp.zeros(3)) is None


@pytest.mark.parametrize(
    ("law", "at"),
    [
        (dist.Normal(jnp.array([1.0, 2.0]), 0.3), [1.0, 2.0]),
        (dist.Normal(jnp.array([1.0, 2.0]), 0.3).to_event(1), [1.0, 2.0]),
        (dist.Normal(1.0, 0.3).expand([2]).mask(True), [1.0, 1.0]),
        (dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])), 1),
        (dist.Bernoulli(0.3), 0),
        (dist.StudentT(3.0, 1.0, 2.0), 1.0),
        (dist.MultivariateNormal(jnp.ones(2), COVARIANCE), [1.0, 1.0]),
    ],
)
def test_the_peak_of_a_law(law, at):
    np.testing.assert_allclose(log_peak(law), law.log_prob(jnp.asarray(at)), rtol=1e-5)


@pytest.mark.slow
def test_a_hundred_thousand_steps_in_single_precision():
    """A plain sum in single precision is off by whole units here."""
    y = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    run = smooth(gaussian, {"tenth": lambda t, x_prev, x: 0.1 + 0.0 * x}, 10, "mcmc").run(
        jax.random.key(0), y, params={"phi": 0.9, "scale": 0.6}
    )
    increments = np.asarray(run.log_evidence_increments, np.float64)
    assert abs(float(run.log_evidence) - increments.sum()) < 0.02
    assert abs(float(run.expectations["tenth"]) - 1e5 * np.float64(np.float32(0.1))) < 0.02
    assert abs(np.cumsum(np.asarray(run.log_evidence_increments))[-1] - increments.sum()) > 0.02


def stationary(y):
    """The first state's law has the parameters in it, and something is seen before the scan."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    x0 = numpyro.sample("x0", dist.Normal(0.0, scale))
    numpyro.sample("y0", dist.Normal(x0, 0.5 * scale), obs=jnp.asarray(1.5))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x, scale))
        numpyro.sample("y", dist.Normal(x, 0.7), obs=y_t)
        return x, None

    scan(step, x0, y)


@pytest.mark.slow
def test_the_score_counts_what_comes_before_the_first_step():
    num = len(GAUSSIAN_Y) + 1
    build = jnp.asarray(np.linalg.inv(np.eye(num) - 0.9 * np.eye(num, k=-1)), jnp.float32)
    data = jnp.concatenate([jnp.array([1.5]), jnp.asarray(GAUSSIAN_Y)])

    def log_evidence(log_scale):
        scale = jnp.exp(log_scale)
        noise = jnp.concatenate([(0.5 * scale)[None] ** 2, jnp.full(num - 1, 0.49)])
        return dist.MultivariateNormal(jnp.zeros(num), scale**2 * build @ build.T + jnp.diag(noise)).log_prob(
            data
        )

    exact, slope = jax.value_and_grad(log_evidence)(jnp.log(0.8))
    smoother = smooth(stationary, {"score": additive.score()}, 400, "dense")

    def one(key):
        run = smoother.run(key, GAUSSIAN_Y, params={"scale": 0.8})
        return run.log_evidence, run.expectations["score"]["scale"]

    evidence, score = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 50))
    assert abs(np.exp(np.asarray(evidence) - exact).mean() - 1.0) < 4.5 * np.exp(
        np.asarray(evidence) - exact
    ).std() / np.sqrt(50)
    assert abs(score.mean() - slope) < 4.5 * score.std() / np.sqrt(50) + 0.02
