"""Entries of the carry that no latent value reaches (a counter, a running mean of the data): all that serves
the model with these as inputs serves it, with the same numbers."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC

from ppl_ext import log_density, marginal, normalize, simulate
from ppl_ext.algorithms import ExactFilter, ParticleFilter
from ppl_ext.errors import ModelError
from ppl_ext.infer import ParticleGibbs
from ppl_ext.smoothing import (
    OnlineSmoother,
    ParisParticleGibbs,
    RecursiveMaximumLikelihood,
    ScoreAscent,
    SweptParticleFilter,
    smooth,
)

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
Y = np.array([0.3, -0.5, 1.2, 0.1], np.float32)
COUNTS = np.arange(4, dtype=np.float32)
MEANS = np.array([0.0, 0.3, -0.1, 1.0 / 3], np.float32)  # of the data before a step


def site(x_prev, t, mean, y_t, drift):
    x = numpyro.sample("x", dist.Normal(0.5 * x_prev + drift * t, 1.0))
    numpyro.sample("y", dist.Normal(x + mean, 1.0), obs=y_t)
    return x


def given(y, reverse=False):
    """With both as inputs."""
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(x_prev, inputs):
        x = site(x_prev, *inputs, drift)
        return x, None

    n = len(y)
    inputs = (COUNTS[:n], MEANS[:n], y) if not reverse else (COUNTS[:n][::-1], MEANS[:n][::-1], y)
    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), inputs, reverse=reverse)


def carried(y, reverse=False):
    """With both in the carry, the mean made from the counter."""
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(carry, y_t):
        x_prev, t, mean = carry["x"], carry["t"], carry["mean"]
        return {
            "x": site(x_prev, t, mean, y_t, drift),
            "t": t + 1,
            "mean": mean + (y_t - mean) / (t + 1),
        }, None

    scan(step, {"x": numpyro.sample("x0", dist.Normal(0.0, 1.0)), "t": 0, "mean": 0.0}, y, reverse=reverse)


def handed_on(y):
    """The same, by what the observed site returns."""
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(carry, y_t):
        x_prev, t, mean = carry
        x = numpyro.sample("x", dist.Normal(0.5 * x_prev + drift * t, 1.0))
        seen = numpyro.sample("y", dist.Normal(x + mean, 1.0), obs=y_t)
        return (x, t + 1, mean + (seen - mean) / (t + 1)), None

    scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), 0, 0.0), y)


def x_of(carry):
    return carry["x"] if isinstance(carry, dict) else carry[0] if isinstance(carry, tuple) else carry


SUMS = {"x": lambda t, x_prev, x: x_of(x_prev) * x_of(x)}
PARAMS = {"drift": 0.1}


def smoothed(backward):
    def run(model, y=Y):
        result = smooth(model, SUMS, num_particles=30, backward=backward).run(KEY, y, params=PARAMS)
        return (
            result.log_evidence,
            result.expectations["x"],
            result.sample(jax.random.key(1), 2)["x"],
            result.filtered()["x"],
        )

    return run


def online(model):
    smoother = OnlineSmoother(model, SUMS, num_particles=30)
    state = smoother.init(KEY, params=PARAMS)
    for y_t in Y:
        state = smoother.step(state, y_t)
    return smoother.result(state)[:2]


def gibbs(model):
    mcmc = MCMC(ParticleGibbs(model, 5), num_warmup=3, num_samples=5, progress_bar=False)
    mcmc.run(KEY, Y)
    return mcmc.get_samples()


def ascended(model):
    return ScoreAscent(model, optax.sgd(0.1), num_particles=10).run(KEY, 2, Y, params=PARAMS).params["drift"]


BY = {
    "exact": smoothed("exact"),
    "mcmc": smoothed("mcmc"),
    "dense": smoothed("dense"),
    "hybrid": smoothed("hybrid"),
    "path": smoothed("path"),
    "ParticleGibbs": gibbs,
    "ScoreAscent": ascended,
    "ParisParticleGibbs": lambda model: (
        ParisParticleGibbs(model, SUMS, num_particles=5, num_sweeps=4, burn_in=1)
        .run(KEY, Y, params=PARAMS)
        .expectations["x"]
    ),
    "ExactFilter": lambda model: log_density(marginal(model, ["drift"], ExactFilter()), PARAMS, Y).total,
    "ParticleFilter": lambda model: (
        log_density(marginal(model, ["drift"], ParticleFilter(5)), PARAMS, Y, rng_key=KEY).total
    ),
    "SweptParticleFilter": lambda model: simulate(
        normalize(model, PARAMS, SweptParticleFilter(5)), Y, rng_key=KEY
    ).values["x"],
}


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", BY)
def test_known_entries_are_as_good_as_inputs(way):
    assert_same(BY[way](carried), BY[way](given))


@pytest.mark.parametrize("way", ["exact", "mcmc"])
def test_of_a_reversed_scan_and_by_what_a_site_returns(way):
    def backward(model):
        return lambda y: model(y, reverse=True)

    turned = np.ascontiguousarray(Y[::-1])
    assert_same(BY[way](backward(carried), turned), BY[way](backward(given), turned))
    assert_same(BY[way](handed_on), BY[way](given))


def test_a_stream_keeps_them():
    batch = smooth(carried, SUMS, num_particles=30).run(KEY, Y, params=PARAMS)
    assert_same(online(carried), (batch.log_evidence, batch.expectations))
    learner = RecursiveMaximumLikelihood(carried, lambda t: 0.1 * t**-0.6, num_particles=10)
    state = learner.init(KEY, Y[0], params=PARAMS)
    for y_t in Y:
        state = learner.step(state, y_t)
    assert (state.smoother.filter.particles.carry["t"] == 4).all()


def test_a_gap_that_reaches_an_entry_makes_it_a_state():
    y = np.where(np.arange(4) == 1, np.nan, Y)
    with pytest.raises(ModelError, match="part of the state follows from the past without noise"):
        BY["mcmc"](handed_on, y)
    assert np.isfinite(BY["path"](handed_on, y)[0])


@pytest.mark.parametrize("way", ["exact", "mcmc"])
@pytest.mark.parametrize("entry", [lambda total, x, x_prev: total + x, lambda total, x, x_prev: x_prev])
def test_an_entry_that_a_latent_value_reaches_is_part_of_the_state(way, entry):
    def model(y):
        drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

        def step(carry, y_t):
            x_prev, t, total, below = carry
            x = site(x_prev, t, below, y_t, drift)
            return (x, t + 1, entry(total, x, x_prev), total), None

        scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), 0, 0.0, 0.0), y)

    with pytest.raises(ModelError, match="part of (the|its) state follows from the past without noise"):
        BY[way](model)


def test_an_entry_that_begins_with_a_latent_value_is_none():
    """A constant that each particle has its own of."""

    def model(y):
        def step(carry, y_t):
            x_prev, level = carry
            return (site(x_prev, 0.0, level, y_t, 0.0), level), None

        x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))
        scan(step, (x0, numpyro.sample("level", dist.Normal(0.0, 1.0))), y)

    with pytest.raises(ModelError, match="part of the state follows from the past without noise"):
        smooth(model, {}, num_particles=5).run(KEY, Y)


def test_random_keys_in_the_carry_are_known():
    def model(y):
        def step(carry, y_t):
            key, x_prev = carry
            key, at = jax.random.split(key)
            x = numpyro.sample("x", dist.Normal(0.5 * x_prev, 1.0), rng_key=at)
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return (key, x), None

        scan(step, (jax.random.key(3), numpyro.sample("x0", dist.Normal(0.0, 1.0))), y)

    def plain(y):
        def step(x_prev, y_t):
            x = numpyro.sample("x", dist.Normal(0.5 * x_prev, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    a, b = (smooth(m, {}, backward="exact").run(KEY, Y).log_evidence for m in (model, plain))
    np.testing.assert_allclose(a, b, rtol=1e-5)
