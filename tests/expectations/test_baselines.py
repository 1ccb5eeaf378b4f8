"""Baselines made of the other elements of a plate: unbiased, less noise, and only where elements do not meet.

Means of 20,000 replicates against exact sums within 4.5 standard errors; keys are fixed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext import expectation, log_density, log_mean_exp, replicate
from ppl_ext.expectations import baselines
from ppl_ext.gradients import ScoreFunction
from tests.oracles import assert_unbiased, quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

NO_BASELINE = ScoreFunction(baseline=None)
LOGITS = jnp.array([-0.7, 0.2, 1.1, 0.4])
OFFSETS = jnp.array([8.0, 12.0, 9.0, 11.0])


def estimates(program, params, num=20_000):
    est = expectation(program)
    return quick_jit(jax.vmap(lambda key: est.value_and_grad(key, params)))(
        jax.random.split(jax.random.key(5), num)
    )


def exactly(costs, logits):
    """Value and gradient of the expectation of ``costs(coins).sum()`` over independent coins."""

    def value(logits):
        p, total = jax.nn.sigmoid(logits), 0.0
        for coins in itertools.product((0.0, 1.0), repeat=len(logits)):
            z = jnp.array(coins)
            total += jnp.prod(jnp.where(z == 1, p, 1 - p)) * costs(z).sum()
        return total

    return jax.value_and_grad(value)(logits)


def apart(z):
    return OFFSETS + z * jnp.array([1.0, -2.0, 3.0, 0.5])


def together(z):
    return apart(z) * (1 + 0.5 * z.sum())


def plated(costs, strategy):
    """A plate of coins, each with a cost of its own if ``costs`` says so."""

    def program(logits):
        with numpyro.plate("n", 4):
            z = numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"gradient": strategy})
        return log_density(lambda: numpyro.factor("cost", costs(z)), {})

    return program


@pytest.mark.parametrize("costs", [apart, together])
def test_the_others_of_a_plate(costs):
    exact = exactly(costs, LOGITS)
    spreads = []
    for strategy in ("score", NO_BASELINE):
        samples = estimates(plated(costs, strategy), LOGITS)
        assert_unbiased(samples, exact)
        spreads.append(samples[1].std(0))
    if costs is apart:
        assert (spreads[0] < 0.5 * spreads[1]).all()
    else:
        np.testing.assert_allclose(spreads[0], spreads[1], rtol=1e-5)


def test_elements_that_meet_would_bias_it(monkeypatch):
    """The same assertion when elements are taken to be apart that are not."""
    monkeypatch.setattr(baselines, "_apart", lambda choice, run, credit: (0,))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(estimates(plated(together, "score"), LOGITS), exactly(together, LOGITS))


def test_with_the_element_itself_among_the_others_it_would_be_biased(monkeypatch):
    collected = baselines.collected

    def doubled(choices, shapes, terms, credit):  # twice the sum, of which one's own cost is taken off once
        return [Doubled(x) for x in collected(choices, shapes, terms, credit)]

    class Doubled:
        def __init__(self, cost):
            self.cost, self.shape = cost, cost.shape

        def sum(self, *args, **kwargs):
            return 2 * self.cost.sum(*args, **kwargs)

        def __rsub__(self, other):
            return other - self.cost

    monkeypatch.setattr(baselines, "collected", doubled)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(estimates(plated(apart, "score"), LOGITS), exactly(apart, LOGITS))


def test_two_axes_of_which_one_meets():
    """A plate of pairs: the slices are apart, the pair in a slice is not."""

    def pairs(z):
        return jnp.array([8.0, 12.0]) * (1 + z[:, 0] * (2 - z[:, 1]))

    def program(logits):
        with numpyro.plate("n", 2):
            z = numpyro.sample(
                "z", dist.Bernoulli(logits=logits.reshape(2, 2)).to_event(1), infer={"gradient": "score"}
            )
        return log_density(lambda: numpyro.factor("cost", pairs(z)), {})

    assert_unbiased(estimates(program, LOGITS), exactly(lambda z: pairs(z.reshape(2, 2)), LOGITS))


def test_steps_of_a_scan_are_not_apart():
    """Later costs feel earlier coins, so none of them is a baseline for another."""

    def program(strategy):
        def run(logits):
            def step(carry, logit):
                z = numpyro.sample("z", dist.Bernoulli(logits=logit), infer={"gradient": strategy})
                return carry + z, 10.0 + carry * z

            return scan(step, 0.0, logits)[1].sum()

        return run

    with_others, without = (estimates(program(s), LOGITS, 2000)[1] for s in ("score", NO_BASELINE))
    np.testing.assert_allclose(with_others, without, rtol=1e-5)


def many_particles(num):
    """The importance-weighted bound of one coin: nonlinear, so each of its particles is left out in turn."""

    def log_weight(logit):
        b = numpyro.sample("b", dist.Bernoulli(logits=logit), infer={"gradient": ScoreFunction()})
        return jnp.where(b == 1, 0.3, -0.8) - dist.Bernoulli(logits=logit).log_prob(b)

    return expectation(lambda logit: log_mean_exp(replicate(lambda: log_weight(logit), num)))


@pytest.mark.slow
def test_particles_are_left_out_in_chunks(monkeypatch):
    whole = many_particles(5).value_and_grad(jax.random.key(0), jnp.array(0.4))
    monkeypatch.setattr(baselines, "LEFT_OUT_AT_ONCE", 2)
    chunked = many_particles(5).value_and_grad(jax.random.key(0), jnp.array(0.4))
    np.testing.assert_allclose(whole, chunked, rtol=1e-6)
    assert abs(float(whole[1])) > 1e-3


def test_thousands_of_particles_need_no_square_of_memory():
    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars)
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                yield from sizes(inner) if hasattr(inner, "eqns") else ()

    num = 4096
    traced = jax.make_jaxpr(many_particles(num).value_and_grad)(jax.random.key(0), jnp.array(0.4))
    assert max(sizes(traced.jaxpr)) <= 2 * num * baselines.LEFT_OUT_AT_ONCE
