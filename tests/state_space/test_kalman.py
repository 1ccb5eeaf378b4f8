"""The Kalman filter of programs in single precision, where noise is small: against the joint law of states
and data in double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import scale
from scipy.stats import multivariate_normal

from ppl_ext.smoothing import smooth
from ppl_ext.state_space.exact import exact_evidence, smooth_exactly
from ppl_ext.state_space.kalman import Normal, law_of, root_of, seen_of, sharpened, updated
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.small_matrices import unit_given

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

Y = np.random.default_rng(0).normal(size=30).astype(np.float32)


def level(y, moves, noise):
    """A level that moves, seen with noise."""

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(x, moves))
        numpyro.sample("y", dist.Normal(x, noise), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def trend(y, moves, noise):
    """A level with a slope, of which the level is seen."""

    def step(x, y_t):
        by = jnp.array([[1.0, 1.0], [0.0, 1.0]])
        law = dist.MultivariateNormal(by @ x, scale_tril=jnp.diag(jnp.array([moves, 0.3])))
        x = numpyro.sample("x", law)
        numpyro.sample("y", dist.Normal(x[0], noise), obs=y_t)
        return x, None

    first = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    scan(step, numpyro.sample("x0", first), y)


def change(y, moves, noise):
    """Of which both the state and its change are seen: an observation of two states."""

    def step(x, y_t):
        new = numpyro.sample("x", dist.Normal(0.9 * x, moves))
        numpyro.sample("y", dist.Normal(new - x, noise), obs=y_t)
        numpyro.sample("z", dist.Normal(new, 2.0), obs=0.5 * y_t)
        return new, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def joint_law(model, y, moves, noise):
    """log p(y), and mean and covariance of all states given y: the states (x0, x1, ..., xT), raveled."""
    num, d = len(y), 2 if model is trend else 1
    by = np.array([[1.0, 1.0], [0.0, 1.0]]) if d == 2 else np.array([[0.9 if model is change else 1.0]])
    noises = np.diag([moves**2, 0.09]) if d == 2 else np.array([[moves**2]])
    size = (num + 1) * d
    lower, spread = np.eye(size), np.zeros((size, size))
    spread[:d, :d] = np.eye(d)
    for t in range(1, num + 1):
        rows = slice(t * d, (t + 1) * d)
        lower[rows] = lower[rows] + by @ lower[(t - 1) * d : t * d]
        spread[rows, rows] = noises
    prior = lower @ spread @ lower.T
    of_state = np.zeros((num, size))
    of_state[np.arange(num), d * np.arange(1, num + 1)] = 1.0
    if model is change:
        of_change = of_state.copy()
        of_change[np.arange(num), np.arange(num)] = -1.0
        seen, data = np.concatenate([of_change, of_state]), np.concatenate([y, 0.5 * y]).astype(float)
        noises = np.diag(np.repeat([noise**2, 4.0], num))
    else:
        seen, data, noises = of_state, y.astype(float), noise**2 * np.eye(num)
    of_data = seen @ prior @ seen.T + noises
    gain = np.linalg.solve(of_data, seen @ prior).T
    log_p = multivariate_normal(np.zeros(len(data)), of_data, allow_singular=False).logpdf(data)
    return log_p, (gain @ data).reshape(num + 1, d), prior - gain @ seen @ prior


CASES = [
    (level, 1.0, 1.0),
    (level, 1e-3, 1.0),
    (level, 1e-5, 1.0),
    (level, 1.0, 1e-2),
    (level, 1.0, 1e-4),
    (level, 1e-3, 1e-3),
    (trend, 0.5, 1.0),
    (trend, 1e-4, 1.0),
    (trend, 1.0, 1e-3),
    (change, 1.0, 0.03),
    (change, 1.0, 1e-3),
    (change, 1e-3, 1.0),
]


def check_against_the_joint_law(found, model, y, moves, noise):
    log_p, mean, covariance = joint_law(model, y, moves, noise)
    # what float32 makes of the residuals themselves, some 1e-7 of the data, in units of the noise
    assert abs(float(found.log_evidence) - log_p) < 2e-3 + 3e-6 * abs(log_p), (found.log_evidence, log_p)
    np.testing.assert_allclose(
        found.log_initial + found.log_increments.sum(), found.log_evidence, rtol=1e-5, atol=1e-4
    )
    d = mean.shape[1]
    sd = np.sqrt(np.diag(covariance)).reshape(-1, d)
    np.testing.assert_allclose(found.mean, mean[1:], atol=2e-5 + 5e-3 * sd.min())
    np.testing.assert_allclose(found.initial_mean, mean[0], atol=2e-5 + 5e-3 * sd.min())
    np.testing.assert_allclose(
        np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2)), sd[1:], rtol=5e-3, atol=1e-6
    )
    blocks = [covariance[t * d : (t + 1) * d, (t + 1) * d : (t + 2) * d] for t in range(1, len(y))]
    np.testing.assert_allclose(found.cross, blocks, rtol=2e-2, atol=5e-3 * (sd**2).max())
    np.testing.assert_allclose(
        found.first_cross, covariance[:d, d : 2 * d], rtol=2e-2, atol=5e-3 * (sd**2).max()
    )


@pytest.mark.parametrize(("model", "moves", "noise"), CASES)
def test_small_noise_in_single_precision(model, moves, noise):
    found = smooth_exactly(lower(model, (Y, moves, noise), {}))
    check_against_the_joint_law(found, model, Y, moves, noise)


def through_the_filter(space):
    return smooth_exactly(space).log_evidence


@pytest.mark.parametrize("evidence", [through_the_filter, exact_evidence])
@pytest.mark.parametrize(("moves", "noise"), [(1.0, 1e-3), (1e-3, 1.0)])
def test_derivatives_where_noise_is_small(moves, noise, evidence):
    def log_evidence(log_moves, log_noise):
        return evidence(lower(level, (Y, jnp.exp(log_moves), jnp.exp(log_noise)), {}))

    at = (jnp.log(moves), jnp.log(noise))
    found = jax.grad(log_evidence, (0, 1))(*at)
    h = 1e-4
    right = [
        (joint_law(level, Y, moves * np.exp(h * a), noise * np.exp(h * b))[0]
         - joint_law(level, Y, moves * np.exp(-h * a), noise * np.exp(-h * b))[0]) / (2 * h)
        for a, b in ((1, 0), (0, 1))
    ]  # fmt: skip
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=2e-3)


def four(y, moves, noise):
    """Four states, of which one is seen, and a difference of two."""

    def step(x, y_t):
        law = dist.MultivariateNormal(0.8 * x, scale_tril=moves * jnp.eye(4))
        new = numpyro.sample("x", law)
        numpyro.sample("y", dist.Normal(new[0] - new[2], noise), obs=y_t)
        numpyro.sample("z", dist.Normal(new[1], 2.0 * noise), obs=y_t)
        return new, None

    first = dist.MultivariateNormal(jnp.zeros(4), jnp.eye(4))
    scan(step, numpyro.sample("x0", first), y)


def sensors(y, moves, noise):
    """One state, seen by more sensors than it has entries."""

    def step(x, y_t):
        new = numpyro.sample("x", dist.Normal(0.8 * x, moves))
        law = dist.Normal(new, noise * jnp.array([1.0, 2.0, 1.0])).to_event(1)
        numpyro.sample("y", law, obs=y_t * jnp.ones(3))
        return new, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def hessian(model, moves, noise, **options):
    """By differences of gradients, backwards through the loop, and by the way that options say."""

    def log_evidence(x):
        return smooth_exactly(lower(model, (Y[:4], *x), {}), **options).log_evidence

    at, gradient, h = jnp.array([moves, noise]), jax.jit(jax.grad(log_evidence)), 1e-2
    by_differences = np.stack([(gradient(at + h * e) - gradient(at - h * e)) / (2 * h) for e in np.eye(2)])
    ways = jax.hessian(log_evidence), jax.jacfwd(jax.jacfwd(log_evidence))
    return by_differences, *(jax.jit(way)(at) for way in ways)


@pytest.mark.parametrize("model", [level, trend, change, four, sensors])
def test_second_derivatives(model):
    """JAX forgets custom rules in second derivatives that go backwards through a loop."""
    right, *found = hessian(model, 0.7, 0.5)
    for each in found:
        np.testing.assert_allclose(each, right, rtol=5e-3, atol=5e-3)


def test_a_law_to_a_power_keeps_what_it_is_worth():
    """A scaled site counts as many times: a narrower law, and a constant."""

    def model(y):
        def step(x, y_t):
            with scale(scale=3.0):
                x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    found = float(smooth_exactly(lower(model, (Y[:4],), {})).log_evidence)
    # N(b; a, 1)^3 = N(b; a, 1/3) (2 pi)^-1 3^(-1/2)
    power = -np.log(2 * np.pi) - 0.5 * np.log(3.0)
    np.testing.assert_allclose(found, joint_law(level, Y[:4], np.sqrt(1 / 3), 1.0)[0] + 4 * power, rtol=1e-5)


def test_trajectories_where_noise_is_small():
    found = smooth(level, backward="exact").run(jax.random.key(0), Y, 1e-4, 1.0)
    draws = found.sample(jax.random.key(1), num_samples=2000)
    x = np.concatenate([np.asarray(draws["x0"])[..., None], np.asarray(draws["x"])], 1)
    _, mean, covariance = joint_law(level, Y, 1e-4, 1.0)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.mean(0) - mean[:, 0]) / sd, 0.0, atol=4.5 / np.sqrt(2000))
    np.testing.assert_allclose(x.std(0) / sd, 1.0, atol=4.5 / np.sqrt(4000))
    # a step is a ten-thousandth: what two nearly equal covariances leave must be its
    np.testing.assert_allclose(np.diff(x, axis=1).std(), 1e-4, rtol=0.05)


def test_the_law_of_a_step():
    def log_p(a, b):
        return dist.MultivariateNormal(
            jnp.array([[1.0, 2.0]]).T @ a + 3.0, jnp.array([[2.0, 0.3], [0.3, 1.0]])
        ).log_prob(b)

    law = law_of(log_p, jnp.zeros(1), jnp.zeros(2))
    np.testing.assert_allclose(law.slope, [[1.0], [2.0]], rtol=1e-5)
    np.testing.assert_allclose(law.offset, [3.0, 3.0], rtol=1e-5)
    np.testing.assert_allclose(law.covariance, [[2.0, 0.3], [0.3, 1.0]], rtol=1e-5)
    np.testing.assert_allclose(law.excess, 0.0, atol=1e-5)


DIRECTIONS = [[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.3, 0.7], [1.0, 1.0, -1.0], [0.0, 2.0, 0.0, -1.0]]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_update_where_one_direction_is_seen_sharply(direction):
    """What is not seen must not suffer, whatever the axes."""
    n, noise, data = len(direction), 3e-4, 0.7
    prior = 0.6 * np.ones((n, n)) + np.diag(0.4 + np.arange(n))
    seen = np.array(direction)

    def log_p(x):
        return -0.5 * ((data - jnp.asarray(direction) @ x) / noise) ** 2

    law, rest = updated(Normal(jnp.zeros(n), jnp.asarray(prior, jnp.float32)), seen_of(log_p, jnp.zeros(n)))
    gain = prior @ seen / (seen @ prior @ seen + noise**2)
    right = prior - np.outer(gain, seen @ prior)
    np.testing.assert_allclose(law.covariance, right, atol=2e-6 * prior.max())
    np.testing.assert_allclose(law.mean, gain * data, atol=2e-6)
    step = gain * data
    ratio = np.log1p(seen @ prior @ seen / noise**2)
    np.testing.assert_allclose(rest, -0.5 * step @ np.linalg.solve(prior, step) - 0.5 * ratio, rtol=1e-4)


@pytest.mark.parametrize("n", [2, 4])
def test_a_vague_observation_beside_a_sharp_one_of_the_same_states(n):
    """In the sum of their precisions the vague one is a rounding error."""
    rng = np.random.default_rng(n)
    rows, data = rng.normal(size=(7, n)), rng.normal(size=7)
    noise = np.array([1e-4, 2.0, 1.5, 2.5, 2.0, 1.0, 3.0])
    prior = np.eye(n) + 0.5

    def log_p(x):
        z = -0.5 * ((jnp.asarray(data, jnp.float32) - jnp.asarray(rows, jnp.float32) @ x) / noise) ** 2
        return {"sharp": z[0], "vague": z[1:].reshape(2, 3)}

    law, rest = updated(Normal(jnp.zeros(n), jnp.asarray(prior, jnp.float32)), seen_of(log_p, jnp.zeros(n)))
    of_data = rows @ prior @ rows.T + np.diag(noise**2)
    gain = np.linalg.solve(of_data, rows @ prior).T
    np.testing.assert_allclose(law.mean, gain @ data, atol=1e-5)
    np.testing.assert_allclose(law.covariance, prior - gain @ rows @ prior, atol=1e-5)
    step = gain @ data
    ratio = np.linalg.slogdet(of_data)[1] - 2.0 * np.log(noise).sum()
    np.testing.assert_allclose(rest, -0.5 * step @ np.linalg.solve(prior, step) - 0.5 * ratio, rtol=1e-5)


def test_rows_stand_for_all_that_observations_say():
    """Two of three states, one of them twice, and a slope that no curvature goes with."""
    wide = np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    precision, tilt = wide.T @ np.diag([4.0, 0.25]) @ wide, np.array([0.0, 0.0, 0.3])
    slope = wide.T @ np.array([1.0, -2.0])
    found = sharpened(jnp.asarray(precision, jnp.float32), jnp.asarray(slope + tilt, jnp.float32))
    np.testing.assert_array_equal(found.rest, 0.0)
    np.testing.assert_allclose(found.rows.T @ found.rows, precision, atol=1e-5)
    np.testing.assert_allclose(found.rows.T @ found.data, slope, atol=1e-5)
    np.testing.assert_allclose(found.tilt, tilt, atol=1e-5)


def test_of_no_state_nothing_is_seen():
    """As before a scan that begins in a known state."""
    seen = seen_of(lambda x: (), jnp.zeros(0))
    assert seen.sharp.rows.shape == (0, 0) and seen.slope.shape == (0,)


def test_rows_of_several_observations_in_any_units():
    rng = np.random.default_rng(0)
    for _ in range(40):
        seen = rng.normal(size=(rng.integers(1, 4), 4)) * 10.0 ** rng.uniform(-3, 3, 4)
        wide = (seen * 10.0 ** rng.uniform(-3, 3, (len(seen), 1))).astype(np.float32)
        precision = wide.T @ wide
        found = sharpened(jnp.asarray(precision), jnp.asarray(precision @ np.ones(4, np.float32)))
        np.testing.assert_array_equal(found.rest, 0.0)
        scale = np.sqrt(np.diagonal(precision))
        off = (np.asarray(found.rows).T @ np.asarray(found.rows) - precision) / np.outer(scale, scale)
        assert np.abs(off).max() < 2e-5


def test_a_factor_that_rises_faster_than_the_prior_falls_beside_one_that_does_not():
    def log_p(x):
        return -2.0 * (x[0] - 1.0) ** 2, 1.0 * x[0] ** 2 + 0.5 * x[0]

    law, rest = updated(Normal(jnp.zeros(1), jnp.eye(1)), seen_of(log_p, jnp.zeros(1)))
    np.testing.assert_allclose(law.covariance, [[1 / 3]], rtol=1e-6)  # of 1 + 4 - 2
    np.testing.assert_allclose(law.mean, [1.5], rtol=1e-6)  # (4 + 1/2) / 3
    np.testing.assert_allclose(rest, -0.5 * 1.5**2 - 0.5 * np.log(3.0), rtol=1e-6)


def test_a_factor_that_is_convex_is_no_observation_and_counts_all_the_same():
    curved = np.array([[0.3, -0.5], [-0.5, 0.1]])  # of x, as exp(-x curved x / 2): more, far from zero
    prior, slope = np.array([[1.0, 0.2], [0.2, 0.8]]), np.array([0.4, -0.1])

    def log_p(x):
        return -0.5 * x @ jnp.asarray(curved) @ x + jnp.asarray(slope) @ x

    seen = seen_of(log_p, jnp.zeros(2))
    assert float(jnp.abs(seen.sharp.rest).max()) > 0.1
    law, rest = updated(Normal(jnp.array([0.5, -1.0]), jnp.asarray(prior, jnp.float32)), seen)
    mean = np.array([0.5, -1.0])
    right = np.linalg.inv(np.linalg.inv(prior) + curved)
    np.testing.assert_allclose(law.covariance, right, rtol=1e-5)
    new = right @ (np.linalg.solve(prior, mean) + slope)
    np.testing.assert_allclose(law.mean, new, rtol=1e-5)
    step = new - mean
    ratio = np.linalg.slogdet(prior)[1] - np.linalg.slogdet(right)[1]
    np.testing.assert_allclose(rest, -0.5 * step @ np.linalg.solve(prior, step) - 0.5 * ratio, rtol=1e-5)


def test_a_singular_covariance_of_many_rows_has_a_factor():
    """Its rounding errors grow with its rows, and what is added to its diagonal must with them."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(40, 20)) * np.exp(2 * rng.normal(size=(40, 1))) @ rng.normal(size=(20, 20))
        rows = jnp.asarray(rows, jnp.float32)
        spread = rows @ rows.T
        spread = 0.5 * (spread + spread.T)
        factor = root_of(spread)
        scale = jnp.sqrt(jnp.diagonal(spread))
        assert (abs(factor @ factor.T - spread) <= 1e-5 * scale[:, None] * scale).all()


@pytest.mark.parametrize(("n", "num"), [(1, 1), (2, 1), (2, 3), (3, 2), (4, 2)])
def test_a_unit_given_data(n, num):
    """Row by row the posterior of a standard normal vector."""
    rng = np.random.default_rng(n + num)
    rows, data = 3.0 * rng.normal(size=(num, n)), rng.normal(size=num)
    precision = np.eye(n) + rows.T @ rows
    with jax.enable_x64(True):
        mean, factor, half = map(np.asarray, unit_given(jnp.asarray(rows), jnp.asarray(data)))
    np.testing.assert_allclose(factor @ factor.T, np.linalg.inv(precision), rtol=1e-10)
    np.testing.assert_allclose(mean, np.linalg.solve(precision, rows.T @ data), rtol=1e-10)
    assert half == pytest.approx(0.5 * np.linalg.slogdet(precision)[1], rel=1e-12)


def test_a_unit_given_sharp_data():
    """In single precision no digit is lost of a variance of 1e-10, in whatever direction it is seen."""
    rows = np.array([[0.6e5, 0.8e5], [0.1, 0.3]])
    _, factor, half = unit_given(jnp.asarray(rows, jnp.float32), jnp.asarray([1e5, 0.0], jnp.float32))
    right = np.linalg.inv(np.eye(2) + rows.T @ rows)
    along = rows[0] / 1e5 @ np.asarray(factor, float)
    assert along @ along == pytest.approx(rows[0] / 1e5 @ right @ rows[0] / 1e5, rel=0.05)
    np.testing.assert_allclose(factor @ factor.T, right, rtol=1e-4)
    assert float(half) == pytest.approx(0.5 * np.linalg.slogdet(np.linalg.inv(right))[1], rel=1e-6)
