"""Estimates of small programs, many at once, beside the plain functions of the parameters that they
estimate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext import expectation
from ppl_ext.gradients import ScoreFunction
from tests.oracles import quick_jit

SCORE = ScoreFunction(baseline=None)


def close(given, expected, tolerance=2e-5):
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance), given, expected
    )


def replicates(fn, params, num=20_000, seed=0):
    """Independent (value, gradient) pairs."""
    keys = jax.random.split(jax.random.key(seed), num)
    params = jax.tree.map(jnp.asarray, params)
    return quick_jit(jax.vmap(lambda key: expectation(fn).value_and_grad(key, params)))(keys)


def once(fn, params, seed=0):
    return jax.tree.map(lambda x: x[0], replicates(fn, params, 1, seed))


def exactly(fn, params):
    """The value and gradient of a plain function of the parameters."""
    return quick_jit(jax.value_and_grad(fn))(jax.tree.map(jnp.asarray, params))


def hessians(fn, params, num=20_000, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    second = jax.jacrev(jax.grad(lambda p, key: expectation(fn).value(key, p)))
    return quick_jit(jax.vmap(lambda key: second(params, key)))(keys)


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def coin(p, strategy):
    return 1.0 * numpyro.sample("z", dist.Bernoulli(logits=p), infer={"gradient": strategy})
