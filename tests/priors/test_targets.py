"""Targets: moments against their formulas and their draws, operators against numerical ones, and Cholesky
factors of hard matrices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import tinygp

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors import (
    NNGP,
    Conditioned,
    GaussianProcess,
    Image,
    ModelTarget,
    StudentTProcess,
    derivative_at,
    integral,
    nngp_kernel,
    stacked,
    values_at,
)
from ppl_ext.priors.linear_algebra import cholesky
from tests.priors.models import LEVEL, SLOPE, X, line, linear_target

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

RBF = tinygp.kernels.ExpSquared(scale=0.8)
DRAWS = 4000


def rbf(a, b, scale=0.8):
    return np.exp(-0.5 * (np.asarray(a)[:, None] - np.asarray(b)[None, :]) ** 2 / scale**2)


def agrees(draws, mean, cov, times=1.0):
    """Whether the first two moments of Gaussian draws are these, within 4.5 standard errors."""
    draws = np.asarray(draws, np.float64)
    d = np.diagonal(cov)
    near_mean = (np.abs(draws.mean(0) - mean) < 4.5 * np.sqrt(d / len(draws)) + 1e-6).all()
    error = times * np.sqrt((cov**2 + np.outer(d, d)) / len(draws))
    return near_mean and (np.abs(np.cov(draws.T, bias=True) - cov) < 4.5 * error + 1e-5).all()


def test_a_process_has_its_kernels_moments():
    x = X[:4]
    target = GaussianProcess(RBF, mean=lambda x: 1.0 + x[:, 0])
    np.testing.assert_allclose(target.cov(x), rbf(x, x), atol=1e-6)
    np.testing.assert_allclose(target.mean(x), 1.0 + x)
    draws = target.sample(jax.random.key(0), x, DRAWS)
    assert agrees(draws, target.mean(x), rbf(x, x))
    assert not agrees(draws, target.mean(x), 1.2 * rbf(x, x))
    assert not agrees(draws + 0.1, target.mean(x), rbf(x, x))


def test_inputs_may_be_whole_numbers():
    """Means and covariances are of real numbers all the same."""
    whole, real = jnp.arange(3), jnp.arange(3.0)
    process = GaussianProcess(RBF, mean=1.5)
    at_zero = Conditioned(process, values_at([0]), jnp.array([2.5]))
    for target in (process, StudentTProcess(process, 3.0, 1.0), at_zero, NNGP(depth=1)):
        np.testing.assert_array_equal(target.mean(whole), target.mean(real))
        np.testing.assert_array_equal(target.cov(whole), target.cov(real))
        np.testing.assert_array_equal(
            target.sample(jax.random.key(0), whole, 4), target.sample(jax.random.key(0), real, 4)
        )
    np.testing.assert_allclose(process.mean(whole), 1.5)


def test_several_outputs_are_independent():
    x = X[:3]
    target = GaussianProcess(RBF, mean=2.0, num_outputs=2)
    draws = target.sample(jax.random.key(1), x, DRAWS)
    assert draws.shape == (DRAWS, 3, 2) and target.mean(x).shape == (3, 2)
    assert agrees(draws.reshape(DRAWS, 6), target.mean(x).reshape(-1), target.cov(x))
    np.testing.assert_allclose(target.cov(x)[::2, 1::2], 0.0)


@pytest.mark.slow
def test_hyperparameters_are_drawn_for_each_function():
    target = GaussianProcess(lambda h: h["variance"] * RBF, hyper={"variance": dist.LogNormal(0.0, 1.0)})
    draws = np.asarray(target.sample(jax.random.key(2), X[:2], 20_000), np.float64)
    squares = draws**2
    assert abs(squares.mean() - np.exp(0.5)) < 4.5 * squares.std() / np.sqrt(20_000)
    # 3e in the limit; a variance that all share would give 3
    assert (squares**2).mean() / squares.mean() ** 2 > 5.0
    assert target.cov(X) is None


def test_a_network_limit_is_its_kernel():
    x = np.random.default_rng(0).normal(size=(4, 3))
    target = NNGP(depth=2, activation="erf", weight_scale=1.5, bias_scale=[0.1, 0.2, 0.3])
    expected = nngp_kernel(x, depth=2, activation="erf", weight_scale=1.5, bias_scale=[0.1, 0.2, 0.3])
    np.testing.assert_allclose(target.cov(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)


def test_a_student_t_process_has_its_mean_and_covariance_where_these_exist():
    x, base = X[:3], GaussianProcess(RBF, mean=1.0)
    np.testing.assert_allclose(StudentTProcess(base, 4.0, 6.0).cov(x), 2.0 * rbf(x, x), rtol=1e-5)
    np.testing.assert_allclose(StudentTProcess(base, 1.5, 3.0).cov(x), 6.0 * rbf(x, x), rtol=1e-5)
    np.testing.assert_allclose(StudentTProcess(base, 0.7, 1.0).mean(x), 1.0)
    assert StudentTProcess(base, 1.0, 1.0).cov(x) is None and StudentTProcess(base, 0.5, 1.0).mean(x) is None


@pytest.mark.slow
def test_a_student_t_process_is_a_scale_mixture():
    x = X[:3]
    target = StudentTProcess(GaussianProcess(RBF, mean=1.0), shape=4.0, scale=6.0)
    draws = np.asarray(target.sample(jax.random.key(3), x, 20_000), np.float64) - 1.0
    exact = dist.StudentT(8.0, 0.0, np.sqrt(6.0 / 4.0))
    for edge in (0.5, 1.5, 3.0):
        share, p = (draws[:, 0] < edge).mean(), float(exact.cdf(edge))
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / 20_000)
    # One scale a function: what is far out at one input is far out at another that is nearly independent of
    # it.
    far = StudentTProcess(GaussianProcess(tinygp.kernels.ExpSquared(scale=1e-3)), 2.0, 2.0).sample(
        jax.random.key(4), x, 4000
    )
    assert np.corrcoef(np.log(np.abs(far[:, :2])).T)[0, 1] > 0.1


def test_any_model_is_a_target():
    draws = ModelTarget(line, output="f").sample(jax.random.key(5), X[:3], DRAWS)
    assert agrees(draws, np.zeros(3), np.asarray(X[:3, None] * X[None, :3] + 1.0))


def test_conditioning_on_values_is_regression():
    x, at, y = np.array([0.3, 0.9]), np.array([0.0, 0.5, 1.0]), np.array([1.0, -1.0, 0.5])
    target = Conditioned(GaussianProcess(RBF, mean=0.2), values_at(at), y, noise=0.3)
    s = rbf(at, at) + 0.09 * np.eye(3)
    np.testing.assert_allclose(
        target.mean(jnp.asarray(x)), 0.2 + rbf(x, at) @ np.linalg.solve(s, y - 0.2), atol=1e-4
    )
    np.testing.assert_allclose(
        target.cov(jnp.asarray(x)), rbf(x, x) - rbf(x, at) @ np.linalg.solve(s, rbf(at, x)), atol=1e-4
    )


def test_conditioning_on_an_integral_conserves_it():
    nodes = np.linspace(-1.0, 1.0, 9)
    weights = np.full(9, 2.0 / 9)
    target = Conditioned(GaussianProcess(RBF), integral(nodes, weights), 3.0)
    draws = np.asarray(target.sample(jax.random.key(6), jnp.asarray(nodes), 200))
    np.testing.assert_allclose(draws @ weights, 3.0, atol=5e-2)
    assert draws.std(0).min() > 0.1
    free = np.asarray(GaussianProcess(RBF).sample(jax.random.key(6), jnp.asarray(nodes), 200)) @ weights
    assert free.std() > 0.5


@pytest.mark.slow
def test_operators_agree_with_finite_differences_and_can_be_conditioned_on_twice():
    h, at = 1e-2, np.array([-0.4, 0.6])
    slope = derivative_at(at)
    target = GaussianProcess(RBF)
    ends = np.concatenate([at - h, at + h])
    difference = np.concatenate([-np.eye(2), np.eye(2)], axis=1) / (2 * h)
    exact = difference @ rbf(ends, ends) @ difference.T
    np.testing.assert_allclose(
        Image(target, lambda f, x: derivative_at(x)(f)).cov(jnp.asarray(at)), exact, atol=1e-2
    )
    both = Conditioned(target, stacked(slope, values_at([0.0])), [1.0, 2.0, 3.0])
    again = Conditioned(Conditioned(target, slope, [1.0, 2.0]), values_at([0.0]), 3.0)
    x = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(both.mean(x), again.mean(x), atol=2e-3)
    np.testing.assert_allclose(both.cov(x), again.cov(x), atol=2e-3)
    measured = (both.mean(jnp.asarray(at + h)) - both.mean(jnp.asarray(at - h))) / (2 * h)
    np.testing.assert_allclose(measured, [1.0, 2.0], atol=0.05)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_smooth_functions_at_many_equal_inputs_can_be_drawn_in_single_precision(scale):
    """200 inputs, half of them twice: the covariance has numerical rank of a handful."""
    x = jnp.concatenate([jnp.linspace(0, 1, 100)] * 2)
    draws = np.asarray(
        GaussianProcess(tinygp.kernels.ExpSquared(scale=scale)).sample(jax.random.key(7), x, 50)
    )
    assert np.isfinite(draws).all()
    assert np.abs(draws[:, :100] - draws[:, 100:]).max() < 0.1
    assert 0.7 < draws.std() < 1.3


def test_jitter_is_relative_and_no_larger_than_it_must_be():
    small = cholesky(1e-8 * jnp.eye(3))
    np.testing.assert_allclose(small @ small.T, 1e-8 * np.eye(3), rtol=1e-5)
    x = np.random.default_rng(0).normal(size=(5, 5))
    good = jnp.asarray(x @ x.T + np.eye(5), jnp.float32)
    factor = cholesky(good)
    np.testing.assert_allclose(factor @ factor.T, good, rtol=1e-4, atol=1e-4)
    assert not np.isfinite(cholesky(-jnp.eye(3))).any() or np.isnan(cholesky(-jnp.eye(3))).any()


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: GaussianProcess(3), ArgumentTypeError, "kernel"),
        (lambda: GaussianProcess(tinygp.kernels.ExpSquared), ArgumentTypeError, "instance"),
        (
            lambda: GaussianProcess(lambda a, b: jnp.ones(3)).sample(jax.random.key(0), X, 2),
            ArgumentError,
            r"shape \(12, 12\)",
        ),
        (lambda: GaussianProcess(RBF, mean="0"), ArgumentTypeError, "mean"),
        (lambda: GaussianProcess(RBF, mean=lambda x: x).mean(X), ArgumentError, "mean must return"),
        (lambda: GaussianProcess(RBF, hyper={"a": 3}), ArgumentTypeError, r"hyper\['a'\]"),
        (
            lambda: GaussianProcess(lambda h: 3, hyper={"a": dist.Normal()}).sample(jax.random.key(0), X, 2),
            ArgumentTypeError,
            "return a kernel",
        ),
        (lambda: GaussianProcess(RBF, num_outputs=0), ArgumentError, "num_outputs"),
        (lambda: NNGP(depth=-1), ArgumentError, "depth"),
        (lambda: StudentTProcess(RBF, 1.0, 1.0), ArgumentTypeError, "base"),
        (lambda: StudentTProcess(linear_target(), 0.0, 1.0), ArgumentError, "shape"),
        (lambda: ModelTarget(3), ArgumentTypeError, "model"),
        (lambda: ModelTarget(line, output=3), ArgumentTypeError, "output"),
        (lambda: Conditioned(RBF, values_at([0.0]), 1.0), ArgumentTypeError, "base"),
        (
            lambda: Conditioned(linear_target(num_outputs=2), values_at([0.0]), 1.0),
            ArgumentError,
            "one output",
        ),
        (
            lambda: Conditioned(linear_target(), values_at([0.0, 1.0]), [1.0]).mean(X),
            ArgumentError,
            "2 numbers",
        ),
        (lambda: Conditioned(linear_target(), values_at([0.0]), np.nan), ArgumentError, "value"),
        (lambda: Conditioned(linear_target(), 3, 1.0), ArgumentTypeError, "operator"),
        (lambda: Image(linear_target(), lambda f: f(X)).mean(X), ArgumentTypeError, "must turn a function"),
        (
            lambda: Conditioned(linear_target(), lambda f: "a", 1.0).mean(X),
            ArgumentTypeError,
            "gives must be an array of numbers, got 'a'",
        ),
        (
            lambda: Conditioned(GaussianProcess(tinygp.kernels.Exp()), derivative_at([0.0]), 0.0),
            ArgumentError,
            "has no law under this base.*rough process",
        ),
        (
            lambda: Conditioned(GaussianProcess(tinygp.kernels.Constant(1.0)), derivative_at([0.0]), 0.0),
            ArgumentError,
            "has no law under this base.*noise > 0",
        ),
        (lambda: integral([0.0, 1.0], [1.0]), ArgumentError, "weight"),
        (lambda: derivative_at([0.0], dim=1), ArgumentError, "dim"),
        (lambda: values_at([]), ArgumentError, "values_at"),
    ],
)
def test_bad_arguments_are_named(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_the_linear_kernel_of_the_tests_is_that_of_the_line():
    np.testing.assert_allclose(linear_target().cov(X), SLOPE**2 * np.outer(X, X) + LEVEL**2, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_kernel_with_a_state_space_form_is_one_like_any_other(shape):
    times = jnp.array([2.0, 0.0, 0.5])  # in any order
    ours = GaussianProcess(tinygp.kernels.quasisep.Matern32(scale=0.7)).cov(times.reshape(shape))
    dense = GaussianProcess(tinygp.kernels.Matern32(scale=0.7)).cov(times)
    np.testing.assert_allclose(ours, dense, rtol=1e-5)
    with pytest.raises(ArgumentError, match="of one input, and these have 2"):
        GaussianProcess(tinygp.kernels.quasisep.Matern32(scale=0.7)).cov(jnp.zeros((3, 2)))
