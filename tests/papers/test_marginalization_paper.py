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


@pytest.mark.slow
def test_one_network_at_full_size():
    constant, error, weighed = module("marginalization").claims()
    assert abs(float(constant[2]) - 7.417) < 0.01 and float(error[2]) <= 0.017
    assert abs(float(weighed[2]) - 7.417) < 0.005


def test_the_model_is_the_energy_and_its_terms_are_those_of_pairs():
    program = module("marginalization")
    every = jnp.array(list(itertools.product([0, 1], repeat=9)))
    spins = 2 * np.asarray(every).reshape(-1, 3, 3) - 1
    pairs = (spins[:, 1:] * spins[:, :-1]).sum((1, 2)) + (spins[:, :, 1:] * spins[:, :, :-1]).sum((1, 2))
    np.testing.assert_allclose(program.energy(every), program.COUPLING * pairs, rtol=1e-5)
    logs = jax.vmap(lambda x: ppl_ext.log_density(program.spins, {"x": x}).total)(every)
    np.testing.assert_allclose(logs, program.COUPLING * pairs, atol=1e-5)
    np.testing.assert_allclose(jax.nn.logsumexp(logs), 7.417, atol=2e-3)
    two = jnp.arange(9) < 2  # one pair
    np.testing.assert_allclose(program.within(every, two), program.COUPLING * spins[:, 0, 0] * spins[:, 0, 1])
