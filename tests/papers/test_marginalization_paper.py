"""What the program on marginalisation models claims, and its parts against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl_ext
from tests.papers.programs import claims, module


@pytest.mark.slow
def test_one_network_for_any_part():
    constant, error, weighed = claims("marginalization")
    exact = float(constant.known)
    assert abs(float(constant.ours) - exact) < 0.1 and float(error.ours) < 0.05
    # a thousand draws of a guide whose logs are off by that much
    assert abs(float(weighed.ours) - exact) < 0.02


def test_the_sum_over_a_spin():
    program = module("marginalization")
    params = program.network(jax.random.key(0))
    x = jnp.array([1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 1.0, -1.0, 0.0])
    both = [float(program.log_part(params, x.at[3].set(s))) for s in (-1.0, 1.0)]
    np.testing.assert_allclose(program.with_one_more(params, x, 3), np.logaddexp(*both), rtol=1e-5)
    whole = x.at[jnp.array([1, 3, 4, 8])].set(1.0)
    pairs = sum(float(whole[i] * whole[j]) for i, j in program.PAIRS.T)
    np.testing.assert_allclose(program.log_part(params, whole), program.COUPLING * pairs, rtol=1e-5)


def test_the_model_and_its_guide():
    """The guide's probabilities sum to one in any order, and the model's to the constant."""
    program = module("marginalization")
    params = program.network(jax.random.key(1))
    every = jnp.array(list(itertools.product([0.0, 1.0], repeat=9)))
    guide = program.guide_of(params, [4, 0, 8, 1, 7, 2, 6, 3, 5])

    def logs(x):
        values = {f"x{i}": x[i] for i in range(9)}
        of_guide, of_model = (ppl_ext.log_density(p, values).total for p in (guide, program.spins))
        return of_guide, of_model

    of_guide, of_model = jax.vmap(logs)(every)
    np.testing.assert_allclose(jnp.exp(of_guide).sum(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(jax.nn.logsumexp(of_model), 7.417, atol=2e-3)
