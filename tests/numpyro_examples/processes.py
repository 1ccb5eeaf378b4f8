"""Functions and curves: Gaussian processes in four forms, sparse quadratic regression, predators and prey."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro.contrib.hsgp.approximation import hsgp_matern, hsgp_squared_exponential

from tests.numpyro_examples.example import Example

GRID = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
WAVE = np.sin(3 * GRID).astype(np.float32)
SIDES = (WAVE > 0).astype(np.int32)


def squared_exponential(x, variance, length, jitter=1e-4):
    return variance * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + jitter * jnp.eye(len(x))


def gaussian_process(x, y):
    variance, noise, length = (
        numpyro.sample(name, dist.LogNormal(0.0, 1.0)) for name in ("variance", "noise", "length")
    )
    covariance = squared_exponential(x, variance, length) + noise * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(loc=jnp.zeros(len(x)), covariance_matrix=covariance), obs=y)


def classified(x, labels, length=0.5):
    covariance = squared_exponential(x, 1.0, length)
    f = numpyro.sample("f", dist.MultivariateNormal(loc=jnp.zeros(len(x)), covariance_matrix=covariance))
    numpyro.sample("labels", dist.Bernoulli(logits=jnp.power(f, 3.0)), obs=labels)


def on_a_circle(x, labels):
    n, scale, length = (
        x.size,
        numpyro.sample("scale", dist.HalfNormal()),
        numpyro.sample("length", dist.InverseGamma(5, 25)),
    )
    wave = jnp.arange(n // 2 + 1)
    power = scale**2 * length * jnp.sqrt(2 * jnp.pi) * jnp.exp(-2 * (jnp.pi * wave * length / n) ** 2) + 1e-3
    z = numpyro.sample("z", dist.CirculantNormal(jnp.zeros(n), covariance_rfft=power))
    with numpyro.plate("rows", n):
        numpyro.sample("labels", dist.BernoulliLogits(z), obs=labels)


def in_basis_functions(x, weekday, y, num_functions):
    """A slow trend, a rough one, and effects of weekdays, as of births by day."""
    intercept = numpyro.sample("intercept", dist.Normal(0, 1))
    alpha, length = (
        numpyro.sample("alpha", dist.HalfNormal(1.0)),
        numpyro.sample("length", dist.LogNormal(0.0, 0.5)),
    )
    trend = hsgp_squared_exponential(x=x, alpha=alpha, length=length, ell=1.5, m=num_functions)
    with numpyro.handlers.scope(prefix="rough", divider="_"):
        rough = hsgp_matern(x=x, nu=1.5, alpha=alpha, length=0.5, ell=1.5, m=2)
    with numpyro.plate("weekdays", 2):
        days = numpyro.sample("days", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(0.5))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(intercept + trend + rough + days[weekday], noise), obs=y)


def sparse_quadratic(x, y, settings):
    num, width = x.shape
    noise = numpyro.sample("noise", dist.HalfNormal(settings["width"]))
    phi = noise * (settings["sparsity"] / jnp.sqrt(num)) / (width - settings["sparsity"])
    eta1 = numpyro.sample("eta1", dist.HalfCauchy(phi))
    msq, xisq = (numpyro.sample(name, dist.InverseGamma(*settings["slab"])) for name in ("msq", "xisq"))
    eta2 = jnp.square(eta1) * jnp.sqrt(xisq) / msq
    local = numpyro.sample("local", dist.HalfCauchy(jnp.ones(width)))
    kx = x * jnp.sqrt(msq) * local / jnp.sqrt(msq + jnp.square(eta1 * local))
    inner, squares = kx @ kx.T, jnp.square(kx) @ jnp.square(kx).T
    k = (
        0.5 * eta2**2 * (jnp.square(1.0 + inner) - squares)
        + (eta1**2 - eta2**2) * inner
        + settings["c"] ** 2
        - 0.5 * eta2**2
    )
    k = k + (1e-3 + noise**2) * jnp.eye(num)
    numpyro.sample("y", dist.MultivariateNormal(loc=jnp.zeros(num), covariance_matrix=k), obs=y)


def flow(z, t, theta):
    prey, hunters = z
    return jnp.stack([(theta[0] - theta[1] * hunters) * prey, (theta[3] * prey - theta[2]) * hunters])


def predators(length, y=None):
    begun = numpyro.sample("begun", dist.LogNormal(jnp.log(10), 1).expand([2]))
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.2, 0.01, 0.2, 0.01])
    theta = numpyro.sample("theta", dist.TruncatedNormal(low=0.0, loc=loc, scale=scale))
    z = odeint(flow, begun, jnp.arange(float(length)), theta, rtol=1e-6, atol=1e-5, mxstep=1000)
    noise = numpyro.sample("noise", dist.LogNormal(-1, 1).expand([2]))
    numpyro.sample("y", dist.LogNormal(jnp.log(z), noise), obs=y)


def several_predators(times, start, y):
    """Several series at once, of different lengths, what is missing masked."""
    begun = numpyro.sample("begun", dist.LogNormal(jnp.log(start), jnp.ones_like(start)))
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.2, 0.01, 0.2, 0.01])
    theta = numpyro.sample("theta", dist.TruncatedNormal(low=0.0, loc=loc, scale=scale))
    solve = jax.vmap(partial(odeint, rtol=1e-6, atol=1e-5, mxstep=1000), in_axes=(None, 0, 0, None))
    noise = numpyro.sample("noise", dist.LogNormal(-1, 1).expand([2]))
    law = dist.LogNormal(jnp.log(solve(flow, begun, times, theta)), noise)
    numpyro.sample("y", law.mask(jnp.isfinite(jnp.log(y))), obs=y)


ANIMALS = np.float32([[12.0, 9.0], [14.0, 7.0], [18.0, 6.0], [25.0, 5.5]])
TWICE = np.stack([ANIMALS, 1.1 * ANIMALS])
TWICE[1, 3] = np.nan
TIMES = np.tile(np.arange(4.0, dtype=np.float32), (2, 1))
SETTINGS = {"width": 1.0, "sparsity": 1.0, "slab": (3.0, 1.0), "c": 1.0}

EXAMPLES = [
    Example("Gaussian process", gaussian_process, (GRID, WAVE)),
    Example("DAIS", classified, (GRID, SIDES)),
    Example("Gaussian process on a circle", on_a_circle, (GRID, SIDES)),
    Example("basis functions", in_basis_functions, (GRID, np.arange(6) % 2, WAVE, 4)),
    Example("sparse quadratic", sparse_quadratic, (np.stack([GRID, GRID**2, WAVE], -1), WAVE, SETTINGS)),
    Example("predators", predators, (4, ANIMALS)),
    Example("several predators", several_predators, (TIMES, TWICE[:, 0], TWICE)),
]
