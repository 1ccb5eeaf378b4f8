"""``replicate``: particles within particles, their baselines, side by side and one after another.

Statistical tests average 20,000 replicates under fixed keys and allow 4.5 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import expectation, log_density, log_mean_exp, replicate
from ppl_ext.gradients import Enumerate, LeaveOneOut, ScoreFunction
from tests.estimates import SCORE, close, coin, exactly, replicates, sigmoid
from tests.oracles import assert_unbiased

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


@pytest.mark.parametrize(
    "strategy", [SCORE, ScoreFunction(), Enumerate()], ids=["score", "leave-one-out", "enumerate"]
)
def test_replicates_inside_replicates(strategy):
    def program(p):
        return replicate(lambda: replicate(lambda: coin(p, strategy), 3).mean() ** 2, 2).mean()

    def by_hand(p):
        return sigmoid(p) * (1 - sigmoid(p)) / 3 + sigmoid(p) ** 2

    samples = replicates(program, 0.4, 1 if strategy == Enumerate() else 20_000)
    if strategy == Enumerate():
        close(jax.tree.map(lambda x: x[0], samples), exactly(by_hand, 0.4))
    else:
        assert_unbiased(samples, exactly(by_hand, 0.4))


PARTICLES = {
    "term by term": (
        lambda costs: costs.mean(),
        lambda p, cost: (1 - sigmoid(p)) * cost[0] + sigmoid(p) * cost[1],
    ),
    "linear": (lambda costs: costs.mean(), lambda p, cost: (1 - sigmoid(p)) * cost[0] + sigmoid(p) * cost[1]),
    "nonlinear": (lambda costs: log_mean_exp(costs), None),
}


@pytest.mark.parametrize("combine", PARTICLES)
def test_leave_one_out_lowers_the_variance_and_stays_unbiased(combine):
    """A mean of terms: the mean of the others. Anything else: VIMCO. Costs are far from zero, where a
    baseline matters.
    """
    cost = np.array([10.0, 12.0])
    combination, by_hand = PARTICLES[combine]
    num = 4

    def log_mean_weight(p, cost):
        ones = np.arange(num + 1)
        ways = np.array([1.0, 4.0, 6.0, 4.0, 1.0])
        odds = ways * sigmoid(p) ** ones * (1 - sigmoid(p)) ** (num - ones)
        return jnp.sum(odds * jnp.log(((num - ones) * np.exp(cost[0]) + ones * np.exp(cost[1])) / num))

    def program(strategy):
        def particle(p):
            value = jnp.asarray(cost)[coin(p, strategy).astype(int)]
            return (
                log_density(lambda: numpyro.factor("cost", value), {}) if combine == "term by term" else value
            )

        return lambda p: combination(replicate(lambda: particle(p), num))

    exact = exactly(lambda p: (by_hand or log_mean_weight)(p, cost), 0.4)
    spreads = []
    for strategy in (SCORE, ScoreFunction(LeaveOneOut())):
        samples = replicates(program(strategy), 0.4)
        assert_unbiased(samples, exact)
        spreads.append(float(samples[1].std()))
    plain, with_baseline = spreads
    assert with_baseline < 0.25 * plain


def test_one_after_another_is_the_same_as_side_by_side():
    def program(p, vectorize):
        def particle():
            x = numpyro.sample("x", dist.Normal(p, 1.0))
            return x * coin(p + x, "score")

        return log_mean_exp(replicate(particle, 3, vectorize=vectorize))

    key = jax.random.key(0)
    estimator = expectation(program)
    close(
        estimator.value_and_grad(key, jnp.array(0.4), vectorize=False),
        estimator.value_and_grad(key, jnp.array(0.4), vectorize=True),
    )


def test_particles_are_different_and_calls_are_too():
    def program():
        x = replicate(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)), 3)
        y = replicate(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)), 3)
        z = jnp.concatenate([x, y, numpyro.sample("x", dist.Normal(0.0, 1.0))[None]])
        return jnp.abs(z[:, None] - z[None] + jnp.eye(7)).min()

    assert float(expectation(program).value(jax.random.key(0))) > 1e-6
