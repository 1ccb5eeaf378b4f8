"""Targets in the plane and on a line for the tests of tracking, and associations by counting."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext.smoothing.tracking import BernoulliTargets, PoissonTargets, Tracker

MOVE, OFFSET = [[1.0, 0.5], [-0.1, 0.9]], [0.1, -0.2]
NOISE = [[0.3, 0.1], [0.1, 0.2]]
SEE, SHIFT, SPREAD = [[1.0, 0.3]], [0.5], 0.4


def step(x, z):
    """Two coordinates, of which one mixture is measured."""
    x = numpyro.sample(
        "x", dist.MultivariateNormal(jnp.array(MOVE) @ x + jnp.array(OFFSET), jnp.array(NOISE))
    )
    numpyro.sample("z", dist.Normal(jnp.array(SEE) @ x + jnp.array(SHIFT), SPREAD).to_event(1), obs=z)
    return x, None


def wherever(half=20.0, measured=1):
    return dist.Uniform(-half * jnp.ones(measured), half * jnp.ones(measured)).to_event(1)


def normal(mean, covariance):
    return dist.MultivariateNormal(jnp.array(mean), jnp.array(covariance))


def born(rate=0.2):
    return PoissonTargets(rate, normal([0.0, 0.0], [[25.0, 0.0], [0.0, 1.0]]))


def one(prob=1.0):
    """A target at a known place."""
    return BernoulliTargets(prob, normal([1.0, -1.0], [[1.0, 0.2], [0.2, 0.5]]))


def tracker(births=None, clutter=1.0, **settings):
    """A small tracker on the line."""
    small = {"max_targets": 6, "max_measurements": 4, "max_undetected": 12, "detection": 0.8, "survival": 0.9}
    given = born() if births is None else births
    return Tracker(step, given, clutter, wherever(), **{**small, **settings})


def counted(w0, w):
    """Marginals of who has which measurement, by going through all of them, and the log of the sum."""
    n, m = w.shape
    total, detected, missed = 0.0, np.zeros((n, m)), np.zeros(n)
    for picks in itertools.product(range(m + 1), repeat=n):
        taken = [j for j in picks if j]
        if len(set(taken)) < len(taken):
            continue
        weight = np.prod([w[i, j - 1] if j else w0[i] for i, j in enumerate(picks)])
        total += weight
        for i, j in enumerate(picks):
            if j:
                detected[i, j - 1] += weight
            else:
                missed[i] += weight
    return missed / total, detected / total, np.log(total)


def kalman(mean, covariance, z):
    """A normal law and a measurement: the law after it, and the log likelihood."""
    H, R = np.array(SEE), SPREAD**2 * np.eye(1)
    S = H @ covariance @ H.T + R
    K = covariance @ H.T @ np.linalg.inv(S)
    e = np.atleast_1d(z) - H @ mean - np.array(SHIFT)
    log = -0.5 * float(e @ np.linalg.solve(S, e)) - 0.5 * float(np.log(2 * np.pi * np.linalg.det(S)))
    return mean + K @ e, covariance - K @ S @ K.T, log


def predicted(mean, covariance):
    F = np.array(MOVE)
    return F @ mean + np.array(OFFSET), F @ covariance @ F.T + np.array(NOISE)


def mixed(weights, means, covariances):
    """The moments of a mixture."""
    weights = np.asarray(weights) / np.sum(weights)
    mean = np.einsum("k,kd->d", weights, np.asarray(means))
    apart = np.asarray(means) - mean
    return mean, np.einsum("k,kde->de", weights, np.asarray(covariances) + apart[:, :, None] * apart[:, None])
