"""Exact scores against automatic derivatives, dense linear algebra, and the flow's differential equation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.scores import GaussianScore, MixtureScore, probability_flow, teleport

LOC = jnp.array([0.5, -1.0, 2.0])
ROOT = jnp.array([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.8]])
COVARIANCE = ROOT @ ROOT.T
GAUSSIAN = GaussianScore(LOC, COVARIANCE)
MIXTURE = MixtureScore(
    jnp.array([0.2, 0.5, 0.3]),
    jnp.stack([LOC, -LOC, jnp.zeros(3)]),
    jnp.stack([COVARIANCE, jnp.eye(3), jnp.diag(jnp.array([0.1, 2.0, 1.0]))]),
)
POINTS = jax.random.normal(jax.random.key(5), (4, 2, 3)) * 2


def law(sigma):
    parts = [
        dist.MultivariateNormal(m, s + sigma**2 * jnp.eye(3))
        for m, s in zip(
            [LOC, -LOC, jnp.zeros(3)],
            [COVARIANCE, jnp.eye(3), jnp.diag(jnp.array([0.1, 2.0, 1.0]))],
            strict=True,
        )
    ]
    return parts[0], dist.MixtureGeneral(dist.Categorical(jnp.array([0.2, 0.5, 0.3])), parts)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("number", [0, 1])
def test_score_and_density_are_those_of_numpyro(sigma, number):
    score, reference = (GAUSSIAN, MIXTURE)[number], law(sigma)[number]
    np.testing.assert_allclose(
        score.log_prob(POINTS, sigma), reference.log_prob(POINTS), rtol=2e-5, atol=2e-5
    )
    gradient = jax.grad(lambda x: reference.log_prob(x).sum())(POINTS)
    np.testing.assert_allclose(score(POINTS, sigma), gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        score(POINTS, jnp.full((4, 2), sigma)), gradient, rtol=1e-4, atol=1e-4
    )  # a level each


@pytest.mark.parametrize("score", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
def test_draws_have_the_moments(score):
    x = np.asarray(score.sample(jax.random.key(0), (100, 400), 0.5), np.float64).reshape(-1, 3)
    whole = score if isinstance(score, GaussianScore) else score.gaussian
    covariance = np.asarray(whole.covariance) + 0.25 * np.eye(3)
    errors = np.sqrt(np.diag(covariance) / len(x))
    assert (abs(x.mean(0) - whole.loc) < 4.5 * errors).all()
    centred = x - x.mean(0)
    products = centred[:, :, None] * centred[:, None]
    assert (abs(products.mean(0) - covariance) < 4.5 * products.std(0) / len(x) ** 0.5).all()


def test_the_gaussian_of_a_mixture_and_of_draws():
    weights, locs = np.array([0.2, 0.5, 0.3]), np.stack([LOC, -LOC, np.zeros(3)])
    within = 0.2 * COVARIANCE + 0.5 * np.eye(3) + 0.3 * np.diag([0.1, 2.0, 1.0])
    mean = weights @ locs
    between = np.einsum("k,ki,kj->ij", weights, locs - mean, locs - mean)
    np.testing.assert_allclose(MIXTURE.gaussian.loc, mean, atol=1e-5)
    np.testing.assert_allclose(MIXTURE.gaussian.covariance, within + between, atol=1e-4)
    draws = np.asarray(POINTS).reshape(-1, 3)
    fitted = GaussianScore.of_draws(draws)
    np.testing.assert_allclose(fitted.covariance, np.cov(draws.T, bias=True), rtol=1e-4, atol=1e-4)


def test_teleport_solves_the_flow():
    jumped = teleport(GAUSSIAN, POINTS, 3.0, 0.2)
    np.testing.assert_allclose(
        jumped, probability_flow(GAUSSIAN, POINTS, jnp.geomspace(3.0, 0.2, 400)), atol=2e-4
    )
    np.testing.assert_allclose(teleport(GAUSSIAN, jumped, 0.2, 3.0), POINTS, atol=2e-4)


def test_levels_that_rise_or_rest_are_taken():
    up, twice = jnp.array([0.5, 1.0, 1.0, 2.0]), jnp.array([0.5, 1.0, 2.0])
    ends = [probability_flow(GAUSSIAN, POINTS, levels) for levels in (up, twice)]
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_the_flow_is_of_second_order_and_ends_at_no_noise():
    exact = teleport(GAUSSIAN, POINTS, 3.0, 0.5)
    errors = [
        abs(probability_flow(GAUSSIAN, POINTS, jnp.linspace(3.0, 0.5, n + 1)) - exact).max() for n in (20, 40)
    ]
    assert 3.2 < errors[0] / errors[1] < 4.8
    end = probability_flow(GAUSSIAN, POINTS, jnp.append(jnp.geomspace(3.0, 0.01, 300), 0.0))
    np.testing.assert_allclose(end, teleport(GAUSSIAN, POINTS, 3.0, 0.0), atol=1e-3)


def test_the_flow_carries_one_law_to_the_other():
    """Draws of the mixture with noise become draws of the mixture: their cross moments say so."""
    x = MIXTURE.sample(jax.random.key(1), (4000,), 8.0)
    y = np.asarray(probability_flow(MIXTURE, x, jnp.geomspace(8.0, 0.01, 200)))
    plain = np.asarray(MIXTURE.sample(jax.random.key(2), (4000,)))
    for statistic in (np.cos, np.tanh, np.square):
        a, b = statistic(y), statistic(plain)
        error = np.sqrt((a.var(0) + b.var(0)) / 4000)
        assert (abs(a.mean(0) - b.mean(0)) < 4.5 * error).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianScore(jnp.zeros(2), jnp.eye(3)), "a mean (d,) and a covariance (d, d)"),
        (lambda: GaussianScore(jnp.zeros(2), jnp.array([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: GaussianScore(jnp.zeros(2), jnp.diag(jnp.array([1.0, -1.0]))), "negative eigenvalue"),
        (lambda: GaussianScore(jnp.array([0.0, jnp.nan]), jnp.eye(2)), "the mean must be finite"),
        (lambda: GaussianScore.of_draws(jnp.zeros(3)), "(n, d)"),
        (lambda: MixtureScore(jnp.array([0.5, 0.6]), jnp.zeros((2, 1)), jnp.eye(1)), "sum one"),
        (lambda: MixtureScore(jnp.ones(1), jnp.zeros((2, 1)), jnp.eye(1)), "disagree"),
        (lambda: teleport(MIXTURE, POINTS, 1.0, 0.5), "its .gaussian"),
        (lambda: probability_flow(GAUSSIAN, POINTS, jnp.ones(1)), "two levels"),
        (lambda: probability_flow(GAUSSIAN, POINTS, jnp.array([1.0, -1.0])), "not negative"),
        (
            lambda: probability_flow(GAUSSIAN, POINTS, jnp.array([3.0, 2.0, 2.0, 1.0, 1.5])),
            "sigmas must fall or rise all the way, and turn at 1. Sort them",
        ),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ArgumentError) as error:
        make()
    assert words in str(error.value)


def test_wrong_kinds_are_refused():
    with pytest.raises(ArgumentTypeError, match="score must be a function"):
        probability_flow(3.0, POINTS, jnp.ones(2))
    with pytest.raises(ArgumentTypeError, match="GaussianScore: loc"):
        GaussianScore("m", jnp.eye(1))


def test_scores_pass_through_jit_and_vmap():
    f = jax.jit(lambda score, x: score(x, 0.3))
    np.testing.assert_allclose(f(MIXTURE, POINTS), MIXTURE(POINTS, 0.3), rtol=1e-4, atol=1e-5)
    made = jax.vmap(lambda m: GaussianScore(m, COVARIANCE)(POINTS[0, 0], 0.5))(jnp.stack([LOC, -LOC]))
    np.testing.assert_allclose(made[0], GAUSSIAN(POINTS[0, 0], 0.5), rtol=1e-4, atol=1e-5)
