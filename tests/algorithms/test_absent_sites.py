"""Latent elements that a model masks and nothing else sees are no part of it, whoever weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask
from scipy import stats

import ppl_ext
from ppl_ext.algorithms import ImportanceSampling, TemperedSMC
from ppl_ext.infer import SMC

Y, SEEN = np.array([1.2, 0.3, 2.0]), np.array([True, False, True])


def half_seen(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=SEEN)


def padded(y):
    numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3), mask(mask=SEEN):
        z = numpyro.sample("z", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def of_steps(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

    def step(x, inputs):
        y_t, seen = inputs
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y_t, obs_mask=seen)
        return x, None

    scan(step, jnp.zeros(()), (y, jnp.asarray(SEEN)))


def proposal(given, y):
    with numpyro.plate("rows", 3):
        numpyro.sample("y_unobserved", dist.Normal(0.5, 1.2))


def log_likelihood(program, mu):
    if program is padded:
        return stats.norm.logpdf(Y[SEEN], 0.0, 5**0.5).sum()
    return stats.norm.logpdf(Y[SEEN] - mu).sum()


CASES = {
    "obs_mask, from the prior": (half_seen, ImportanceSampling(3), 1e-5),
    "obs_mask, from a proposal": (half_seen, ImportanceSampling(2000, proposal), 0.1),
    "obs_mask, tempered": (half_seen, TemperedSMC(4, temperatures=[0.5, 1.0]), 1e-5),
    "obs_mask in a scan, tempered": (of_steps, TemperedSMC(4, temperatures=[0.5, 1.0]), 1e-5),
    "padding, from the prior": (padded, ImportanceSampling(20000), 0.2),
    "padding, tempered": (padded, TemperedSMC(1000), 0.25),
}


@pytest.mark.parametrize("name", CASES)
def test_the_evidence_is_that_without_them(name):
    program, algorithm, error = CASES[name]
    found = ppl_ext.log_density(
        ppl_ext.marginal(program, ["mu"], algorithm), {"mu": 0.5}, Y, rng_key=jax.random.key(0)
    )
    exact = stats.norm.logpdf(0.5) + log_likelihood(program, 0.5)
    assert abs(float(found.total) - exact) < error


def test_a_run_of_the_whole_model_draws_them_from_their_law():
    result = SMC(padded, 1000, progress_bar=False).run(jax.random.key(0), Y)
    exact = log_likelihood(padded, None)
    assert abs(result.log_evidence - exact) < 0.25
    assert abs(result.values["z"].std(0) - np.array([0.8**0.5, 2.0, 0.8**0.5])).max() < 0.25
    assert abs(result.values["z"].mean(0) - 0.8 * np.where(SEEN, Y, 0.0)).max() < 0.3


def test_what_another_site_sees_is_weighed_as_it_stands():
    """A density that is left out and comes back as a factor."""

    def program():
        with mask(mask=False):
            z = numpyro.sample("z", dist.Normal(1.0, 2.0))
        numpyro.sample("x", dist.Normal(z, 1.0))
        numpyro.factor("law", dist.Normal(0.0, 1.0).log_prob(z))

    found = ppl_ext.log_density(
        ppl_ext.marginal(program, ["x"], ImportanceSampling(20000)), {"x": 0.7}, rng_key=jax.random.key(0)
    )
    assert abs(float(found.total) - stats.norm.logpdf(0.7, 0.0, 2**0.5)) < 0.05
