"""Released moments: the noise is the least that hides a row, and their likelihood knows all of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from ppl_ext.designs import PrivateMoments, private_moments
from ppl_ext.designs.private_moments import SENSITIVITY, gaussian_noise
from ppl_ext.errors import ArgumentError, ArgumentTypeError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3))
B = np.array([1.0, -0.5, 0.25])
Y = X @ B + 0.3 * RNG.normal(size=50)
FAR = (100.0, 100.0)  # bounds that no row meets


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_the_noise_of_the_mechanism_is_the_least(epsilon, delta):
    """By integration: how much likelier an event is under one of two laws than the bound allows."""
    sigma = gaussian_noise(epsilon, delta)

    def beyond(sigma):
        laws = scipy.stats.norm(0.0, sigma), scipy.stats.norm(1.0, sigma)
        start = 0.5 - sigma**2 * epsilon  # below it the first is more than e^ε times likelier
        found, _ = scipy.integrate.quad(
            lambda z: laws[0].pdf(z) - np.exp(epsilon) * laws[1].pdf(z),
            start - 12 * sigma,
            start,
            epsabs=1e-12,
        )
        return found

    np.testing.assert_allclose(beyond(sigma), delta, rtol=1e-5)
    assert beyond(0.99 * sigma) > delta


def test_two_rows_differ_by_no_more_than_is_hidden():
    """And two do: the largest distance that a search finds is the bound."""

    def moments(v):
        x, y = v[:3] / max(1.0, np.linalg.norm(v[:3])), np.clip(v[3], -1, 1)
        return np.concatenate([np.outer(x, x).ravel(), x * y])

    def distance(v):
        return np.linalg.norm(moments(v[:4]) - moments(v[4:]))

    pairs = RNG.normal(size=(20_000, 8)) * 2.0
    assert max(map(distance, pairs)) <= SENSITIVITY
    best = max(pairs, key=distance)
    best = scipy.optimize.minimize(
        lambda v: -distance(v), best, method="Nelder-Mead", options={"maxiter": 5000}
    ).x
    assert 0.995 * SENSITIVITY < distance(best) <= SENSITIVITY + 1e-9


def release(key, local=True, bounds=FAR, x=X, y=Y, epsilon=1.0):
    return private_moments(key, x, y, epsilon, delta=1e-3, bounds=bounds, local=local)


@pytest.mark.parametrize("local", [True, False])
def test_the_noise_of_a_release(local):
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: release(key, local))(keys)
    one = gaussian_noise(1.0, 1e-3) * SENSITIVITY * 100.0**2
    each = one / (np.sqrt(50) if local else 50)
    noise = np.asarray(found.second - X.T @ X / 50)
    np.testing.assert_array_equal(noise, np.swapaxes(noise, 1, 2))
    for i, j in itertools.product(range(3), repeat=2):
        right = each if i == j else each / np.sqrt(2.0)
        assert abs(noise[:, i, j].std() / right - 1) < 4.5 / np.sqrt(8000)
        assert abs(noise[:, i, j].mean()) < 4.5 * right / np.sqrt(4000)
    cross = np.asarray(found.cross - X.T @ Y / 50)
    assert (abs(cross.std(0) / each - 1) < 4.5 / np.sqrt(8000)).all()
    np.testing.assert_allclose(found.second_noise[0] * np.sqrt(2.0), each)
    np.testing.assert_allclose(found.cross_noise[0], each)


def test_the_law_has_the_moments_of_what_is_released():
    """Given b, of the released cross moments less the released matrix times b: over rows and noise."""
    b, sigma, num = jnp.asarray(B), 3.0, 20_000

    def one(key):
        of_rows, of_release = jax.random.split(key)
        y = X @ b + sigma * jax.random.normal(of_rows, (50,))
        return private_moments(of_release, X, y, 50.0, delta=1e-2, bounds=(5.0, 20.0), local=False)

    told = jax.vmap(one)(jax.random.split(jax.random.key(1), num))
    left = np.asarray(told.cross - told.second @ b)
    exact = one(jax.random.key(0))
    exact = PrivateMoments(X.T @ X / 50, exact.cross, 50, exact.second_noise, exact.cross_noise)
    law = exact.law(b, sigma)
    expected = np.asarray(law.covariance_matrix)
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / num)
    assert (np.abs(np.cov(left.T) - expected) < 4.5 * error).all()
    assert (np.abs(left.mean(0)) < 4.5 * np.sqrt(np.diag(expected) / num)).all()
    np.testing.assert_allclose(law.mean, X.T @ X @ B / 50)
    parts = [exact.cross_noise**2, exact.second_noise**2, sigma**2 / 50]
    assert max(parts) < 400 * min(parts)  # none of them too small to be seen


def test_the_likelihood_integrates_the_matrix_out():
    """By hand for one feature: c is N(A b, s_c² + σ²A/n), and A is N(Â, 2 s_A²)."""
    told = release(jax.random.key(3), x=X[:, :1], bounds=(4.0, 4.0))
    found = told.law(jnp.array([0.7]))
    spread = np.sqrt(2.0) * float(told.second_noise)

    def both(a):
        given = scipy.stats.norm(0.7 * a, float(told.cross_noise)).pdf(float(told.cross[0]))
        return given * scipy.stats.norm(float(told.second[0, 0]), spread).pdf(a)

    middle = float(told.second[0, 0])
    right, _ = scipy.integrate.quad(both, middle - 10 * spread, middle + 10 * spread, epsabs=1e-14)
    np.testing.assert_allclose(found.log_prob(told.cross), np.log(right), rtol=1e-6)


def test_public_moments_take_the_place_of_released_ones():
    told = release(jax.random.key(3), x=X[:, :1], bounds=(4.0, 4.0))
    law = told.law(jnp.array([0.7]), 0.5, jnp.array([[1.3]]))
    np.testing.assert_allclose(law.mean, [0.91])
    np.testing.assert_allclose(law.covariance_matrix, [[float(told.cross_noise) ** 2 + 0.25 * 1.3 / 50]])


def test_a_long_row_stays_on_its_regression():
    tiny = {"epsilon": 1e6, "bounds": (1.0, 3.0), "local": False}
    told = release(jax.random.key(0), x=X, y=X @ B, **tiny)  # with next to no noise
    np.testing.assert_allclose(np.linalg.solve(told.second, told.cross), B, atol=0.02)
    assert np.trace(told.second) <= 1.0 + 0.01
    cut = release(jax.random.key(0), x=np.eye(3)[[0]], y=np.array([9.0]), **tiny)
    np.testing.assert_allclose(cut.cross, [3.0, 0.0, 0.0], atol=0.02)


def test_a_mean_of_releases_is_a_release():
    keys = jax.random.split(jax.random.key(0), (2000, 50))
    each = jax.vmap(jax.vmap(lambda key, x, y: release(key, x=x[None], y=y[None])), (0, None, None))(
        keys, X, Y
    )
    together = release(jax.random.key(1))
    spread = np.asarray(each.cross.mean(1)).std(0)
    assert (abs(spread / float(together.cross_noise) - 1) < 4.5 / np.sqrt(4000)).all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"epsilon": 0.0}, ArgumentError, "epsilon must be above 0 .* at 0 nothing may be told"),
        ({"epsilon": -1.0}, ArgumentError, "epsilon must be above 0"),
        ({"epsilon": float("inf")}, ArgumentError, "epsilon must be above 0 and finite"),
        ({"epsilon": "2"}, ArgumentTypeError, "epsilon must be a real number"),
        ({"delta": 0.0}, ArgumentError, "delta must be in .* well below 1/n"),
        ({"delta": 1.0}, ArgumentError, "delta must be in"),
        ({"bounds": (0.0, 1.0)}, ArgumentError, "bound of the norm of x must be above 0"),
        ({"bounds": (1.0, float("inf"))}, ArgumentError, "bound of y must be above 0 and finite"),
        ({"bounds": 1.0}, ArgumentError, "bounds must be those of the norm of x and of y"),
        ({"y": np.zeros(49)}, ArgumentError, "x must have shape"),
        ({"x": np.zeros(50)}, ArgumentError, "x must have shape"),
        ({"x": "rows"}, ArgumentTypeError, "x"),
        ({"x": np.where(np.arange(50)[:, None] == 7, np.nan, X)}, ArgumentError, "x must be finite; row 7"),
        ({"y": np.where(np.arange(50) == 3, np.inf, Y)}, ArgumentError, "y must be finite; row 3 is not"),
        ({"local": 1}, ArgumentTypeError, "local must be True or False"),
        ({"rng_key": 0}, ArgumentTypeError, "rng_key must be one random key"),
    ],
)
def test_bad_inputs_are_named(changes, error, words):
    settings = {
        "rng_key": jax.random.key(0),
        "x": X,
        "y": Y,
        "epsilon": 1.0,
        "delta": 1e-5,
        "bounds": (1.0, 1.0),
    }
    with pytest.raises(error, match=f"private_moments: .*{words}"):
        private_moments(**{**settings, **changes})


def test_shapes_that_do_not_fit_a_law_are_named():
    told = release(jax.random.key(0))
    with pytest.raises(ArgumentError, match=r"b must have shape \(3,\)"):
        told.law(jnp.zeros(2))
    with pytest.raises(ArgumentError, match=r"second must have shape \(3, 3\)"):
        told.law(jnp.zeros(3), 1.0, jnp.eye(2))
