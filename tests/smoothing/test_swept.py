"""Draws of a sweep inside an objective: refused, for they have no gradient, or held fixed, and then properly weighted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.stats import multivariate_normal

from ppl_ext import normalize
from ppl_ext.errors import StrategyError
from ppl_ext.gradients import Constant, Reparameterize
from ppl_ext.handlers import detach, gradient
from ppl_ext.objectives import ELBO
from ppl_ext.smoothing import SweptParticleFilter

Y = jnp.array([0.3, -0.5, 1.2])

_PULL = np.linalg.inv(np.eye(4) - np.diag([0.5] * 3, -1))  # of the states' noise
LAWS = (_PULL @ _PULL.T)[1:, 1:] + np.eye(3)


def walk(y):
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


POSTERIOR = normalize(walk, {}, SweptParticleFilter(3, num_sweeps=2))


@pytest.mark.parametrize("held", [detach, lambda program: gradient(program, {"*": Constant()})])
def test_held_fixed_they_are_properly_weighted(held):
    loss = jax.jit(jax.vmap(lambda key: ELBO().loss(key, {}, walk, held(POSTERIOR), Y)))
    ratio = np.exp(-np.asarray(loss(jax.random.split(jax.random.key(0), 4000)), np.float64))
    ratio /= multivariate_normal(np.zeros(3), LAWS).pdf(Y)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(4000) < 0.1


@pytest.mark.parametrize("asked", [lambda program: program, lambda program: gradient(program, {"*x0": Constant(), "*": Reparameterize()})])
def test_asked_for_a_gradient_they_are_refused_with_what_helps(asked):
    with pytest.raises(StrategyError, match=r"\(site 'x0?'\) have no gradient. Hold them fixed, ppl_ext.handlers.detach\(program\)"):
        ELBO().loss(jax.random.key(0), {}, walk, asked(POSTERIOR), Y)
