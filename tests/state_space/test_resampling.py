"""Offspring are unbiased for every scheme, zero weights have none, and a million particles in float32 get
what float64 gives them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from ppl_ext.errors import ArgumentError
from ppl_ext.state_space import resampling
from ppl_ext.state_space.resampling import SCHEMES, scheme_of

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEYS = random.split(random.key(0), 20_000)
WEIGHTS = {2: [0.3, 0.7], 3: [0.0, 0.35, 0.65], 8: [0.02, 0.3, 0.0, 0.11, 0.07, 0.25, 0.2, 0.05]}


def counts(scheme, log_weights, num, keys=KEYS):
    def one(key):
        ancestors = scheme(key, log_weights, num)
        return jnp.zeros(len(log_weights)).at[ancestors].add(1.0)

    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def errors(samples, expected):
    standard_error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return np.abs(samples.mean(0) - expected) / np.maximum(standard_error, 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", WEIGHTS)
def test_counts_are_unbiased(scheme, size):
    """Over fresh keys one of the 52 comparisons would fail with probability 4e-4."""
    weights = np.array(WEIGHTS[size])
    with np.errstate(divide="ignore"):
        log_weights = jnp.log(weights) + 3.0
    for num in (size, 5)[: 1 + (size == 3)]:
        samples = counts(SCHEMES[scheme], log_weights, num)
        assert (samples.sum(1) == num).all()
        assert errors(samples, num * weights).max() < 4.5
        assert (samples[:, weights == 0] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_variance_is_that_of_the_scheme(scheme):
    weights = np.array(WEIGHTS[8])
    samples = counts(SCHEMES[scheme], jnp.log(weights + 1e-30), 8)
    independent = 8 * weights * (1 - weights)
    if scheme == "multinomial":  # the whole covariance matrix
        exact = np.diag(8 * weights) - 8 * np.outer(weights, weights)
        np.testing.assert_allclose(np.cov(samples.T), exact, atol=0.06)
    else:
        assert (samples.var(0) <= independent + 0.02).all() and samples.var(0).sum() < 0.8 * independent.sum()
    if scheme in ("systematic", "residual"):
        assert (samples >= np.floor(8 * weights - 1e-5)).all()
    if scheme == "systematic":
        assert (samples <= np.ceil(8 * weights + 1e-5)).all()


@pytest.mark.parametrize("mutation", ["a point too far", "half a gap", "no shift"])
def test_a_fault_is_seen(mutation, monkeypatch):
    weights = np.array(WEIGHTS[8])
    scheme = "multinomial" if mutation == "half a gap" else "systematic"
    if mutation == "no shift":
        monkeypatch.setattr(
            resampling.random, "uniform", lambda key, shape, dtype: jnp.full(shape, 0.5, dtype)
        )
    elif mutation == "half a gap":
        monkeypatch.setattr(
            resampling.random, "exponential", lambda key, shape, dtype: random.uniform(key, shape, dtype)
        )
    else:
        offspring = resampling._offspring
        monkeypatch.setattr(
            resampling, "_offspring", lambda below, w, num: offspring(below + (below < num), w, num)
        )
    samples = counts(SCHEMES[scheme], jnp.log(weights + 1e-30), 8)
    worst = errors(samples, 8 * weights).max()
    # the counts stay unbiased by symmetry of the gaps, and are no longer independent
    if mutation == "half a gap":
        exact = np.diag(8 * weights) - 8 * np.outer(weights, weights)
        assert np.abs(np.cov(samples.T) - exact).max() > 0.06
    else:
        assert worst > 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.slow
def test_degenerate_weights(scheme, monkeypatch):
    draw = jax.jit(SCHEMES[scheme], static_argnums=2)
    nothing = draw(random.key(0), jnp.full(6, -jnp.inf), 6)
    assert nothing.shape == (6,) and ((nothing >= 0) & (nothing < 6)).all()
    np.testing.assert_array_equal(draw(random.key(1), jnp.full(6, -jnp.inf).at[4].set(-1e4), 6), 4)
    np.testing.assert_array_equal(draw(random.key(1), jnp.full(6, jnp.nan).at[4].set(0.0), 6), 4)
    np.testing.assert_array_equal(draw(random.key(1), jnp.zeros(6).at[2].set(jnp.inf), 6), 2)
    np.testing.assert_array_equal(draw(random.key(1), jnp.zeros(1), 1), 0)
    for key in random.split(random.key(3), 20):
        assert set(np.asarray(draw(key, jnp.array([-jnp.inf, 0.0, 0.0, -jnp.inf]), 7))) <= {1, 2}
    for extreme in (0.0, 1.0 - 2.0**-24):  # the ends of the uniforms' range
        monkeypatch.setattr(
            resampling.random, "uniform", lambda key, shape, dtype, u=extreme: jnp.full(shape, u, dtype)
        )
        fresh = jax.jit(
            lambda key, log_weights, num: SCHEMES[scheme](key, log_weights, num), static_argnums=2
        )
        assert set(np.asarray(fresh(random.key(0), jnp.array([-jnp.inf, 0.0, -0.3, -jnp.inf]), 4))) <= {1, 2}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_least_of_uniforms_takes_nothing_that_is_as_good_as_impossible(scheme, monkeypatch):
    """One in eight million is 0."""
    exponential = random.exponential
    monkeypatch.setattr(resampling.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    monkeypatch.setattr(resampling.random, "exponential", lambda *args: exponential(*args).at[0].set(0.0))
    log_weights = jnp.array([-60.0, 0.0, -60.0, 0.3, -60.0])
    assert set(np.asarray(SCHEMES[scheme](random.key(0), log_weights, 8)).tolist()) <= {1, 3}


def misplaced(size=1_000_000):
    """The share of systematic ancestors, and of offspring of all schemes by stretches, that float64 would
    give otherwise.
    """
    weights = np.random.default_rng(0).gamma(0.5, size=size).astype(np.float32)
    log_weights = jnp.log(weights)
    ancestors = np.asarray(
        jax.jit(lambda key, log_weights: resampling.systematic(key, log_weights, size))(
            random.key(0), log_weights
        )
    )
    exact = np.exp(np.asarray(log_weights, np.float64))
    u = float(random.uniform(random.key(0), (), jnp.float32))
    expected = np.searchsorted(np.cumsum(exact) * (size / exact.sum()), np.arange(size) + u)
    return (ancestors != expected).mean()


@pytest.mark.slow
def test_a_million_particles_in_float32(monkeypatch):
    assert misplaced() < 0.005
    monkeypatch.setattr(resampling, "_ONE_LEVEL", 10**9)
    assert misplaced() > 0.02


@pytest.mark.slow
def test_many_independent_points():
    """Whole stretches of 50,000 particles have their share of offspring, within the range of independent
    draws.
    """
    log_weights = jnp.log(np.random.default_rng(0).gamma(0.5, size=50_000).astype(np.float32))
    exact = (
        np.exp(np.asarray(log_weights, np.float64))
        * 50_000
        / np.exp(np.asarray(log_weights, np.float64)).sum()
    )
    for name in ("multinomial", "residual", "stratified"):
        ancestors = np.asarray(SCHEMES[name](random.key(0), log_weights, 50_000))
        assert (np.diff(ancestors) >= 0).all()
        number = np.bincount(ancestors, minlength=50_000)
        share = number.reshape(100, -1).sum(1) - exact.reshape(100, -1).sum(1)
        assert np.abs(share).max() < (
            2.01 if name == "stratified" else 4.5 * np.sqrt(exact.reshape(100, -1).sum(1).max())
        )
        if name == "residual":
            assert (number >= np.floor(exact * (1 - 1e-5))).all()


def test_schemes_by_name():
    assert scheme_of("x", "systematic") is resampling.systematic
    with pytest.raises(ArgumentError, match="'systematic', 'stratified'"):
        scheme_of("ParticleFilter: resampling", "optimal")


@pytest.mark.slow
def test_vmap_is_a_loop():
    log_weights = random.normal(random.key(5), (4, 2000))
    keys = random.split(random.key(6), 4)
    for scheme in (resampling.systematic, resampling.multinomial):
        one = jax.jit(lambda k, w, scheme=scheme: scheme(k, w, 300))
        together = jax.jit(jax.vmap(one))(keys, log_weights)
        for i in range(4):
            np.testing.assert_array_equal(together[i], one(keys[i], log_weights[i]))
