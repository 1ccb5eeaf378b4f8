"""Run by ``test_markov.py`` in a process of its own: long series, whose solves are large, several times."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from tinygp.kernels.quasisep import Matern52

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ExactFilter
from ppl_ext.priors import markov
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower

TIMES = 10
RNG = np.random.default_rng(0)


def process(times, y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    markov(
        "f", Matern52(scale=scale), times, lambda f, y_t: numpyro.sample("y", dist.Normal(f, 0.5), obs=y_t), y
    )


def vectors(y, scale):
    def step(x, y_t):
        x = numpyro.sample("x", dist.MultivariateNormal(0.9 * x, scale_tril=scale * jnp.eye(len(x))))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0).expand([10]).to_event(1)), y)


def evidence(num):
    times = np.sort(RNG.uniform(0.0, num / 10, num)).astype(np.float32)
    y = RNG.normal(size=num).astype(np.float32)
    program = marginal(process, ["scale"], ExactFilter())
    return lambda scale: log_density(program, {"scale": scale}, times, y).total


def moments(num):
    y = RNG.normal(size=num).astype(np.float32)

    def total(scale):
        found = smooth_exactly(lower(vectors, (y, scale), {}), parallel=True)
        return found.mean.sum() + found.covariance.sum()

    return total


def main():
    for fn in (jax.value_and_grad(evidence(10_000)), moments(5_000)):
        jitted = jax.jit(fn)
        for k in range(TIMES):
            assert np.isfinite(jax.block_until_ready(jitted(1.0 + 0.01 * k))).all()


if __name__ == "__main__":
    main()
