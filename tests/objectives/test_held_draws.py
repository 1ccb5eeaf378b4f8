"""Objectives that hold draws fixed, the wakes, sleep and the covariance gradient: exact expected values and
gradients, low particle counts.

Gradients here are prescribed and not those of the expected value, so the oracle sums a surrogate of its own
over all outcomes. 20,000 replicates with fixed keys, within 4.5 standard errors.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.lax import stop_gradient
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ReweightedWakeSleep, Sleep, Thermodynamic
from tests.objectives.exact import held, log_mean
from tests.oracles import assert_unbiased, bernoulli, quick_jit, replicates, table
from tests.problems import PROBLEMS

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)


def wake(log_w, log_p, log_q):
    return (jax.nn.softmax(log_w, axis=0) * (log_p + log_q)).sum(0)


@pytest.mark.parametrize(
    ("problem", "num_particles"),
    [("one_bernoulli", 3), ("chain", 2), ("plated_local", 2), ("bernoulli_then_normal", 2)],
)
def test_both_wakes(problem, num_particles):
    problem = PROBLEMS[problem]
    exact = held(problem, num_particles, log_mean, wake)
    assert_unbiased(replicates(ReweightedWakeSleep(num_particles), problem), exact)


def test_a_wake_with_wrong_weights_is_caught():
    problem = PROBLEMS["one_bernoulli"]
    for wrong in (
        lambda log_w, log_p, log_q: (jax.nn.softmax(log_w, axis=0) * (log_p - log_q)).sum(0),
        lambda log_w, log_p, log_q: (log_p + log_q).mean(0),
        lambda log_w, log_p, log_q: (jax.nn.softmax(log_w, axis=0) * log_p).sum(0),
    ):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(replicates(ReweightedWakeSleep(3), problem), held(problem, 3, log_mean, wrong))


# Asleep: a coin seen through a loaded one

P_Z, P_Y = 0.35, (0.2, 0.7)


def dreamer(y):
    z = numpyro.sample("z", dist.Bernoulli(P_Z))
    numpyro.sample("y", dist.Bernoulli(jnp.asarray(P_Y)[z]), obs=y)


def recogniser(y):
    phi = numpyro.param("phi", jnp.zeros(2))
    numpyro.sample("z", dist.Bernoulli(logits=phi[0] + phi[1] * y))


def asleep(params):
    total = 0.0
    for z, y in itertools.product((0, 1), repeat=2):
        p = (P_Z if z else 1 - P_Z) * (P_Y[z] if y else 1 - P_Y[z])
        total = total - p * bernoulli(z, params["phi"][0] + params["phi"][1] * y)
    return total


PHI = {"phi": jnp.array([0.3, -0.6])}


def slept(loss, model=dreamer, guide=recogniser, params=PHI, data=1):
    run = jax.value_and_grad(lambda params, key: loss.loss(key, params, model, guide, data))
    return quick_jit(jax.vmap(run, in_axes=(None, 0)))(params, jax.random.split(KEY, 20_000))


def test_sleep():
    exact = jax.value_and_grad(asleep)(PHI)
    samples = slept(Sleep(2))
    assert_unbiased(samples, exact)
    # a handler hides the names of the arguments
    assert_unbiased(slept(Sleep(2), guide=gradient(recogniser, {"z": "score"})), exact)
    awake = jax.value_and_grad(
        lambda params: (
            -P_Z * bernoulli(1, params["phi"].sum()) - (1 - P_Z) * bernoulli(0, params["phi"].sum())
        )
    )(PHI)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, awake)  # the data held at 1


def test_sleep_beside_the_wakes():
    """The value is the bound, the gradient a mixture."""
    share, num_particles = 0.25, 2
    logits = np.log(np.array([1 - P_Z, P_Z]) * np.array(P_Y))

    def guide_log_prob(params, z):
        return jnp.stack([bernoulli(k, params["phi"][0] + params["phi"][1]) for k in (0, 1)])[z]

    def mixture(params):
        total, bound = share * asleep(params), 0.0
        for draws in itertools.product((0, 1), repeat=num_particles):
            z = np.array(draws)
            log_q = guide_log_prob(params, z)
            log_w = stop_gradient(logits[z] - log_q)
            prob = jnp.exp(stop_gradient(log_q.sum()))
            bound = bound - prob * log_mean(log_w)
            total = total - (1 - share) * prob * (jax.nn.softmax(log_w) * log_q).sum()
        return total, bound

    grads, value = jax.grad(mixture, has_aux=True)(PHI)
    assert_unbiased(slept(ReweightedWakeSleep(num_particles, sleep=share)), (value, grads))


@pytest.mark.slow
def test_dreams_in_a_scan_and_by_other_names():
    def model(series):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(0.8 * x, 1.0))
            numpyro.sample("seen", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, jnp.zeros(()), series)

    def guide(series):
        slope = numpyro.param("slope", 0.1)

        def step(x, y):
            return numpyro.sample("x", dist.Normal(slope * y, 1.0)), None

        scan(step, jnp.zeros(()), series)

    data = jnp.zeros(3)
    with pytest.raises(
        ArgumentError, match=r"which argument of the guide holds the data\? It takes \(series\).*'seen'"
    ):
        Sleep().loss(KEY, {"slope": 0.1}, model, guide, data)
    # E[y x] / E[y²] minimises the loss: variances of x are 1, 1.64, 2.0496, and those of y larger by a
    # quarter.
    x = np.array([1.0, 1.64, 2.0496]).sum()
    run = jax.grad(
        lambda params, key: Sleep(1, data={"series": "seen"}).loss(key, params, model, guide, data)
    )
    grads = quick_jit(jax.vmap(run, in_axes=(None, 0)))(
        {"slope": jnp.asarray(x / (x + 0.75))}, jax.random.split(KEY, 20_000)
    )
    assert_unbiased(grads, {"slope": np.zeros(())})
    with pytest.raises(ArgumentError, match="the guide takes"):
        Sleep(data={"y": "seen"}).loss(KEY, {"slope": 0.1}, model, guide, data)
    with pytest.raises(ModelError, match="has shape"):
        Sleep(data={"series": "seen"}).loss(KEY, {"slope": 0.1}, lambda s: model(jnp.zeros(2)), guide, data)


# The covariance gradient

BETAS = [0.0, 0.1, 10**-0.5, 1.0]


def left_sum(weigh):
    def total(log_w, *rest):
        return sum(
            (b - a) * weigh(a, jax.nn.softmax(a * log_w, axis=0), log_w, *rest)
            for a, b in itertools.pairwise(BETAS)
        )

    return total


tvo_value = left_sum(lambda beta, w, f: (w * f).sum(0))


def covariance(beta, w, f, log_p, log_q):
    mean = (w * f).sum(0)
    return (w * (log_p - log_q)).sum(0) + (w * (f - mean) * (beta * log_p + (1 - beta) * log_q)).sum(0)


@pytest.mark.parametrize(
    ("problem", "num_particles"), [("one_bernoulli", 3), ("chain", 2), ("plated_local", 2)]
)
def test_the_covariance_gradient(problem, num_particles):
    problem = PROBLEMS[problem]
    samples = replicates(Thermodynamic(num_particles, 3), problem)
    assert_unbiased(samples, held(problem, num_particles, tvo_value, left_sum(covariance)))
    if problem.name == "one_bernoulli":
        without = left_sum(lambda beta, w, f, log_p, log_q: (w * (log_p - log_q)).sum(0))
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples, held(problem, num_particles, tvo_value, without))


@pytest.mark.slow
def test_with_many_particles_it_is_the_gradient_of_the_sum():
    """Bias and noise both fade: at 20,000 particles the gradient is that of exact expectations, to 2%."""
    problem = PROBLEMS["chain"]

    def exact(params):
        _, log_p, log_q = (x.reshape(6) for x in table(problem.oracle, params, None))
        total = 0.0
        for a, b in itertools.pairwise(BETAS):
            path = jax.nn.softmax(a * log_p + (1 - a) * log_q)
            total = total - (b - a) * (path * (log_p - log_q)).sum()
        return total

    params = jax.tree.map(jnp.asarray, problem.params)
    expected = jax.grad(exact)(params)
    actual = quick_jit(
        jax.grad(lambda params: Thermodynamic(20_000, 3).loss(KEY, params, problem.model, problem.guide))
    )(params)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=0.02), actual, expected)
