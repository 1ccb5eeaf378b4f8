"""Models that the tests of priors share."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_ext.priors import GaussianProcess

X = jnp.linspace(-1.5, 1.5, 12)
SLOPE, LEVEL = 2.0, 0.5


def line(x, y=None):
    """A straight line, whose law is that of a Gaussian process with a linear kernel."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    f = numpyro.deterministic("f", level + slope * x)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)
    return f


def linear_kernel(x1, x2):
    return SLOPE**2 * x1 @ x2.T + LEVEL**2


def linear_target(**options):
    return GaussianProcess(linear_kernel, **options)


def network(x, y=None):
    """A small plain network, its first layer's weights inside a plate."""
    with numpyro.plate("hidden", 8):
        w1 = numpyro.sample("w1", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    b1 = numpyro.sample("b1", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(0.0, 1.0).expand([8, 1]).to_event(2))
    f = numpyro.deterministic("f", (jnp.tanh(x[:, None] @ w1.T + b1) @ w2)[:, 0])
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 0.1), obs=y)
