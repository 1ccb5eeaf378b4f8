"""Scans that run backward: every report has the steps in the order of the inputs.

Each model runs backward over its data and is the same as one that runs forward over the data turned round,
whose reports are known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import norm

import ppl_ext
from ppl_ext.diagnostics import log_likelihood
from ppl_ext.diagnostics.reading import posterior_draws
from ppl_ext.errors import ModelError
from ppl_ext.infer import SGLD, ParticleGibbs
from ppl_ext.objectives import ELBO
from ppl_ext.result import Fit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

Y = jnp.array([0.0, 2.0, 4.0, 6.0])


def model(y, derived=None):
    if derived == "outside":
        numpyro.deterministic("twice", numpyro.sample("s", dist.Normal(0.0, 1.0)) * 2)

    def step(x_after, now):
        x = numpyro.sample("x", dist.Normal(x_after, 3.0))
        if derived == "inside":
            numpyro.deterministic("twice", 2.0 * x)
        numpyro.sample("y", dist.Normal(x, 0.3), obs=now)
        return x, None

    scan(step, jnp.zeros(()), y, reverse=True)


def guide_in_scan(y, derived=None):
    scan(lambda carry, now: (carry, numpyro.sample("x", dist.Normal(now, 0.2))), 0.0, y, reverse=True)


def guide_outside(y, derived=None):
    numpyro.sample("x", dist.Normal(y, 0.2).to_event(1))


def joint(x):
    """Log p(x, y) in the order of the inputs: the last step comes first."""
    after = np.concatenate([x[..., 1:], np.zeros((*x.shape[:-1], 1))], axis=-1)
    return norm.logpdf(x, after, 3.0).sum(-1) + norm.logpdf(np.asarray(Y), x, 0.3).sum(-1)


def test_log_likelihoods_are_taken_at_the_draws_of_the_same_step():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(
        log_likelihood(model, {"x": x}, Y)["y"], norm.logpdf(np.asarray(Y), x, 0.3), rtol=1e-5
    )


@pytest.mark.parametrize("guide", [guide_in_scan, guide_outside], ids=lambda g: g.__name__)
def test_the_report_of_a_fit(guide):
    fitted = Fit({}, np.zeros((1, 1)), model, guide, ELBO(), (Y, "inside"))
    report = fitted.to_arviz(num_samples=300, posterior_predictive=True)
    x = np.asarray(report.posterior["x"], float)
    np.testing.assert_allclose(x.mean((0, 1)), Y, atol=0.1)
    np.testing.assert_allclose(report.posterior["twice"], 2 * x, rtol=1e-5)
    np.testing.assert_allclose(report.sample_stats["lp"], joint(x), rtol=1e-4)
    np.testing.assert_allclose(
        report.log_likelihood["y"], norm.logpdf(np.asarray(Y), x, 0.3), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(report.posterior_predictive["y"].mean(("chain", "draw")), Y, atol=0.15)
    np.testing.assert_array_equal(report.observed_data["y"], Y)


@pytest.mark.parametrize("derived", [None, "inside", "outside"])
@pytest.mark.parametrize("num_chains", [1, 2])
def test_the_report_of_a_sampler_of_numpyros(derived, num_chains):
    """It returns the steps mirrored unless it ran the model again for deterministic sites."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=150,
        num_samples=150,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), Y, derived)
    raw = mcmc.get_samples()["x"].mean(0)
    np.testing.assert_allclose(raw, Y if derived else Y[::-1], atol=0.5)  # NumPyro's own, each in its way
    report = ppl_ext.to_arviz(mcmc, posterior_predictive=True)
    x = np.asarray(report.posterior["x"], float)
    np.testing.assert_allclose(x.mean((0, 1)), Y, atol=0.5)
    s = np.asarray(report.posterior["s"], float) if derived == "outside" else None
    np.testing.assert_allclose(
        report.sample_stats["lp"], joint(x) + (0.0 if s is None else norm.logpdf(s)), rtol=1e-4
    )
    np.testing.assert_allclose(
        report.log_likelihood["y"], norm.logpdf(np.asarray(Y), x, 0.3), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(report.posterior_predictive["y"].mean(("chain", "draw")), Y, atol=0.5)
    if derived == "inside":
        np.testing.assert_allclose(report.posterior["twice"], 2 * x, rtol=1e-5)
    np.testing.assert_allclose(posterior_draws(mcmc)["x"], x, rtol=1e-6)


def test_a_kernel_on_minibatches_too():
    def rows(y):
        def step(x_after, now):
            x = numpyro.sample("x", dist.Normal(x_after, 3.0))
            with numpyro.plate("rows", 3, subsample_size=2):
                numpyro.sample("y", dist.Normal(x, 1.0), obs=numpyro.subsample(now, event_dim=0))
            return x, None

        scan(step, jnp.zeros(()), y, reverse=True)

    mcmc = MCMC(SGLD(rows, step_size=0.05), num_warmup=200, num_samples=400, progress_bar=False)
    try:
        mcmc.run(jax.random.key(0), Y[:, None] + jnp.zeros(3))
    except ModelError as error:  # a plate that is subsampled inside a scan is refused, in words
        assert "rows" in str(error)
        return
    np.testing.assert_allclose(ppl_ext.to_arviz(mcmc).posterior["x"].mean(("chain", "draw")), Y, atol=1.0)


def test_particle_gibbs_returns_the_order_of_the_inputs():
    mcmc = MCMC(ParticleGibbs(with_parameter, 50), num_warmup=20, num_samples=150, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    for x in (
        mcmc.get_samples()["x"],
        ppl_ext.to_arviz(mcmc).posterior["x"].values[0],
        posterior_draws(mcmc)["x"][0],
    ):
        np.testing.assert_allclose(np.asarray(x).mean(0), Y, atol=0.5)


def with_parameter(y):
    numpyro.sample("s", dist.Normal(0.0, 1.0))
    model(y)


def test_a_guide_that_an_objective_of_numpyros_fitted_is_refused_by_name():
    """It fits the guide mirrored, and a result does not say which objective made it."""
    svi = SVI(model, AutoNormal(model), optax.adam(0.1), Trace_ELBO())
    result = svi.run(jax.random.key(0), 5, Y, progress_bar=False)
    with pytest.raises(ModelError, match="'x' is in a scan with reverse=True.*ppl_ext.infer.fit"):
        ppl_ext.to_arviz(result, model=model, guide=svi.guide, model_args=(Y,))
    with pytest.raises(ModelError, match="'x' is in a scan with reverse=True"):
        Fit({}, np.zeros((1, 1)), model, guide_outside, Trace_ELBO(), (Y,)).sample(num_samples=2)


def test_a_finite_site_in_a_scan_that_runs_backward_is_summed_out():
    def mixed(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

        def step(z, now):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[z]))
            numpyro.sample("y", dist.Normal(3.0 * z + mu, 1.0), obs=now)
            return z, None

        scan(step, 0, y, reverse=True)

    fitted = Fit(
        {},
        np.zeros((1, 1)),
        mixed,
        lambda y: numpyro.sample("mu", dist.Delta(0.5, log_density=1.0)),
        ELBO(),
        (Y,),
    )
    law, exact = np.array([0.8, 0.2]), norm.logpdf(0.5)
    for value in np.asarray(Y, float)[::-1]:
        weight = law * norm.pdf(value, np.array([0.5, 3.5]), 1.0)
        exact, law = exact + np.log(weight.sum()), weight / weight.sum() @ np.array([[0.8, 0.2], [0.3, 0.7]])
    np.testing.assert_allclose(fitted.sample(num_samples=1).log_p, exact, rtol=1e-5)
