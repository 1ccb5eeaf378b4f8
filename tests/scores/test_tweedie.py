"""Tweedie's formulas against posteriors in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import digamma

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.scores import GammaNoise, GaussianNoise, MixtureScore, PoissonNoise, tweedie

WEIGHTS = np.array([0.3, 0.7])
LOCS = np.array([[-1.0, 0.5], [2.0, -0.3]])
COVARIANCES = np.array([[[0.5, 0.2], [0.2, 0.4]], [[1.0, -0.3], [-0.3, 0.6]]])
MIXTURE = MixtureScore(WEIGHTS, LOCS, COVARIANCES)
SCALE, GAIN = 0.8, 1.7
Y = np.array([[0.4, 0.1], [3.0, -2.0], [-2.0, 1.0]])


def posterior(y):
    """Mean and covariance of x given y = GAIN x + SCALE noise, by conjugacy in each component."""
    logs, means, covariances = [], [], []
    for w, m, s in zip(WEIGHTS, LOCS, COVARIANCES, strict=True):
        marginal = GAIN**2 * s + SCALE**2 * np.eye(2)
        gain = GAIN * s @ np.linalg.inv(marginal)
        apart = y - GAIN * m
        logs.append(
            np.log(w) - 0.5 * (apart @ np.linalg.solve(marginal, apart) + np.linalg.slogdet(marginal)[1])
        )
        means.append(m + gain @ apart)
        covariances.append(s - GAIN * gain @ s)
    r = np.exp(logs - np.max(logs))
    r /= r.sum()
    mean = r @ np.array(means)
    off = np.array(means) - mean
    return mean, np.einsum("k,kij->ij", r, covariances) + np.einsum("k,ki,kj->ij", r, off, off)


def score_of_y(y):
    return MIXTURE(y / GAIN, SCALE / GAIN) / GAIN


def test_gaussian_noise_has_mean_and_covariance():
    moments = tweedie(score_of_y, GaussianNoise(SCALE, GAIN), order=2)(Y)
    for number, y in enumerate(Y):
        mean, covariance = posterior(y)
        np.testing.assert_allclose(moments.mean[number], mean, atol=2e-5)
        np.testing.assert_allclose(moments.covariance[number], covariance, atol=2e-5)
    first = tweedie(score_of_y, GaussianNoise(SCALE, GAIN))(Y)
    np.testing.assert_allclose(first, moments.mean, atol=1e-6)
    one = jax.jit(tweedie(score_of_y, GaussianNoise(SCALE, GAIN), order=2))(Y[0])
    np.testing.assert_allclose(one.covariance, moments.covariance[0], atol=1e-6)


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_poisson_noise_against_a_gamma_prior(unit):
    """x/ζ ~ Gamma(a, b): the mean given k counts is (a + k)/(b + 1), by a score that is smooth in k."""
    a, b, counts = 3.0, 0.7, jnp.arange(12.0)

    def score(y):
        k = y / unit
        return (digamma(k + a) - digamma(k + 1) - jnp.log(b + 1)) / unit

    found = tweedie(score, PoissonNoise(unit))(unit * counts)
    middle = jnp.exp(digamma(counts + a + 0.5) - digamma(counts + 1.5))
    np.testing.assert_allclose(found, unit * (counts + 1) * middle / (b + 1), rtol=1e-5)
    # exp(ψ(k + 3/2)) is k + 1 to within 0.037, at k = 0
    np.testing.assert_allclose(found, unit * (a + counts) / (b + 1), rtol=0.037)
    theirs = (unit * counts + unit / 2) * jnp.exp(unit * score(unit * counts))
    np.testing.assert_allclose(theirs[1:], unit * (a - 0.5 + counts[1:]) / (b + 1), rtol=0.02)


@pytest.mark.parametrize("rate", [None, 2.0])
def test_gamma_noise_against_an_inverse_gamma_prior(rate):
    """1/x ~ Gamma(a, b): given y, Gamma(a + α, b + βy); the marginal is y^(α−1) (b + βy)^(−a−α)."""
    a, b, shape = 4.0, 1.5, 3.0
    beta, y = shape if rate is None else rate, jnp.array([0.2, 1.0, 4.0])
    found = tweedie(lambda y: (shape - 1) / y - (a + shape) * beta / (b + beta * y), GammaNoise(shape, rate))(
        y
    )
    np.testing.assert_allclose(found, (b + beta * y) / (a + shape), rtol=1e-5)
    assert (found < (b + beta * y) / (a + shape - 1)).all()  # the mean


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: tweedie(3.0, GaussianNoise(1.0)), ArgumentTypeError, "tweedie: score"),
        (lambda: tweedie(jnp.sin, "gaussian"), ArgumentTypeError, "GaussianNoise(scale)"),
        (lambda: tweedie(jnp.sin, GaussianNoise(1.0), order=3), ArgumentError, "order must be 1 or 2"),
        (lambda: tweedie(jnp.sin, GammaNoise(1.0), order=2), ArgumentError, "order=1 for GammaNoise"),
        (lambda: tweedie(jnp.sin, GaussianNoise(1.0), order=2)(1.0), ArgumentError, "(..., d)"),
        (lambda: GaussianNoise(0.0), ArgumentError, "scale must be positive"),
        (lambda: GaussianNoise(1.0, gain=0.0), ArgumentError, "gain"),
        (lambda: PoissonNoise(-1.0), ArgumentError, "unit must be positive"),
        (lambda: GammaNoise(1.0, rate=0.0), ArgumentError, "rate must be positive"),
    ],
)
def test_what_is_refused(make, error, words):
    with pytest.raises(error) as raised:
        make()
    assert words in str(raised.value)
