"""What tests of several objectives share: comparisons with exact answers, and one Gaussian problem whose
posterior is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from ppl_ext.gradients import ScoreFunction
from ppl_ext.handlers import gradient
from tests.oracles import assert_unbiased, expected_loss, quick_jit, replicates, table
from tests.problems import PROBLEMS

SCORE = ScoreFunction(baseline=None)


def check(loss, problem, formula, num_particles, strategy=None, seed=0):
    problem = PROBLEMS[problem] if isinstance(problem, str) else problem
    guide = (
        problem.guide
        if strategy is None
        else gradient(problem.guide, dict.fromkeys(problem.finite_sites, strategy))
    )
    samples = replicates(loss, problem, guide=guide, seed=seed)
    assert_unbiased(samples, expected_loss(problem.oracle, problem.params, formula, num_particles))
    return samples


def held(problem, num_particles, value, signal):
    """Exact mean of ``value`` and of the gradient of ``signal``, functions of (log w held, log p, log q),
    each (K, tuples, elements).
    """

    def both(params):
        def surrogate(moving):
            log_probs, *fixed = stop_gradient(table(problem.oracle, params, None))
            _, *moved = table(problem.oracle, moving, None, frozen=params)
            draws = np.indices((len(log_probs),) * num_particles).reshape(num_particles, -1)
            probs = jnp.exp(log_probs[draws].sum(0))
            log_w = (fixed[0] - fixed[1])[draws]
            slope = signal(log_w, moved[0][draws], moved[1][draws]).sum(-1)
            return -(probs * slope).sum(), -(probs * value(log_w).sum(-1)).sum()

        grads, of_value = jax.grad(surrogate, has_aux=True)(params)
        return of_value, grads

    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, quick_jit(both)(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem.params))
        )


def log_mean(x):
    return logsumexp(x, axis=0) - jnp.log(len(x))


def conjugate(loc, spread):
    """z ~ N(0, 1), y = 1 ~ N(z, 1): the posterior is N(1/2, 1/2)."""

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=1.0)

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), numpyro.param("spread", 1.0)))

    return model, guide, {"loc": jnp.asarray(loc), "spread": jnp.asarray(spread)}
