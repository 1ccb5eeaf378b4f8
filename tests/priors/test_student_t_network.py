"""Closed posteriors of infinitely wide networks against quadrature over the scale, NUTS, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from scipy import stats

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.priors import infinite_width, nngp_kernel
from ppl_ext.priors.infinite_width import scale_mixture_posterior, student_t_posterior

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

X = jnp.array([[-1.0, 0.2], [-0.3, 1.0], [0.4, -0.5], [1.1, 0.3], [1.5, -1.0]])
Y = jnp.array([-2.0, 0.3, 1.1, 1.9, 3.1])
NEW = jnp.array([[0.0, 0.0], [2.0, 1.0]])
A, B, NOISE = 1.5, 0.8, 0.2


def kernel(x1, x2):
    return nngp_kernel(x1, x2, depth=2, activation="erf", bias_scale=0.5)


def quadrature(log_prior, noise_of):
    """Evidence, predictive mean and covariance at NEW, and density of the first new value on a grid, by a sum
    over 4000 scales.
    """
    k, cross, new = (np.asarray(kernel(a, b), float) for a, b in ((X, X), (X, NEW), (NEW, NEW)))
    y = np.asarray(Y, float)
    log_scale = np.linspace(-12.0, 12.0, 4001)
    found = []
    for s in np.exp(log_scale):
        c = s * k + noise_of(s) * np.eye(5)
        mean = s * cross.T @ np.linalg.solve(c, y)
        covariance = s * new - s**2 * cross.T @ np.linalg.solve(c, cross)
        found.append((stats.multivariate_normal(np.zeros(5), c).logpdf(y), mean, covariance))
    log_p, means, covariances = (np.array(x) for x in zip(*found, strict=True))
    log_w = log_p + log_prior(np.exp(log_scale)) + log_scale  # in log scale, the Jacobian with it
    evidence = np.trapezoid(np.exp(log_w), log_scale)
    w = np.exp(log_w) / np.exp(log_w).sum()
    mean = w @ means
    covariance = np.einsum("s,sij->ij", w, covariances) + np.einsum(
        "s,si,sj->ij", w, means - mean, means - mean
    )
    grid = np.linspace(-3.0, 3.0, 7)
    density = w @ stats.norm.pdf(grid, means[:, :1], np.sqrt(covariances[:, :1, 0]))
    return np.log(evidence), mean, covariance, grid, density


def covariance_of(law):
    return law.df / (law.df - 2.0) * law.scale_tril @ law.scale_tril.T


def inverse_gamma(s):
    return stats.invgamma(A, scale=B).logpdf(s)


@pytest.fixture(scope="module")
def exact():
    return student_t_posterior(kernel, X, Y, shape=A, rate=B, noise=NOISE)


@pytest.fixture(scope="module")
def summed():
    return quadrature(inverse_gamma, lambda s: s * NOISE)


@pytest.mark.slow
def test_the_closed_posterior_is_that_of_quadrature(exact, summed):
    log_evidence, mean, covariance, grid, density = summed
    law = exact.predict(NEW)
    np.testing.assert_allclose(exact.log_evidence, log_evidence, rtol=1e-4)
    np.testing.assert_allclose(law.mean, mean, rtol=2e-4)
    np.testing.assert_allclose(covariance_of(law), covariance, rtol=1e-3)
    first = dist.StudentT(law.df, law.loc[0], law.scale_tril[0, 0])
    np.testing.assert_allclose(np.exp(first.log_prob(grid)), density, rtol=1e-3)


def test_a_wrong_rate_is_seen(exact, summed):
    wrong = exact._replace(scale=dist.InverseGamma(exact.scale.concentration, exact.scale.rate * 1.05))
    with pytest.raises(AssertionError):
        test_the_closed_posterior_is_that_of_quadrature(wrong, summed)


def test_new_data_have_the_noise_too(exact):
    factor = exact.scale.rate / exact.scale.concentration
    apart = exact.predict(NEW, observed=True).scale_tril, exact.predict(NEW).scale_tril
    np.testing.assert_allclose(
        apart[0] @ apart[0].T - apart[1] @ apart[1].T, factor * NOISE * np.eye(2), atol=1e-5
    )


@pytest.mark.slow
def test_importance_sampling_agrees_with_the_closed_form(exact):
    prior = dist.InverseGamma(A, B)
    proposal = dist.InverseGamma(3.0, 3.0)
    options = {"noise": NOISE, "scaled_noise": True, "num_samples": 4000}
    found = scale_mixture_posterior(jax.random.key(0), kernel, X, Y, prior, proposal=proposal, **options)
    assert found.pareto_k < 0.7
    law, (mean, covariance) = exact.predict(NEW), found.predict(NEW)
    np.testing.assert_allclose(mean, law.mean, rtol=1e-3)  # the same for every scale
    np.testing.assert_allclose(covariance, covariance_of(law), rtol=0.15)
    runs = [
        scale_mixture_posterior(key, kernel, X, Y, prior, proposal=proposal, **options)
        for key in jax.random.split(jax.random.key(1), 16)
    ]
    evidence = np.exp([r.log_evidence - float(exact.log_evidence) for r in runs])
    assert abs(evidence.mean() - 1.0) < 4.5 * evidence.std(ddof=1) / 4.0 < 0.1
    without = np.exp([r.log_evidence - float(exact.log_evidence) + np.log(1.1) for r in runs])
    assert abs(without.mean() - 1.0) > 4.5 * without.std(ddof=1) / 4.0, (
        "a constant that is off by a tenth is seen"
    )


@pytest.mark.slow
def test_fixed_noise_and_another_prior_agree_with_quadrature():
    log_evidence, mean, covariance, _, _ = quadrature(lambda s: stats.lognorm(1.0).logpdf(s), lambda s: NOISE)
    found = scale_mixture_posterior(
        jax.random.key(2), kernel, X, Y, dist.LogNormal(0.0, 1.0), noise=NOISE, num_samples=20_000
    )
    np.testing.assert_allclose(found.log_evidence, log_evidence, atol=0.05)
    got_mean, got_covariance = found.predict(NEW)
    np.testing.assert_allclose(got_mean, mean, atol=0.02)
    np.testing.assert_allclose(got_covariance, covariance, rtol=0.05, atol=0.01)
    draws = np.asarray(found.sample(jax.random.key(3), NEW, 4000))
    np.testing.assert_allclose(
        draws.mean(0), mean, atol=4.5 * np.sqrt(np.diag(covariance).max() / 4000) + 0.02
    )
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.15, atol=0.03)
    fixed, scaled = (
        found._replace(scaled_noise=s).predict(NEW, observed=True)[1]
        - found._replace(scaled_noise=s).predict(NEW)[1]
        for s in (False, True)
    )
    np.testing.assert_allclose(fixed, NOISE * np.eye(2), atol=1e-4)
    expected = NOISE * np.exp(found.log_weights) @ np.asarray(found.scales)
    np.testing.assert_allclose(scaled, expected * np.eye(2), atol=1e-3)


@pytest.mark.slow
def test_nuts_agrees(exact):
    def model():
        s = numpyro.sample("s", dist.InverseGamma(A, B))
        numpyro.sample(
            "y", dist.MultivariateNormal(jnp.zeros(5), s * (kernel(X, X) + NOISE * jnp.eye(5))), obs=Y
        )

    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=8000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    log_s = np.log(np.asarray(mcmc.get_samples()["s"], float))
    wanted = np.log(
        stats.invgamma(float(exact.scale.concentration), scale=float(exact.scale.rate)).rvs(
            400_000, random_state=0
        )
    )
    error = log_s.std() / np.sqrt(effective_sample_size(log_s[None]))
    assert abs(log_s.mean() - wanted.mean()) < 4.5 * error < 0.05
    np.testing.assert_allclose(log_s.std(), wanted.std(), rtol=0.08)


@pytest.mark.slow
def test_a_tinygp_kernel_serves():
    tinygp = pytest.importorskip("tinygp")
    found = student_t_posterior(tinygp.kernels.Matern32(1.0), X[:, 0], Y, noise=1e-3)
    np.testing.assert_allclose(found.predict(X[:, 0]).loc, Y, atol=0.02)


@pytest.mark.slow
def test_inputs_close_together_stay_finite():
    found = student_t_posterior(
        lambda a, b: jnp.exp(-0.5 * (a[:, None] - b[None]) ** 2),
        jnp.linspace(0, 1, 30),
        jnp.zeros(30),
        noise=1e-4,
    )
    assert np.isfinite(found.predict(jnp.linspace(0, 1, 50)).scale_tril).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kernel": 3}, ArgumentTypeError, "kernel"),
        ({"kernel": lambda a, b: jnp.zeros(3)}, ArgumentError, "must be a matrix of shape .5, 5."),
        ({"y": Y[:3]}, ArgumentError, "got shapes .5, 2. and .3,."),
        ({"y": Y * jnp.nan}, ArgumentError, "y holds 5"),
        ({"x": "inputs"}, ArgumentTypeError, "x must be an array of numbers, got 'inputs'"),
        ({"x": X[:0], "y": Y[:0]}, ArgumentError, "at least 1"),
        ({"shape": 0.0}, ArgumentError, "shape"),
        ({"rate": "one"}, ArgumentTypeError, "rate"),
        ({"noise": -1.0}, ArgumentError, "noise"),
        ({"x": X * 0.0, "noise": 0.0}, NonFiniteError, "not positive definite"),
    ],
)
def test_what_cannot_be_is_named(change, error, words):
    given = {"kernel": kernel, "x": X, "y": Y} | change
    with pytest.raises(error, match=words):
        student_t_posterior(given.pop("kernel"), given.pop("x"), given.pop("y"), **given)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scale_prior": dist.Normal(0.0, 1.0)}, ArgumentError, "must be positive"),
        ({"scale_prior": 1.0}, ArgumentTypeError, "scale_prior"),
        ({"scale_prior": dist.Gamma(jnp.ones(2), 1.0)}, ArgumentError, "one of shape .2,."),
        ({"noise": 0.0}, ArgumentError, "noise"),
        ({"num_samples": 0}, ArgumentError, "num_samples"),
        ({"rng_key": 0}, ArgumentTypeError, "rng_key"),
    ],
)
def test_settings_of_the_mixture_that_cannot_be_are_named(change, error, words):
    given = {"rng_key": jax.random.key(0), "scale_prior": dist.Gamma(1.0, 1.0)} | change
    with pytest.raises(error, match=words):
        scale_mixture_posterior(given.pop("rng_key"), kernel, X, Y, given.pop("scale_prior"), **given)


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_what_is_added_to_a_singular_covariance_is_rounding_of_its_own_size(size):
    covariance = jnp.full((3, 3), size, jnp.float32)
    root = np.asarray(infinite_width._cholesky(covariance, jnp.float32(size)))
    np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-5)
