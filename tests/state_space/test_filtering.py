"""Estimates of particle filters are unbiased at 2, 3 and 8 particles: the evidence, its derivatives, and
whole smoothed paths.

Each comparison is of a mean over 20,000 fixed keys with the exact answer, within 4.5 standard errors; over
fresh keys one of the 40 or so groups would fail with probability 1e-3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ModelError
from ppl_ext.state_space import filtering
from ppl_ext.state_space.filtering import Rules, advance, begin, paths, run_filter
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import multinomial, residual, stratified, systematic
from tests.algorithms.state_spaces import PROBLEMS, Y, linear, log_evidence, slopes, smoothed
from tests.oracles import quick_jit

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

NUM = 20_000


def towards(parameters, x, y_t):
    numpyro.sample("x", dist.Normal(0.5 * x + 0.5 * y_t, 0.9))


def start_towards(parameters):
    numpyro.sample("x0", dist.Normal(0.8, 1.2))


def jump(parameters, k, y_t):
    numpyro.sample("k", dist.Categorical(logits=jnp.array([0.0, 0.5, 0.2]) * y_t))


def look(parameters, state, y_t):
    return -0.3 * (1.0 * state - y_t) ** 2


FILTERS = {
    "bootstrap": ("linear", {"scheme": systematic, "threshold": 1.0}),
    "adaptive": ("linear", {"scheme": stratified, "threshold": 0.7}),
    "never resampled": ("linear", {"scheme": multinomial, "threshold": 0.0}),
    "guided": (
        "linear",
        {"scheme": multinomial, "threshold": 1.0, "proposal": towards, "initial_proposal": start_towards},
    ),
    "auxiliary": ("linear", {"scheme": residual, "threshold": 1.0, "look_ahead": look}),
    "finite": ("finite", {"scheme": residual, "threshold": 1.0}),
    "finite, guided, auxiliary": (
        "finite",
        {"scheme": stratified, "threshold": 0.8, "proposal": jump, "look_ahead": look},
    ),
}


def replicates(problem, num_particles, options, num=NUM):
    """Relative to Z: the evidence, its derivatives, and the unnormalised estimates of three smoothed
    quantities.
    """
    model, parameters, name = PROBLEMS[problem]
    exact = log_evidence(model, parameters)
    rules = Rules(num_particles, **options)

    def evidence(parameters, key):
        ss = lower(model, (Y,), {}, parameters)
        run = run_filter(ss, rules, key, keep_history=True)
        log_ratio = run.state.log_evidence.value - exact
        series = jax.vmap(lambda i: paths(ss, run, i))(jnp.arange(num_particles))
        first, rest = series[name + "0"], series[name]
        terms = jnp.stack([first, rest[:, 1] * rest[:, 2], rest[:, 3]], -1).astype(jnp.float32)
        return jnp.exp(log_ratio), jnp.exp(run.state.log_weights) @ terms

    def one(key):
        (ratio, moments), slope = jax.value_and_grad(evidence, has_aux=True)(parameters, key)
        return {"evidence": ratio, "slopes": slope, "paths": ratio * moments}

    return quick_jit(jax.vmap(one))(random.split(random.key(1), num))


def off(samples, exact):
    """The greatest distance of a mean from its exact value, in standard errors, by quantity."""

    def worst(sample, exact):
        sample = np.asarray(sample, np.float64)
        error = np.maximum(sample.std(0, ddof=1) / np.sqrt(len(sample)), 1e-6)
        return np.max(np.abs(sample.mean(0) - exact) / error)

    return {k: max(jax.tree.leaves(jax.tree.map(worst, samples[k], exact[k]))) for k in samples}


@functools.cache
def exact_of(problem):
    model, parameters, _ = PROBLEMS[problem]
    return {"evidence": 1.0, "slopes": slopes(model, parameters), "paths": smoothed(model, parameters)}


QUICK = {
    ("bootstrap", 2),
    ("adaptive", 8),
    ("guided", 3),
    ("auxiliary", 2),
    ("finite", 3),
    ("finite, guided, auxiliary", 2),
}
TABLE = [
    pytest.param(f, n, marks=() if (f, n) in QUICK else pytest.mark.slow) for f in FILTERS for n in (2, 3, 8)
]


@pytest.mark.parametrize(("name", "num_particles"), TABLE)
def test_unbiased(name, num_particles):
    problem, options = FILTERS[name]
    scores = off(replicates(problem, num_particles, options), exact_of(problem))
    assert max(scores.values()) < 4.5, scores


def keep_weights_after_resampling(monkeypatch):
    resample = filtering.resample

    def broken(rules, draws, key, log_weights, log_first, num, through=False):
        resampled, ancestors, before = resample(rules, draws, key, log_weights, log_first, num)
        return resampled, ancestors, before + filtering.normalised(log_weights[ancestors])[0] + jnp.log(num)

    monkeypatch.setattr(filtering, "resample", broken)


def forget_the_score(monkeypatch):
    monkeypatch.setattr(filtering, "only_gradient", jnp.zeros_like)


def forget_the_weights_gradient(monkeypatch):
    normalised = filtering.normalised
    monkeypatch.setattr(
        filtering, "normalised", lambda w: (jax.lax.stop_gradient(normalised(w)[0]), *normalised(w)[1:])
    )


def forget_the_proposal(monkeypatch):
    ran = filtering._ran
    monkeypatch.setattr(filtering, "_ran", lambda *args: (ran(*args)[0], jnp.zeros(()), ran(*args)[2]))


def forget_the_look_ahead(monkeypatch):
    resample = filtering.resample

    def broken(rules, draws, key, log_weights, log_first, num, through=False):
        return resample(rules, draws, key, log_first, log_first, num)

    monkeypatch.setattr(filtering, "resample", broken)


def shift_the_ancestors(monkeypatch):
    monkeypatch.setattr(filtering, "advance", lambda *args, do=filtering.advance: _shifted(*do(*args)))


def _shifted(state, info):
    return state, info._replace(ancestors=jnp.roll(info.ancestors, 1))


FAULTS = {
    keep_weights_after_resampling: ("bootstrap", "evidence"),
    forget_the_score: ("finite", "slopes"),
    forget_the_weights_gradient: ("finite", "slopes"),
    forget_the_proposal: ("guided", "evidence"),
    forget_the_look_ahead: ("auxiliary", "evidence"),
    shift_the_ancestors: ("bootstrap", "paths"),
}


SLOW_FAULTS = (forget_the_look_ahead, forget_the_proposal, forget_the_weights_gradient)
FAULT_TABLE = [
    pytest.param(f, marks=pytest.mark.slow if f in SLOW_FAULTS else (), id=f.__name__) for f in FAULTS
]


@pytest.mark.parametrize("fault", FAULT_TABLE)
@pytest.mark.slow
def test_a_fault_is_seen(fault, monkeypatch):
    fault(monkeypatch)
    name, quantity = FAULTS[fault]
    problem, options = FILTERS[name]
    assert off(replicates(problem, 3, options), exact_of(problem))[quantity] > 4.5


@pytest.mark.slow
def test_streaming_is_the_batch_to_the_last_bit():
    rules = Rules(50, systematic, 0.5)
    parameters = PROBLEMS["linear"][1]
    run = jax.jit(lambda: run_filter(lower(linear, (Y,), {}, parameters), rules, random.key(3)))()

    traced = []

    @jax.jit
    def step(state, y_t):
        traced.append(y_t)
        ss = lower(linear, (y_t[None],), {}, parameters)
        return advance(ss, rules, state, ss.inputs(0))

    state, _, _ = jax.jit(lambda: begin(lower(linear, (Y[:1],), {}, parameters), rules, random.key(3)))()
    for t, y_t in enumerate(Y):
        state, info = step(state, jnp.asarray(y_t))
        assert info.log_increment == run.info.log_increment[t + 1]
    for a, b in zip(
        jax.tree.leaves(state._replace(key=0)), jax.tree.leaves(run.state._replace(key=0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert len(traced) == 1


# Degenerate cases


def walk(y, noise=1.0):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, noise), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def filtered(model, args, num=16, threshold=0.5, scheme=systematic):
    return jax.jit(lambda: run_filter(lower(model, args), Rules(num, scheme, threshold), random.key(0)))()


def test_nothing_observed_is_evidence_one_exactly():
    run = filtered(walk, (np.full(20, np.nan, np.float32),))
    assert float(run.state.log_evidence.value) == 0.0 and run.state.log_evidence.low == 0.0
    assert not run.info.resampled.any()


def test_one_time_one_particle_and_an_empty_series():
    run = filtered(walk, (Y[:1],), num=1)
    expected = dist.Normal(run.state.particles.carry[0], 1.0).log_prob(Y[0])
    np.testing.assert_allclose(run.state.log_evidence.value, expected, rtol=1e-6)
    empty = filtered(walk, (Y[:0],))
    assert float(empty.state.log_evidence.value) == 0.0 and empty.info.ess.shape == (1,)


def gate(open_at):
    """Emission minus infinity but where the gate lets the particle through."""

    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.factor("gate", open_at(x, y_t))
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    return model


@pytest.mark.parametrize("scheme", [systematic, multinomial])
def test_no_particle_survives(scheme):
    run = filtered(gate(lambda x, y: jnp.where(y > 1, -jnp.inf, 0.0)), (Y,), scheme=scheme, threshold=1.0)
    assert run.state.log_evidence.value == -jnp.inf
    assert (
        jnp.isnan(run.state.log_weights).all()
        and jnp.isfinite(run.state.particles.carry).all()
        and run.state.died == 3
    )
    np.testing.assert_allclose(run.info.log_increment, [0.0, 0.0, 0.0, -np.inf, np.nan], atol=1e-6)
    np.testing.assert_allclose(run.info.ess[2:], [len(run.state.log_weights), 0.0, np.nan], rtol=1e-5)


def test_one_particle_survives():
    model = gate(lambda x, y: jnp.where(x > 2.2, 0.0, -jnp.inf))
    run = filtered(model, (Y[:1],), num=64)
    alive = (run.state.log_weights > -jnp.inf).sum()
    np.testing.assert_allclose(jnp.exp(run.state.log_evidence.value), alive / 64, rtol=1e-5)
    np.testing.assert_allclose(run.info.ess[-1], alive, rtol=1e-5)


def test_nan_densities_are_impossible_and_counted():
    run = filtered(gate(lambda x, y: jnp.where(x > 0, jnp.nan, 0.0)), (Y[:1],), num=64)
    wrong = (run.state.particles.carry > 0).sum()
    assert run.state.num_nan == wrong > 0
    np.testing.assert_allclose(jnp.exp(run.state.log_evidence.value), 1 - wrong / 64, rtol=1e-5)


def test_a_long_series_in_float32():
    """10⁵ increments of the same particles, in float32 and added up in float64."""
    y = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    run = filtered(walk, (y, 3.0), num=4, threshold=1.0)
    exact = np.asarray(run.info.log_increment, np.float64).sum()
    assert abs(float(run.state.log_evidence.high) + float(run.state.log_evidence.low) - exact) < 0.02
    assert abs(float(np.cumsum(np.asarray(run.info.log_increment), dtype=np.float32)[-1]) - exact) > 0.02


def test_proposals_that_do_not_fit_are_refused():
    ss = lower(linear, (Y,), {}, PROBLEMS["linear"][1])

    def extra(parameters, x, y_t):
        numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("z", dist.Normal(x, 1.0))

    def wide(parameters, x, y_t):
        numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0))

    for proposal, words in (
        (extra, "must draw 'x' and nothing else"),
        (wide, r"site 'x' with the shape \(2,\)"),
    ):
        with pytest.raises(ModelError, match=words):
            run_filter(ss, Rules(4, systematic, 1.0, proposal), random.key(0))
