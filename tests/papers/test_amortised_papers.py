"""What programs on amortised inference claim, at their small sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


def test_a_network_that_is_fitted_to_a_process_learns_its_predictive():
    """600 steps of a small network; the prior alone is away by the information of the rows, 0.5 or more."""
    [row] = claims("prior_fitted")
    assert 0.0 < numbers(row.ours)[0] < 0.3


def test_the_predictive_that_it_is_held_to_is_that_of_the_process():
    """The basis sums to the kernel, and the mean and variance are those of regression on the basis."""
    program = module("prior_fitted")
    x = np.linspace(-1.0, 1.0, 9)
    features = np.asarray(program.basis(x), float)
    known = np.exp(-0.5 * ((x[:, None] - x) / program.SCALE) ** 2)
    np.testing.assert_allclose(features @ features.T, known, atol=1e-5)
    x, y, x_new, mean, sd = program.data_sets(np.random.default_rng(0), 3, 5)
    for k in range(3):
        features, new = np.asarray(program.basis(x[k]), float), np.asarray(program.basis(x_new[k]), float)
        precision = np.eye(24) + features.T @ features / program.NOISE**2
        weights = np.linalg.solve(precision, features.T @ y[k] / program.NOISE**2)
        np.testing.assert_allclose(new @ weights, mean[k], atol=1e-4)
        variance = program.NOISE**2 + new @ np.linalg.solve(precision, new)
        np.testing.assert_allclose(variance**0.5, sd[k], rtol=1e-4)


@pytest.mark.slow
def test_one_pass_stands_beside_nuts():
    """Three data sets and a network that is hardly trained: near, and thousands of times faster in full."""
    gap, seconds = claims("prior_fitted_bnn")
    assert 0.0 < numbers(gap.ours)[0] < 0.4
    assert numbers(seconds.ours)[0] < numbers(seconds.known)[0]


def test_a_network_that_reads_the_prior_answers_for_priors_it_never_saw():
    """300 steps; without the data the divergence is that of prior and posterior, 1.0."""
    gap, _, seconds = claims("distribution_transformer")
    assert 0.0 < numbers(gap.ours)[0] < 0.3
    assert numbers(seconds.ours)[0] < numbers(seconds.known)[0]


def test_the_conjugate_posterior_is_that_of_nuts():
    """Mean and standard deviation of theta in one data set; 4.5 standard errors of 2000 draws or so."""
    program = module("distribution_transformer")
    data = program.drawn(np.random.default_rng(3), 1)
    law = program.exact(*data)
    mcmc = MCMC(NUTS(program.model), num_warmup=500, num_samples=4000, progress_bar=False)

    mcmc.run(jax.random.key(0), *(jnp.asarray(x[0]) for x in data))
    draws = np.asarray(mcmc.get_samples()["theta"], float)
    sd = float(law.variance[0]) ** 0.5
    assert abs(draws.mean() - float(law.mean[0])) < 4.5 * sd / 1000**0.5
    assert abs(draws.std() - sd) < 0.1 * sd


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior_fitted", "prior_fitted_bnn", "distribution_transformer"])
def test_within_two_hundredths_of_a_nat(name):
    for row in module(name).claims():
        if row[1] == "at most 0.02":
            assert 0.0 < numbers(row[2])[0] <= 0.02
