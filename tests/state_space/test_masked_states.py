"""Finite states that are masked, in filters: each outcome counts one, so one is drawn evenly, whatever the
law says.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask

from ppl_ext import expectation, log_density, marginal
from ppl_ext.algorithms import ParticleFilter
from ppl_ext.smoothing import smooth
from ppl_ext.state_space.model import lower

KEY = random.key(0)


@pytest.mark.parametrize("events", [0, 1])
def test_a_masked_finite_state_counts_each_outcome_and_draws_them_evenly(events):
    """However rare the law has an outcome: the weight is log K for each masked element, without noise, and
    the law's of the others is 0.
    """

    def model(seen):
        def step(z, seen_t):
            law = dist.Categorical(jnp.array([1 - 2e-6, 1e-6, 1e-6])).expand([2])
            z = numpyro.sample("z", law.mask(jnp.stack([seen_t, True])).to_event(events))
            return z, None

        scan(step, jnp.zeros(2, int), seen)

    ss = lower(model, (np.array([True, False]),))
    first = ss.initial({}).particle
    drawn, weights = jax.vmap(lambda key: ss.propagate(key, first, ss.inputs(1))[:2])(
        random.split(random.key(0), 300)
    )
    np.testing.assert_allclose(weights, math.log(3), rtol=1e-6)
    counts = np.bincount(np.asarray(drawn.sites["z"])[:, 0], minlength=3)
    assert (np.abs(counts - 100) < 5 * math.sqrt(300 * 2 / 9)).all() and (drawn.sites["z"][:, 1] == 0).all()
    _, weight, *_ = ss.propagate(random.key(0), first, ss.inputs(0))
    np.testing.assert_allclose(weight, 0.0, atol=1e-6)


def test_the_gradient_of_masked_finite_states():
    """Where the state is masked its law, and so its parameter, is not there, and a state drawn evenly has no
    score. With one particle, so that any term too many is seen; the exact slope is the elimination's."""

    def masked_states(p, y, seen):
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))

        def step(z, inputs):
            y_t, seen_t = inputs
            with mask(mask=seen_t):
                z = numpyro.sample(
                    "z", dist.Bernoulli(jnp.where(z == 1, p, 0.3)), infer={"enumerate": "parallel"}
                )
            numpyro.sample("y", dist.Normal(loc + 1.5 * z, 1.0), obs=y_t)
            return z, None

        scan(step, 1, (y, seen))

    y, seen, given = jnp.array([0.2, 1.7, 0.9]), jnp.array([True, False, True]), {"loc": 0.1}

    def exact(p):
        return jnp.exp(log_density(masked_states, given, p, y, seen).total)

    program = marginal(masked_states, list(given), ParticleFilter(1))
    estimator = expectation(lambda p: jnp.exp(log_density(program, given, p, y, seen).total))
    values, slopes = jax.jit(jax.vmap(lambda key: estimator.value_and_grad(key, 0.6)))(
        jax.random.split(KEY, 20_000)
    )
    for found, wanted in ((values, exact(0.6)), (slopes, jax.grad(exact)(0.6))):
        assert abs(found.mean() - wanted) < 5 * found.std() / np.sqrt(len(found)), (found.mean(), wanted)
    assert slopes.std() / np.sqrt(len(slopes)) < 0.1 * abs(jax.grad(exact)(0.6))


def test_padding_costs_particles_nothing():
    """Two series in a plate, the padding of one masked; by their law the transitions there are nearly
    certain.
    """
    matrix = jnp.array([[0.998, 0.001, 0.001], [0.001, 0.998, 0.001], [0.001, 0.001, 0.998]])

    def padded(y, lengths):
        def step(z, inputs):
            t, y_t = inputs
            with numpyro.plate("series", 2), mask(mask=t < lengths):
                z = numpyro.sample("z", dist.Categorical(matrix[z]), infer={"enumerate": "parallel"})
                numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=y_t)
            return z, None

        scan(step, jnp.zeros(2, int), (jnp.arange(5), y))

    y, lengths = jnp.array([[0.1, -0.4], [0.9, 0.3], [0.2, 9.0], [-0.3, 9.0], [0.4, 9.0]]), jnp.array([5, 2])
    exact = log_density(padded, {}, y, lengths).total
    found = [smooth(padded, num_particles=200).run(random.key(i), y, lengths).log_evidence for i in range(5)]
    np.testing.assert_allclose(found, exact, atol=0.1)
