"""Two state-space models with exact answers: a linear-Gaussian one (as a joint Gaussian) and a finite one
(every path), in float64.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan

Y = np.array([0.9, -0.6, 1.7, 0.4], np.float32)
LINEAR = {"phi": 0.8, "sigma": 0.7}
FINITE = {"stay": 0.7, "loud": 0.9}
MEANS = np.array([-1.0, 1.0, 0.3])


def linear(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, sigma))
        numpyro.sample("y", dist.Normal(x, 0.6), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.3, 1.0)), y)


def finite(y):
    stay = numpyro.sample("stay", dist.Beta(2.0, 2.0))
    loud = numpyro.sample("loud", dist.HalfNormal(1.0))

    def step(k, y_t):
        probs = jnp.where(jnp.arange(3) == k, stay, (1 - stay) / 2)
        k = numpyro.sample("k", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(jnp.asarray(MEANS, jnp.float32)[k], loud), obs=y_t)
        return k, None

    scan(step, numpyro.sample("k0", dist.Categorical(jnp.array([0.5, 0.3, 0.2]))), y)


def linear_joint(phi, sigma, y=Y):
    """log p(y) and the smoothing means and covariance of (x0, ..., xT), from the joint Gaussian."""
    num = len(y) + 1
    mean = 0.3 * phi ** jnp.arange(num)
    lower = jnp.tril(phi ** jnp.abs(jnp.arange(num)[:, None] - jnp.arange(num)).astype(float))
    noise = jnp.concatenate([jnp.ones(1), jnp.full(num - 1, sigma**2)])
    prior = lower @ (noise[:, None] * lower.T)
    y, inner = jnp.asarray(y, jnp.float64), prior[1:, 1:] + 0.36 * jnp.eye(num - 1)
    gain = jnp.linalg.solve(inner, prior[1:]).T
    rest = y - mean[1:]
    log_z = -0.5 * (
        rest @ jnp.linalg.solve(inner, rest) + jnp.linalg.slogdet(inner)[1] + (num - 1) * jnp.log(2 * jnp.pi)
    )
    return log_z, mean + gain @ rest, prior - gain @ prior[1:]


def finite_paths(stay, loud, y=Y):
    """Every path and its log p(path, y)."""
    every = np.array(list(itertools.product(range(3), repeat=len(y) + 1)))
    log_p = jnp.log(jnp.array([0.5, 0.3, 0.2]))[every[:, 0]]
    for t, y_t in enumerate(y, 1):
        log_p += jnp.log(jnp.where(every[:, t] == every[:, t - 1], stay, (1 - stay) / 2))
        log_p += (
            -0.5 * ((float(y_t) - MEANS[every[:, t]]) / loud) ** 2 - jnp.log(loud) - 0.5 * jnp.log(2 * jnp.pi)
        )
    return every, log_p


def log_evidence(model, parameters, y=Y):
    with jax.enable_x64(True):
        parameters = {n: jnp.asarray(v, jnp.float64) for n, v in parameters.items()}
        if model is linear:
            return float(linear_joint(**parameters, y=y)[0])
        return float(logsumexp(finite_paths(**parameters, y=y)[1]))


def slopes(model, parameters):
    """Derivatives of the evidence Z (not of its log), relative to Z."""

    def log_z(parameters):
        return linear_joint(**parameters)[0] if model is linear else logsumexp(finite_paths(**parameters)[1])

    with jax.enable_x64(True):
        return jax.tree.map(
            float, jax.grad(log_z)({n: jnp.asarray(v, jnp.float64) for n, v in parameters.items()})
        )


def smoothed(model, parameters):
    """E[x_0 | y], E[x_2 x_3 | y], E[x_T | y]."""
    with jax.enable_x64(True):
        parameters = {n: jnp.asarray(v, jnp.float64) for n, v in parameters.items()}
        if model is linear:
            _, mean, covariance = linear_joint(**parameters)
            return np.array([mean[0], covariance[2, 3] + mean[2] * mean[3], mean[-1]])
        every, log_p = finite_paths(**parameters)
        weights = np.exp(log_p - logsumexp(log_p))
        return np.array(
            [weights @ every[:, 0], weights @ (every[:, 2] * every[:, 3]), weights @ every[:, -1]]
        )


PROBLEMS = {"linear": (linear, LINEAR, "x"), "finite": (finite, FINITE, "k")}
