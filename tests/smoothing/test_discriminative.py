"""The discriminative Kalman filter is Kalman's where the regression is the exact one, and guarded where it is
less sure than the prior.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.smoothing import discriminative_factor, discriminative_kalman, smooth
from ppl_ext.smoothing.discriminative import stationary_covariance

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

A = np.array([[0.8, 0.2], [-0.1, 0.7]])
NOISE = np.array([[0.5, 0.1], [0.1, 0.3]])
H = np.array([[1.0, 0.4], [0.0, 1.0], [0.5, -0.5]])
R = np.diag([0.4, 0.6, 0.5])
RNG = np.random.default_rng(0)
Y = RNG.normal(size=(12, 3))
S = np.asarray(np.linalg.solve(np.eye(4) - np.kron(A, A), NOISE.reshape(-1))).reshape(2, 2)


def kalman():
    """By the textbook's recursions, in double precision."""
    mean, cov, found = np.zeros(2), S, []
    for y in Y:
        mean, cov = A @ mean, A @ cov @ A.T + NOISE
        gain = cov @ H.T @ np.linalg.inv(H @ cov @ H.T + R)
        mean, cov = mean + gain @ (y - H @ mean), cov - gain @ H @ cov
        found.append((mean, cov))
    return [np.stack(x) for x in zip(*found, strict=True)]


def regression():
    """p(x | y) of the same model, with the stationary law for its prior: what the best regression learns."""
    q = np.linalg.inv(np.linalg.inv(S) + H.T @ np.linalg.inv(R) @ H)
    return Y @ (q @ H.T @ np.linalg.inv(R)).T, q


def test_it_is_kalmans_filter_if_the_regression_is_the_exact_one():
    f, q = regression()
    mean, cov = kalman()
    with jax.enable_x64(True):
        found = jax.jit(lambda: discriminative_kalman(f, q, A, NOISE))()
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(found.covariance, cov, rtol=1e-8)
    assert not found.guarded.any()
    single = discriminative_kalman(*(jnp.asarray(a, jnp.float32) for a in (f, q, A, NOISE)))
    np.testing.assert_allclose(single.mean, mean, atol=1e-5)
    np.testing.assert_allclose(single.covariance, cov, atol=1e-5)


def model(f, q):
    def step(x, at):
        x = numpyro.sample(
            "x", dist.MultivariateNormal(jnp.asarray(A, jnp.float32) @ x, jnp.asarray(NOISE, jnp.float32))
        )
        discriminative_factor("seen", x, *at, jnp.asarray(S, jnp.float32))
        return x, None

    scan(
        step, numpyro.sample("x0", dist.MultivariateNormal(jnp.zeros(2), jnp.asarray(S, jnp.float32))), (f, q)
    )


@pytest.mark.slow
def test_the_factor_makes_the_same_model():
    f, q = regression()
    # a time at which nothing was seen
    f = np.where(np.arange(12)[:, None] == 4, np.nan, f).astype(np.float32)
    q = np.tile(q.astype(np.float32), (12, 1, 1))
    q[7] = 9.0 * np.eye(2)  # less sure than the prior
    filtered = discriminative_kalman(f, q, jnp.asarray(A, jnp.float32), jnp.asarray(NOISE, jnp.float32))
    assert list(np.flatnonzero(filtered.guarded)) == [7] and np.isfinite(filtered.mean).all()
    run = smooth(model, backward="exact").run(jax.random.key(0), f, q)
    quantiles = run.filtered([0.5, 0.975])["x"]
    np.testing.assert_allclose(quantiles[0], filtered.mean, atol=2e-5)
    spread = np.sqrt(np.diagonal(filtered.covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(quantiles[1] - quantiles[0], 1.959964 * spread, rtol=1e-4)


def test_the_stationary_covariance():
    np.testing.assert_allclose(
        stationary_covariance(jnp.asarray(A, jnp.float32), jnp.asarray(NOISE, jnp.float32)), S, rtol=1e-5
    )
    with pytest.raises(ArgumentError, match=r"modulus 1\.5"):
        stationary_covariance(1.5 * jnp.eye(2), jnp.eye(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"means": np.zeros(3)}, r"means must be \(T, d\)"),
        ({"transition": np.eye(3)}, r"transition must be \(2, 2\)"),
        ({"noise": np.eye(3)}, r"noise must be \(2, 2\)"),
        ({"covariances": np.eye(3)}, r"covariances must be \(4, 2, 2\), or \(2, 2\) for all times"),
        ({"prior_covariance": np.eye(3)}, "prior_covariance must have"),
        ({"noise": -np.eye(2)}, "noise holds a matrix that is not positive definite"),
        ({"covariances": np.nan * np.eye(2)}, "covariances holds a matrix"),
        ({"initial": (np.zeros(3), np.eye(2))}, "initial must be"),
        ({"initial": (np.zeros(2),)}, "initial must be"),
        ({"initial": "ab"}, "initial must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, words):
    given = {
        "means": np.zeros((4, 2)),
        "covariances": np.eye(2),
        "transition": 0.5 * np.eye(2),
        "noise": np.eye(2),
        **change,
    }
    with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
        discriminative_kalman(**given)


def test_a_scalar_state_is_to_be_a_vector():
    with pytest.raises(ArgumentError, match="scalar state"):
        discriminative_factor("seen", jnp.zeros(()), jnp.zeros(()), jnp.ones(()), jnp.ones(()))
