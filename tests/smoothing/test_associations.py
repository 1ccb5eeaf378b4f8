"""Who has which measurement: against counting all associations, and the messages against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.smoothing.tracking import association_marginals
from tests.smoothing.tracking_problems import counted

RNG = np.random.default_rng(0)


def weights(n, m, scale=3.0):
    return RNG.exponential(size=n), scale * RNG.exponential(size=(n, m))


def logs(w0, w):
    with np.errstate(divide="ignore"):
        return jnp.log(w0), jnp.log(w)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 1)])
def test_without_circles_it_is_exact(n, m, double):
    w0, w = weights(n, m)
    missed, detected, total = counted(w0, w)
    found = association_marginals(*logs(w0, w))
    np.testing.assert_allclose(found.missed, missed, rtol=1e-10)
    np.testing.assert_allclose(found.detected, detected, rtol=1e-10)
    np.testing.assert_allclose(found.unclaimed, 1.0 - detected.sum(0), rtol=1e-10)
    np.testing.assert_allclose(found.log_normalizer, total, rtol=1e-10)


def test_targets_that_share_no_circle_are_exact(double):
    """A chain: each measurement is shared by two targets at most, and no two of them share two."""
    w0, w = weights(3, 4)
    w *= np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    missed, detected, total = counted(w0, w)
    found = association_marginals(*logs(w0, w))
    np.testing.assert_allclose(found.detected, detected, atol=1e-10)
    np.testing.assert_allclose(found.missed, missed, atol=1e-10)
    np.testing.assert_allclose(found.log_normalizer, total, rtol=1e-10)


def test_the_error_of_circles_is_told_and_small():
    """Over random weights of up to four targets and four measurements, where each target could have any: a
    median of 0.030 and 0.114 at most were seen, and Bethe's sum up to 0.30 too small, never too large.
    """
    errors, of_sum = [], []
    for n, m in [(2, 2), (3, 3), (4, 4)]:
        for _ in range(10):
            w0, w = weights(n, m)
            _, detected, total = counted(w0, w)
            found = association_marginals(*logs(w0, w), 100)
            errors.append(np.abs(found.detected - detected).max())
            of_sum.append(float(found.log_normalizer) - total)
    assert 1e-4 < np.median(errors) < 0.05 and max(errors) < 0.15
    assert -0.6 < min(of_sum) and max(of_sum) < 1e-5


def by_formula(w0, w, rounds=500):
    """The messages as the formulas have them, sums written out."""
    n, m = w.shape
    nu = np.ones((n, m))
    for _ in range(rounds):
        mu = np.array(
            [
                [w[i, j] / (w0[i] + sum(w[i, k] * nu[i, k] for k in range(m) if k != j)) for j in range(m)]
                for i in range(n)
            ]
        )
        nu = np.array(
            [[1.0 / (1.0 + sum(mu[k, j] for k in range(n) if k != i)) for j in range(m)] for i in range(n)]
        )
    share = w * nu
    return share / (w0 + share.sum(1))[:, None]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_messages_are_those_of_the_formulas(scale, double):
    w0, w = weights(3, 4, scale)
    found = association_marginals(*logs(w0, w), 500)
    np.testing.assert_allclose(found.detected, by_formula(w0, w), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("columns", [[0.0, 0.0], [200.0, -200.0], [1000.0, 900.0]])
def test_numbers_beyond_single_precision(columns):
    """Weights of measurements that clutter hardly explains: two targets, one of which must take each."""
    log_w = jnp.array([[0.0, 0.5], [0.3, 0.0]]) + jnp.array(columns)
    found = association_marginals(jnp.array([-1.0, -2.0]), log_w, 200)
    assert all(np.isfinite(x).all() for x in found)
    np.testing.assert_allclose(found.missed + found.detected.sum(1), 1.0, atol=1e-5)
    if columns[0] == 1000.0:  # both are taken, one way or the other
        _, right, total = counted(np.zeros(2), np.exp(np.asarray(log_w, float) - np.array(columns)))
        np.testing.assert_allclose(found.missed, 0.0, atol=1e-5)
        np.testing.assert_allclose(found.unclaimed, 0.0, atol=1e-5)
        assert abs(float(found.log_normalizer) - total - 1900.0) < 1.0


def test_a_target_that_cannot_be_missed():
    found = association_marginals(jnp.array([-jnp.inf]), jnp.array([[-3.0, -jnp.inf]]))
    np.testing.assert_array_equal(found.detected, [[1.0, 0.0]])
    np.testing.assert_allclose(found.unclaimed, [0.0, 1.0], atol=1e-15)
    none = association_marginals(jnp.array([-jnp.inf, 0.0]), jnp.full((2, 2), -jnp.inf))
    np.testing.assert_array_equal(none.missed, [1.0, 1.0])
    assert float(none.log_normalizer) == -np.inf and (np.asarray(none.detected) == 0.0).all()


def test_nobody_and_nothing():
    found = association_marginals(jnp.zeros(0), jnp.zeros((0, 3)))
    assert found.unclaimed.tolist() == [1.0] * 3 and float(found.log_normalizer) == 0.0
    found = association_marginals(jnp.array([-1.0, 0.5]), jnp.zeros((2, 0)))
    assert found.missed.tolist() == [1.0, 1.0] and float(found.log_normalizer) == -0.5


def test_rounds_that_are_too_few_are_told():
    w0, w = weights(4, 4, 30.0)
    few, many = (association_marginals(*logs(w0, w), rounds) for rounds in (1, 200))
    assert float(few.residual) > 0.01 > 1e-5 > float(many.residual)


def test_derivatives_of_the_sum_are_the_marginals(double):
    """True of Bethe's sum where the messages have settled, though derivatives go through all rounds."""
    args = logs(*weights(3, 3))

    def total(*args):
        return association_marginals(*args, 200).log_normalizer

    found = association_marginals(*args, 200)
    missed, detected = jax.grad(total, (0, 1))(*args)
    np.testing.assert_allclose(missed, found.missed, atol=1e-8)
    np.testing.assert_allclose(detected, found.detected, atol=1e-8)
    impossible = args[1].at[0, 1].set(-jnp.inf)
    assert all(np.isfinite(x).all() for x in jax.grad(total, (0, 1))(args[0], impossible))


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((jnp.zeros(2), jnp.zeros((3, 1))), ArgumentError, "log_detected"),
        ((jnp.zeros((2, 1)), jnp.zeros((2, 1))), ArgumentError, "log_missed must be"),
        ((jnp.zeros(2), jnp.zeros(2)), ArgumentError, r"\(N, M\)"),
        ((jnp.zeros(2), jnp.zeros((2, 1)), 0), ArgumentError, "num_rounds"),
        (("a", jnp.zeros((2, 1))), ArgumentTypeError, "log_missed"),
    ],
)
def test_bad_arguments(args, error, words):
    with pytest.raises(error, match=words):
        association_marginals(*args)
