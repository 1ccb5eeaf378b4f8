"""Tempered SMC as an algorithm: E[w] = p(x) and E[1/w] = 1/p(x) with few particles, on models whose evidence
and posterior are known; and the same comparisons with a part of it broken, which fail.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMC, NUTS
from scipy import stats

from ppl_ext import log_density, normalize, simulate
from ppl_ext.algorithms import (
    ImportanceSampling,
    IndependentMoves,
    NumPyroMoves,
    RandomWalk,
    TemperedSMC,
    tempered_smc,
)
from ppl_ext.algorithms.tempered import moves, retained, stages, unconstrained
from ppl_ext.errors import ModelError
from tests.oracles import assert_unbiased, quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py
NUM = 6000
TWO = [0.2, 1.0]  # temperatures
WALK = RandomWalk(2, scale=1.0, covariance=jnp.ones(1))


def counted(y):
    """A rate with bounds, and a conjugate prior."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def mixture(y):
    """A finite site is summed out."""
    k = numpyro.sample("k", dist.Bernoulli(0.3))
    z = numpyro.sample("z", dist.Normal(3.0 * k, 1.0))
    numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def two_peaks(y):
    z = numpyro.sample("z", dist.Normal(0.3, 1.0))
    numpyro.sample("y", dist.Normal(z**2, 0.7), obs=y)


def exact_counted(rng, num):
    # Gamma(2, 1) and Poisson: y is negative binomial, the posterior Gamma(2 + y, 2)
    return stats.nbinom.pmf(5, 2, 0.5), {"rate": rng.gamma(7.0, 0.5, num)}


def exact_mixture(rng, num):
    means, evidence = np.array([0.0, 3.0]), np.array([0.7, 0.3])
    evidence = evidence * stats.norm.pdf(1.0, means, 1.25**0.5)
    k = rng.choice(2, num, p=evidence / evidence.sum())
    z = 0.2 * (means[k] + 4.0) + 0.2**0.5 * rng.standard_normal(num)
    return evidence.sum(), {"k": k, "z": z}


def exact_two_peaks(rng, num):
    grid = np.linspace(-5.0, 5.0, 20_001)
    density = stats.norm.pdf(grid, 0.3, 1.0) * stats.norm.pdf(1.5, grid**2, 0.7)
    step = grid[1] - grid[0]
    shares = density / density.sum()
    return density.sum() * step, {"z": rng.choice(grid, num, p=shares)}


# Model, data, exact evidence and posterior draws.
MODELS = {
    "counted": (counted, 5.0, exact_counted),
    "mixture": (mixture, 1.0, exact_mixture),
    "two peaks": (two_peaks, 1.5, exact_two_peaks),
}


def forth(name, algorithm, num=NUM, seed=0):
    """Weights of draws, w / p(x), and the draws."""
    model, y, exact = MODELS[name]
    evidence, _ = exact(np.random.default_rng(0), 1)
    posterior = normalize(model, {}, algorithm)

    def one(key):
        draw = simulate(posterior, y, rng_key=key)
        log_p = log_density(model, draw.values, y).total
        return jnp.exp(log_p - draw.log_density.total - np.log(evidence)), dict(draw.values)

    return jax.tree.map(
        lambda x: np.asarray(x, np.float64),
        quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num)),
    )


def back(name, algorithm, num=NUM, seed=1):
    """p(x) / w at exact draws."""
    model, y, exact = MODELS[name]
    evidence, draws = exact(np.random.default_rng(2), num)
    posterior = normalize(model, {}, algorithm)

    def one(key, values):
        estimated = log_density(posterior, values, y, rng_key=key).total
        return jnp.exp(estimated - log_density(model, values, y).total + np.log(evidence))

    draws = {n: jnp.asarray(x, int if n == "k" else float) for n, x in draws.items()}
    found = quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num), draws)
    return np.asarray(found, np.float64)


@functools.cache
def posterior_means(name):
    draws = MODELS[name][2](np.random.default_rng(5), 2_000_000)[1]
    return {n: float(x.mean()) for n, x in draws.items()}


ALGORITHMS = {
    **{f"{n} particles": TemperedSMC(n, TWO, WALK) for n in (2, 3, 8, 64)},
    "independent": TemperedSMC(
        3, TWO, IndependentMoves(2, mean=jnp.array([0.8]), covariance=jnp.array([[0.8]]))
    ),
    "waste-free": TemperedSMC(6, TWO, WALK, waste_free=True),
    "HMC": TemperedSMC(
        3, TWO, NumPyroMoves(HMC, 1, 0.4, jnp.ones(1), {"num_steps": 2, "trajectory_length": None})
    ),
    "NUTS": TemperedSMC(3, TWO, NumPyroMoves(NUTS, 1, 0.4, jnp.ones(1), {"max_tree_depth": 2})),
    "found beside": TemperedSMC(3, pilot_particles=8, max_stages=5),
}

CASES = [
    *((name, algorithm) for name in MODELS for algorithm in ALGORITHMS if algorithm != "2 particles"),
    *((name, "2 particles") for name in MODELS),
]


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_a_draw_is_properly_weighted(name, algorithm):
    weights, draws = forth(name, ALGORITHMS[algorithm])
    means = posterior_means(name)
    assert_unbiased((weights, {n: weights * draws[n] for n in means}), (1.0, means))


# With two particles a reciprocal's tails say nothing.
@pytest.mark.parametrize(("name", "algorithm"), CASES[: -len(MODELS)])
def test_a_given_draw_is_scored_without_bias(name, algorithm):
    assert_unbiased(back(name, ALGORITHMS[algorithm]), 1.0)


# --- with a part broken, the same comparisons fail


def proposal_taken(key, shape):
    return jnp.full(shape, -jnp.inf)


BROKEN = {
    "weights": lambda m: m.setattr(stages, "log_gain", lambda path, points, *_: jnp.zeros(len(points.base))),
    "resampling": lambda m: m.setattr(tempered_smc, "multinomial", lambda key, weights, num: jnp.arange(num)),
    "acceptance": lambda m: m.setattr(moves, "log_uniforms", proposal_taken),
    "temperature": lambda m: m.setattr(
        moves, "log_density_at", lambda path, points, tau: points.base + points.parts.sum(-1)
    ),
    "Jacobian": lambda m: m.setattr(
        unconstrained.Constrain, "_value", lambda self, transform, name: transform(self.positions[name])
    ),
}


@pytest.mark.parametrize("part", BROKEN)
def test_without_a_part_draws_are_not_properly_weighted(part, monkeypatch):
    BROKEN[part](monkeypatch)
    with pytest.raises(AssertionError, match="standard errors off"):
        test_a_draw_is_properly_weighted("counted", "8 particles")


def straight_back(key, path, rules, plan, last):
    chains = jax.tree.map(lambda x: jnp.broadcast_to(x, (rules.max_stages, *x.shape)), last)
    return last, chains


def standing_still(key, path, rules, tau, fitted, at):
    length = rules.moves.num_steps + 1
    return at, jax.tree.map(lambda x: jnp.repeat(x, length, axis=0), at)


@pytest.mark.parametrize(
    ("algorithm", "part", "broken"),
    [("8 particles", "_way_back", straight_back), ("waste-free", "_chain_around", standing_still)],
)
def test_a_path_that_does_not_go_back_by_the_moves_scores_with_bias(algorithm, part, broken, monkeypatch):
    monkeypatch.setattr(retained, part, broken)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(back("two peaks", ALGORITHMS[algorithm], num=20_000), 1.0)


def flat(y):
    mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def near(given, y):
    numpyro.sample("mean", dist.Normal(0.0, 3.0))


FIXED = RandomWalk(num_steps=1, scale=1.0, covariance=jnp.ones(1))


@pytest.mark.parametrize(
    "algorithm", [TemperedSMC(2000, [1.0], initial=near, moves=FIXED), ImportanceSampling(2000, near)]
)
def test_an_improper_prior_needs_a_start_of_its_own(algorithm):
    """The posterior is N(y, 1)."""
    posterior = normalize(flat, {}, algorithm)
    log_p = quick_jit(lambda key: log_density(posterior, {"mean": 0.5}, 1.0, rng_key=key).total)(
        jax.random.key(0)
    )
    assert abs(log_p - dist.Normal(1.0, 1.0).log_prob(0.5)) < 0.1
    with pytest.raises(ModelError, match="site 'mean'|Nothing can be drawn of ImproperUniform"):
        simulate(normalize(flat, {}, type(algorithm)(10)), 1.0, rng_key=jax.random.key(0))
