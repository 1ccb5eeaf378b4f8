"""What restarts miss together: evidence that the prior's particles find, and what draws can have of it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import init_to_value
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import simulate
from ppl_ext.diagnostics import verdict
from ppl_ext.diagnostics.verdicts.stays import most_evidence, reason_of_evidence
from ppl_ext.infer import fit
from ppl_ext.infer.short_chains import moved_on
from ppl_ext.infer.smc import missed
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


# --- the bound


def test_of_a_normal_law_the_bound_is_its_evidence():
    root = RNG.normal(size=(3, 3))
    x = RNG.normal(size=(200_000, 3)) @ root.T
    log_p = 1.5 - 0.5 * (np.linalg.solve(root, x.T) ** 2).sum(0)
    exact = 1.5 + 1.5 * math.log(2 * math.pi) + np.linalg.slogdet(root)[1]
    assert most_evidence(log_p, x) == pytest.approx(exact, abs=0.02)


def test_of_other_laws_it_is_larger():
    x = RNG.exponential(size=(100_000, 1))  # log Z = 0; the entropies are 1 and (1 + log 2 pi) / 2
    assert most_evidence(-x.sum(1), x) == pytest.approx(0.5 * (math.log(2 * math.pi) - 1.0), abs=0.02)
    both = RNG.normal(size=(20, 1)) + 0.1 * RNG.normal(size=(20, 4))  # few draws: without correlations
    log_p = np.zeros(20)
    apart = 2.0 * math.log(2 * math.pi * math.e) + 0.5 * np.log(both.var(0)).sum()
    assert most_evidence(log_p, both) == pytest.approx(apart)


def positive(y):
    scale = numpyro.sample("scale", dist.LogNormal(1.0, 0.5))
    numpyro.sample("y", dist.LogNormal(jnp.log(scale), 0.5), obs=y)


def finite(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    k = numpyro.sample("k", dist.Bernoulli(0.25), infer={"enumerate": "parallel"})
    numpyro.sample("y", dist.Normal(x, jnp.where(k == 1, 1.5, 1.0)), obs=y)


def log_normal(y, sd):
    return -0.5 * (y / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


EXACT = {
    positive: lambda y: log_normal(math.log(y) - 1.0, math.sqrt(0.5)) - math.log(y),
    finite: lambda y: math.log(
        0.75 * math.exp(log_normal(y, 2.0**0.5)) + 0.25 * math.exp(log_normal(y, 3.25**0.5))
    ),
}


@pytest.mark.parametrize("model", EXACT)
def test_chains_of_a_model_bound_its_evidence(model):
    """In unconstrained space, Jacobians and all, finite sites summed out: near equality, since the posterior
    is nearly normal there.
    """
    names = ["scale"] if model is positive else ["x"]
    drawn = jax.vmap(lambda key: simulate(model, None, rng_key=key).values)(jax.random.split(KEY, 1024))
    found = moved_on(KEY, model, {n: drawn[n][None] for n in names}, (1.3,), {}, {})
    exact = EXACT[model](1.3)
    assert exact - 0.05 < found.most[0] < exact + 0.1


# --- the verdict


def test_the_reason_comes_beyond_one_run_in_twenty():
    assert reason_of_evidence(0.0, math.log(20.0) - 0.01, 200) is None
    said = reason_of_evidence(-3.0, math.log(20.0) - 2.99, 200)
    assert said.level == "bad" and "200 particles" in said.words and ".refined(" in said.words
    assert reason_of_evidence(0.0, math.nan, 200) is None
    assert reason_of_evidence(-math.inf, 0.0, 200) is None  # ends that are all alike tell nothing


def two_peaks(lesser):
    """Sixty neighbours, the first of which has a peak at 2, and one at -2 of so much of the evidence."""

    def model(y):
        at = jnp.arange(60)
        covariance = 0.3 ** jnp.abs(at[:, None] - at)
        x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(60), covariance))
        peaks = jnp.log1p(-lesser) - (x[0] - y) ** 2 / 0.08, jnp.log(lesser) - (x[0] + y) ** 2 / 0.08
        numpyro.factor("peaks", jnp.logaddexp(*peaks))

    return model


def at_the_lesser(model):
    start = jnp.zeros(60).at[0].set(-2.0)
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"x": start}))
    steady = optax.adam(optax.cosine_decay_schedule(0.05, 600))
    return fit(KEY, model, guide, ELBO(), steady, 600, 2.0, num_chains=2, progress_bar=False)


@pytest.fixture(scope="module")
def found():
    """A fit, all restarts of which begin at a peak of a thousandth."""
    return at_the_lesser(two_peaks(1e-3))


def test_a_peak_that_no_restart_came_near_is_missed(found):
    said = verdict(found)
    assert said.level == "bad" and "nearly all of the posterior is elsewhere" in str(said)
    assert "the restarts agree" in str(said)  # and nothing else was wrong
    assert [r.level for r in said.reasons] == ["bad", "good", "good"]


def test_without_a_prior_to_draw_from_nothing_is_said(found, monkeypatch):
    def refused(*args, **kwargs):
        raise missed.PplExtError("no prior")

    monkeypatch.setattr(missed.SMC, "run", refused)
    assert missed.missed(found, np.full(2, -1e9)) is None


def test_the_bound_of_the_best_restart_is_asked(found):
    second_is_lower = np.array([[2.0], [1.0]]) * np.ones_like(found.losses)
    other, bound = dataclasses.replace(found, losses=second_is_lower), np.array([-1e9, 1e9])
    assert missed.missed(other, bound) is None
    assert missed.missed(other, bound[::-1]).level == "bad"
