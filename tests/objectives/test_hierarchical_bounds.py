"""Hierarchical bounds of a linear-Gaussian program, at one, two and five particles.

20,000 replicates with fixed keys, within 4.5 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import marginal
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.objectives import ELBO
from tests.objectives.exact import conjugate, log_mean
from tests.oracles import assert_unbiased, normal, quick_jit

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)


def hierarchy():
    numpyro.sample(
        "z", dist.Normal(0.4 + 0.8 * numpyro.sample("u", dist.Normal(0.0, 1.0)), numpyro.param("spread", 0.6))
    )


def reverse(given):
    numpyro.sample("u", dist.Normal(0.6 * given["z"] - 0.2, 0.8))


def hierarchical(spread, num):
    """E[log p(y, z) − log q̂(z)]: Gauss-Hermite over z, the u behind it, and the fresh ones (8 nodes
    each).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    grid = np.stack(np.meshgrid(*[nodes] * (num + 1), indexing="ij")).reshape(num + 1, -1)
    prob = np.prod(
        np.stack(np.meshgrid(*[weights / weights.sum()] * (num + 1), indexing="ij")).reshape(num + 1, -1),
        axis=0,
    )
    z = 0.4 + 0.8 * grid[0] + spread * grid[1]
    u = jnp.concatenate([jnp.asarray(grid[:1]), 0.6 * z - 0.2 + 0.8 * grid[2:]])
    log_w = normal(u, 0.0) + normal(z, 0.4 + 0.8 * u, spread) - normal(u, 0.6 * z - 0.2, 0.8)
    return -(prob * (normal(z, 0.0) + normal(1.0, z) - log_mean(log_w))).sum()


@pytest.mark.parametrize("num", [1, 2, 5])
def test_hierarchical_bounds_of_a_gaussian(num):
    with jax.enable_x64(True):
        exact = quick_jit(jax.value_and_grad(lambda spread: hierarchical(spread, num)))(
            jnp.asarray(0.6, jnp.float64)
        )
    guide = marginal(hierarchy, ["z"], ImportanceSampling(num, reverse))
    model, _, _ = conjugate(0.0, 1.0)
    run = jax.value_and_grad(lambda spread, key: ELBO().loss(key, {"spread": spread}, model, guide))
    samples = quick_jit(jax.vmap(run, in_axes=(None, 0)))(jnp.asarray(0.6), jax.random.split(KEY, 20_000))
    assert_unbiased(samples, jax.tree.map(np.asarray, exact))
    if num == 1:  # the assertion tells one particle from two
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples[0], np.asarray(hierarchical(0.6, 2)))
