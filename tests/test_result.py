"""Fits and MCMC runs as one report: densities on the full plates, and every ArviZ function that users reach
for.
"""

import warnings

import matplotlib

matplotlib.use("Agg")

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from ppl_ext import marginal
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.diagnostics import psis
from ppl_ext.diagnostics.draws import rescored
from ppl_ext.diagnostics.report.params_file import read_params, write_params
from ppl_ext.diagnostics.report.summary import importance
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError, ModelError
from ppl_ext.result import Fit, to_arviz

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
Y = RNG.normal(1.0, 1.0, 6).astype(np.float32)


def stack(*params):
    return jax.tree.map(lambda *x: np.stack(x), *params)


def fit_of(model, guide, params, *args, losses=None, **kwargs):
    """A Fit by hand: one params dictionary per chain."""
    losses = np.zeros((len(params), 7)) if losses is None else losses
    return Fit(stack(*params), losses, model, guide, Trace_ELBO(), args, kwargs, rng_key=KEY)


def initial(model, guide, *args):
    """Params of an automatic guide before the first step: a run would only cost time."""
    svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    return svi.get_params(svi.init(KEY, *args))


def loo(report, **options):
    with warnings.catch_warnings():
        # Six observations are few: some weights are heavy, and ArviZ says so.
        warnings.filterwarnings("ignore", "Estimated shape parameter", UserWarning)
        return az.loo(report, **options)


def groups_of(report):
    """ArviZ 0.23 has groups, 1.x has nodes named by paths."""
    names = report.groups() if callable(report.groups) else report.groups
    return {name.strip("/") for name in names} - {""}


# --- a conjugate model, where everything is known


def conjugate(y, subsample_size=None, mask=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.deterministic("shifted", mu + 10.0)
    with numpyro.plate("n", 6, subsample_size=subsample_size) as n:
        fn = dist.Normal(mu, 1.0)
        numpyro.sample("y", fn if mask is None else fn.mask(mask), obs=y[n])


def normal_guide(y, **kwargs):
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    numpyro.sample("mu", dist.Normal(loc, scale))


POSTERIOR = {"loc": np.float32(Y.sum() / 7.0), "scale": np.float32(7.0**-0.5)}
LOG_EVIDENCE = multivariate_normal.logpdf(Y, np.zeros(6), np.eye(6) + 1.0)


def test_the_exact_posterior_has_equal_weights_that_are_the_evidence():
    draws = fit_of(conjugate, normal_guide, [POSTERIOR, POSTERIOR], jnp.asarray(Y)).sample(num_samples=400)
    assert set(draws.values) == {"mu", "shifted"} and draws.values["mu"].shape == (2, 400)
    np.testing.assert_allclose(draws.log_weights, LOG_EVIDENCE, atol=1e-4)
    mu = draws.values["mu"].astype(float)
    np.testing.assert_allclose(draws.values["shifted"], mu + 10.0, rtol=1e-6)
    np.testing.assert_allclose(draws.log_q, norm.logpdf(mu, POSTERIOR["loc"], POSTERIOR["scale"]), atol=1e-4)
    np.testing.assert_allclose(
        draws.log_p, norm.logpdf(mu) + norm.logpdf(Y, mu[..., None]).sum(-1), atol=1e-4
    )
    weights = importance(draws)
    np.testing.assert_allclose(weights.elbo, LOG_EVIDENCE, atol=1e-4)
    assert (weights.pareto_k < 0.5).all() and (weights.ess > 399.0).all()
    # The chains draw differently.
    assert not np.array_equal(draws.values["mu"][0], draws.values["mu"][1])


def test_a_subsampled_plate_is_scored_whole():
    whole = fit_of(conjugate, normal_guide, [POSTERIOR], jnp.asarray(Y)).sample(num_samples=200)
    few = fit_of(conjugate, normal_guide, [POSTERIOR], jnp.asarray(Y), subsample_size=2).sample(
        num_samples=200
    )
    np.testing.assert_array_equal(whole.log_weights, few.log_weights)
    assert psis(few.log_weights).pareto_k < 0.5


def test_an_estimated_density_has_noise_of_its_own_at_every_draw():
    """Shared by all draws, it would move all weights together: their average would be off by more than their
    spread tells.
    """

    def model(y):
        z = numpyro.sample("z", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    estimated = marginal(model, ["mu"], ImportanceSampling(2))
    posterior = {"loc": np.float32(0.5), "scale": np.float32(1.5**-0.5)}
    draws = fit_of(estimated, normal_guide, [posterior], 1.5).sample(num_samples=4000)
    at_one = {"mu": np.zeros((1, 4000), np.float32)}
    _, log_p, _ = rescored(estimated, at_one, (1.5,), {})
    for log_ratios in (
        draws.log_weights - norm.logpdf(1.5, 0.0, 3**0.5),
        log_p - norm.logpdf(0.0) - norm.logpdf(1.5, 0.0, 2**0.5),
    ):
        ratios = np.exp(log_ratios)
        assert ratios.std() > 0.2 and abs(ratios.mean() - 1.0) < 4.5 * ratios.std() / 4000**0.5


def test_each_chain_has_its_own_params_and_keys_decide_the_draws():
    result = fit_of(
        conjugate, normal_guide, [POSTERIOR, POSTERIOR | {"loc": np.float32(5.0)}], jnp.asarray(Y)
    )
    draws = result.sample(num_samples=300)
    means = draws.values["mu"].mean(1)
    # Standard error 0.022.
    np.testing.assert_allclose(means, [POSTERIOR["loc"], 5.0], atol=0.1)
    assert draws.log_weights[1].mean() < draws.log_weights[0].mean() - 10.0
    again, other = result.sample(num_samples=300), result.sample(jax.random.key(9), 300)
    np.testing.assert_array_equal(draws.values["mu"], again.values["mu"])
    assert not np.array_equal(draws.values["mu"], other.values["mu"])
    assert result.sample(jax.random.PRNGKey(1), 5).values["mu"].shape == (2, 5)


def test_laplace_draws_are_scored_as_the_normal_they_come_from():
    guide = AutoLaplaceApproximation(conjugate)
    params = initial(conjugate, guide, jnp.asarray(Y)) | {"auto_loc": np.array([POSTERIOR["loc"]])}
    draws = fit_of(conjugate, guide, [params], jnp.asarray(Y)).sample(num_samples=2000)
    # The posterior is normal, so the approximation is exact; scored as a point, log q would be 0.
    np.testing.assert_allclose(draws.log_weights, LOG_EVIDENCE, atol=1e-3)
    assert abs(draws.values["mu"].std() - POSTERIOR["scale"]) < 4.5 * POSTERIOR["scale"] / np.sqrt(2 * 2000)
    assert draws.points == ()


def test_a_laplace_guide_without_curvature_is_refused():
    def flat(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("well", 3.0 * mu**2)

    guide = AutoLaplaceApproximation(flat)
    params = initial(flat, guide, 0.0)
    with pytest.raises(ModelError, match="Hessian of chain 0"):
        fit_of(flat, guide, [params], 0.0).sample(num_samples=5)


def test_a_point_estimate_is_called_one(capsys):
    guide = AutoDelta(conjugate)
    result = fit_of(conjugate, guide, [{"mu_auto_loc": np.float32(0.5)}], jnp.asarray(Y))
    draws = result.sample(num_samples=50)
    assert draws.points == ("mu",)
    # Equal weights alone would read as a perfect guide.
    assert psis(draws.log_weights).pareto_k == -np.inf and np.isnan(importance(draws).pareto_k).all()
    result.print_summary(num_samples=50)
    assert "a point estimate" in capsys.readouterr().out


# --- local latents, minibatches


def local_model(y, size=6, subsample_size=2):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", size, subsample_size=subsample_size) as n:
        x = numpyro.sample("x", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y[n])


@pytest.mark.slow
def test_subsampled_local_latents_come_for_the_whole_plate():
    guide = AutoNormal(local_model)
    params = initial(local_model, guide, jnp.asarray(Y)) | {
        "x_auto_loc": Y,
        "x_auto_scale": np.full(6, 0.5, np.float32),
    }
    result = fit_of(local_model, guide, [params], jnp.asarray(Y))
    draws = result.sample(num_samples=50)
    assert draws.values["x"].shape == (1, 50, 6)
    mu, x = draws.values["mu"].astype(float), draws.values["x"].astype(float)
    by_hand = norm.logpdf(mu) + (norm.logpdf(x, mu[..., None]) + norm.logpdf(Y, x)).sum(-1)
    np.testing.assert_allclose(draws.log_p, by_hand, atol=1e-3)
    by_hand = norm.logpdf(mu, params["mu_auto_loc"], params["mu_auto_scale"]) + norm.logpdf(x, Y, 0.5).sum(-1)
    np.testing.assert_allclose(draws.log_q, by_hand, atol=1e-3)
    report = result.to_arviz(num_samples=50)
    assert report.posterior["x"].dims == ("chain", "draw", "n")
    assert dict(report.observed_data["y"].sizes) == {"n": 6}


def test_a_guide_that_only_knows_minibatches_is_explained():
    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 1.0))
        loc = numpyro.param("loc", jnp.zeros(2))
        with numpyro.plate("n", 6, subsample_size=2):
            numpyro.sample("x", dist.Normal(loc, 1.0))

    with pytest.raises(ModelError, match="all of the plate 'n' it subsamples"):
        fit_of(local_model, guide, [{"m": np.float32(0), "loc": np.zeros(2)}], jnp.asarray(Y)).sample(
            num_samples=3
        )


def test_sites_that_do_not_match_are_named():
    def no_mu(y):
        numpyro.sample("nu", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    with pytest.raises(ModelError, match="'mu'"):
        fit_of(conjugate, no_mu, [{"loc": np.float32(0)}], jnp.asarray(Y)).sample(num_samples=3)


# --- finite latent sites


PROBS = np.array([0.3, 0.7])


def mixture(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(PROBS)), infer={"enumerate": "parallel"})
        numpyro.deterministic("assigned", loc[z])
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def loc_guide(y):
    loc = numpyro.param("m", jnp.zeros(2))
    numpyro.sample("loc", dist.Normal(loc, 0.5).to_event(1))


def mixture_terms(loc):
    return logsumexp(norm.logpdf(Y[:, None], loc[..., None, :]), b=PROBS, axis=-1)


def test_a_finite_site_left_to_the_model_is_summed_out():
    result = fit_of(mixture, loc_guide, [{"m": np.array([0.0, 1.5], np.float32)}], jnp.asarray(Y))
    draws = result.sample(num_samples=50)
    # Neither z nor what depends on it has a value.
    assert set(draws.values) == {"loc"}
    loc = draws.values["loc"].astype(float)
    by_hand = norm.logpdf(loc, 0.0, 3.0).sum(-1) + mixture_terms(loc).sum(-1)
    np.testing.assert_allclose(draws.log_p, by_hand, atol=1e-4)
    report = result.to_arviz(num_samples=50)
    np.testing.assert_allclose(report.log_likelihood["y"], mixture_terms(loc), atol=1e-4)


def test_a_finite_site_that_the_guide_draws_is_scored_jointly_and_still_summed_out_of_the_likelihood():
    def guide(y):
        loc_guide(y)
        with numpyro.plate("n", 6):
            numpyro.sample("z", dist.Categorical(numpyro.param("q", jnp.full((6, 2), 0.5))))

    q = np.full((6, 2), 0.5, np.float32)
    result = fit_of(mixture, guide, [{"m": np.array([0.0, 1.5], np.float32), "q": q}], jnp.asarray(Y))
    draws = result.sample(num_samples=30)
    loc, z = draws.values["loc"].astype(float), draws.values["z"]
    assigned = np.take_along_axis(loc, z, axis=-1)
    np.testing.assert_allclose(draws.values["assigned"], assigned, rtol=1e-6)
    joint = norm.logpdf(loc, 0.0, 3.0).sum(-1) + (np.log(PROBS)[z] + norm.logpdf(Y, assigned)).sum(-1)
    np.testing.assert_allclose(draws.log_p, joint, atol=1e-4)
    np.testing.assert_allclose(
        draws.log_q, norm.logpdf(loc, [0.0, 1.5], 0.5).sum(-1) + 6 * np.log(0.5), atol=1e-4
    )
    report = result.to_arviz(num_samples=30)
    np.testing.assert_allclose(report.log_likelihood["y"], mixture_terms(loc), atol=1e-4)


TRANSITION, EMISSION = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([-1.0, 1.0])


def chain_model(y):
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 0.1))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(TRANSITION)[z]), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(jnp.asarray(EMISSION)[z], noise), obs=y)
        return z, None

    scan(step, 0, y)


@pytest.mark.slow
def test_a_chain_is_summed_along_the_chain_and_has_no_leave_one_out():
    def guide(y):
        numpyro.sample("noise", dist.LogNormal(numpyro.param("m", 0.0), 0.1))

    result = fit_of(chain_model, guide, [{"m": np.float32(0.0)}], jnp.asarray(Y))
    draws = result.sample(num_samples=4)
    for noise, log_p in zip(draws.values["noise"][0].astype(float), draws.log_p[0], strict=True):
        forward = np.array([1.0, 0.0])
        for y in Y:
            forward = (forward @ TRANSITION) * norm.pdf(y, EMISSION, noise)
        np.testing.assert_allclose(
            log_p, norm.logpdf(np.log(noise), 0.0, 0.1) - np.log(noise) + np.log(forward.sum()), atol=1e-4
        )
    report = result.to_arviz(num_samples=4)
    assert (
        "log_likelihood" not in groups_of(report)
        and "'z' is in a scan" in report.attrs["log_likelihood_omitted"]
    )
    with pytest.raises(ModelError, match="'z' is in a scan"):
        result.to_arviz(num_samples=4, log_likelihood=True)


# --- one report for every run


NAMES = ["fit", "mixed fit", "nuts", "mixed nuts"]


@pytest.fixture(scope="module")
def runs():
    """A variational fit and NUTS, on a model with a finite site and on one without."""
    y = jnp.asarray(Y)

    def nuts(model):
        mcmc = MCMC(
            NUTS(model),
            num_warmup=100,
            num_samples=60,
            num_chains=2,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(KEY, y, extra_fields=("energy", "num_steps", "accept_prob", "potential_energy"))
        return mcmc

    guide = AutoNormal(conjugate)
    svi = SVI(conjugate, guide, numpyro.optim.Adam(0.05), Trace_ELBO()).run(KEY, 300, y, progress_bar=False)
    fit = fit_of(conjugate, guide, [svi.params] * 2, y, losses=np.stack([svi.losses] * 2))
    mixed = fit_of(mixture, loc_guide, [{"m": np.array([0.0, 1.5], np.float32)}] * 2, y)
    return {"svi": svi, "fit": fit, "mixed fit": mixed, "nuts": nuts(conjugate), "mixed nuts": nuts(mixture)}


@pytest.fixture(scope="module")
def reports(runs):
    return {name: to_arviz(runs[name], num_samples=60) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_arviz_reads_every_report(reports, name):
    report = reports[name]
    assert {"posterior", "log_likelihood", "observed_data", "sample_stats"} <= groups_of(report)
    summary = az.summary(report)
    site = "loc[0]" if "mixed" in name else "mu"
    assert site in summary.index and len(summary) == 2
    assert "z" not in report.posterior
    for plot in (az.plot_forest, az.plot_trace):
        plot(report)
        plt.close("all")
    result = loo(report, pointwise=True)
    assert result.n_data_points == 6 and np.isfinite(
        result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd
    )


def test_the_terms_are_those_of_the_model(reports):
    for name in ("nuts", "fit"):
        mu = np.asarray(reports[name].posterior["mu"], float)
        np.testing.assert_allclose(
            reports[name].log_likelihood["y"], norm.logpdf(Y, mu[..., None]), atol=1e-5
        )
        by_hand = norm.logpdf(mu) + norm.logpdf(Y, mu[..., None]).sum(-1)
        np.testing.assert_allclose(reports[name].sample_stats["lp"], by_hand, atol=1e-4)
    for name in ("mixed nuts", "mixed fit"):
        loc = np.asarray(reports[name].posterior["loc"], float)
        np.testing.assert_allclose(reports[name].log_likelihood["y"], mixture_terms(loc), atol=1e-5)
        by_hand = norm.logpdf(loc, 0.0, 3.0).sum(-1) + mixture_terms(loc).sum(-1)
        np.testing.assert_allclose(reports[name].sample_stats["lp"], by_hand, atol=1e-4)


def test_a_fit_and_a_chain_compare(reports):
    table = az.compare({name: loo(reports[name], pointwise=True) for name in NAMES})
    assert set(table.index) == set(NAMES)
    # The same model fitted in two ways predicts alike.
    elpd = table["elpd_loo"] if "elpd_loo" in table else table["elpd"]
    assert abs(elpd["fit"] - elpd["nuts"]) < 1.0


def test_what_a_fit_reports_of_itself(reports, runs):
    report = reports["fit"]
    assert dict(report.vi_trace["loss"].sizes) == {"chain": 2, "step": 300}
    assert {"lp", "log_q", "log_weight"} == set(report.sample_stats.data_vars)
    attrs = report.attrs
    assert (
        attrs["objective"] == "Trace_ELBO"
        and attrs["guide"] == "AutoNormal"
        and attrs["stop_reason"] == "completed"
    )
    assert attrs["num_steps"] == 300 and attrs["numpyro_version"] == numpyro.__version__
    assert attrs["pareto_k"].shape == attrs["importance_ess"].shape == (2,)
    np.testing.assert_array_equal(attrs["seed"], jax.random.key_data(KEY))
    np.testing.assert_array_equal(report.posterior.attrs["pareto_k"], attrs["pareto_k"])
    assert (
        repr(runs["fit"])
        == "Fit(Trace_ELBO, AutoNormal, num_chains=2, num_steps=300, stop_reason='completed')"
    )


def test_what_nuts_recorded_has_arviz_names(reports):
    stats = reports["nuts"].sample_stats
    assert {
        "lp",
        "diverging",
        "energy",
        "n_steps",
        "acceptance_rate",
        "tree_depth",
        "potential_energy",
    } <= set(stats.data_vars)
    # log p and the potential differ by the Jacobian, which is none for a real site.
    np.testing.assert_allclose(stats["lp"], -stats["potential_energy"], atol=1e-4)
    assert reports["nuts"].attrs["kernel"] == "NUTS"


def test_an_svi_run_result_gives_the_same_report_as_a_fit(runs):
    run, fit = runs["svi"], runs["fit"]
    report = to_arviz(run, model=fit.model, guide=fit.guide, model_args=fit.args, num_samples=10)
    assert dict(report.vi_trace["loss"].sizes) == {"chain": 1, "step": 300}
    assert {"posterior", "log_likelihood", "observed_data", "sample_stats", "vi_trace"} == groups_of(report)
    with pytest.raises(ArgumentError, match="guide"):
        to_arviz(run, model=fit.model)


def test_masked_observations_do_not_count_in_leave_one_out():
    mask = jnp.array([True, True, False, True, True, False])
    result = fit_of(conjugate, normal_guide, [POSTERIOR] * 2, jnp.asarray(Y), mask=mask)
    report = result.to_arviz(num_samples=100)
    terms = report.log_likelihood["y"]
    assert terms.dims == ("chain", "draw", "y_seen") and list(terms["y_seen"].values) == [0, 1, 3, 4]
    mu = np.asarray(report.posterior["mu"], float)
    np.testing.assert_allclose(terms, norm.logpdf(Y[np.asarray(mask)], mu[..., None]), atol=1e-5)
    assert loo(report).n_data_points == 4
    # The data themselves stay whole.
    assert report.observed_data["y"].shape == (6,)


def test_masks_over_two_plates_keep_track_of_both():
    mask = np.array([[True, False, True], [False, True, True]])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 2, dim=-2), numpyro.plate("column", 3, dim=-1):
            numpyro.sample("y", dist.Normal(mu, 1.0).mask(jnp.asarray(mask)), obs=y)

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    y = RNG.normal(size=(2, 3)).astype(np.float32)
    report = fit_of(model, guide, [{"loc": np.float32(0.0)}], jnp.asarray(y)).to_arviz(
        num_samples=5, coords={"column": ["a", "b", "c"]}
    )
    terms = report.log_likelihood["y"]
    assert list(terms["y_row"].values) == [0, 0, 1, 1] and list(terms["y_column"].values) == [
        "a",
        "c",
        "b",
        "c",
    ]
    np.testing.assert_allclose(
        terms, norm.logpdf(y[mask], np.asarray(report.posterior["mu"], float)[..., None]), atol=1e-5
    )


@pytest.mark.slow
def test_axes_are_named_after_plates_time_and_events():
    def model(y):
        with numpyro.handlers.scope(prefix="outer"):
            numpyro.sample("w", dist.Dirichlet(jnp.ones(3)), infer={"event_dims": ["topic"]})
        numpyro.sample("v", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))

        def step(x, y):
            with numpyro.plate("series", 2):
                x = numpyro.sample("x", dist.Normal(x, 1.0))
                numpyro.deterministic("twice", 2.0 * x)
                numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, jnp.zeros(2), y)

    y = RNG.normal(size=(4, 2)).astype(np.float32)

    def guide(y):
        # Not AutoNormal: NumPyro's automatic guides do not find a plate inside a scan.
        numpyro.sample("outer/w", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("v", dist.Normal(numpyro.param("loc", 0.0), 1.0).expand([2, 2]).to_event(2))
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))

    report = fit_of(model, guide, [{"loc": np.float32(0.0)}], jnp.asarray(y)).to_arviz(
        num_samples=3, posterior_predictive=True
    )
    dims = {name: x.dims[2:] for name, x in report.posterior.data_vars.items()}
    assert dims == {
        "outer.w": ("topic",),
        "v": ("v_dim_0", "v_dim_1"),
        "x": ("time", "series"),
        "twice": ("time", "series"),
    }
    assert report.log_likelihood["y"].dims[2:] == report.observed_data["y"].dims == ("time", "series")
    x = np.asarray(report.posterior["x"], float)
    np.testing.assert_allclose(report.log_likelihood["y"], norm.logpdf(y, x), atol=1e-5)
    replicated = np.asarray(report.posterior_predictive["y"], float)
    assert report.posterior_predictive["y"].dims == ("chain", "draw", "time", "series")
    # Drawn anew around each draw's path, in the scan too: 24 standard normals, none of them the data.
    assert not np.isclose(replicated, y).any() and np.abs(replicated - x).max() < 5.0


def test_replicated_series_follow_their_own_past():
    def model(y):
        drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

        def step(y, observed):
            y = numpyro.sample("y", dist.Normal(y + drift, 0.01), obs=observed)
            return y, None

        scan(step, 0.0, y)

    def guide(y):
        numpyro.sample("drift", dist.Normal(numpyro.param("loc", 0.0), 0.01))

    result = fit_of(model, guide, [{"loc": np.float32(5.0)}], jnp.zeros(4))
    replicated = result.to_arviz(num_samples=3, posterior_predictive=True).posterior_predictive["y"]
    # Around the data, which are zero, every step would be near 5.
    np.testing.assert_allclose(replicated, np.broadcast_to([5.0, 10.0, 15.0, 20.0], (1, 3, 4)), atol=0.5)


def test_plates_of_a_reserved_or_taken_name_and_given_groups():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("draw", 3):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    result = fit_of(model, guide, [{"loc": np.float32(0.0)}], jnp.zeros(3))
    report = result.to_arviz(
        num_samples=4,
        prior={"mu": np.zeros((1, 8))},
        posterior_predictive={"y": np.zeros((1, 4, 3))},
        constant_data={"x": np.arange(3.0)},
        dims={"y": ["country"], "x": ["country"]},
        coords={"country": ["DE", "FR", "IT"]},
    )
    assert list(report.constant_data["x"]["country"].values) == ["DE", "FR", "IT"]
    assert (
        report.log_likelihood["y"].dims
        == report.posterior_predictive["y"].dims
        == ("chain", "draw", "country")
    )
    assert report.prior["mu"].shape == (1, 8)
    assert result.to_arviz(num_samples=4).log_likelihood["y"].dims == ("chain", "draw", "draw_plate")
    with pytest.raises(ArgumentError, match="2 labels for the axis 'country'"):
        result.to_arviz(num_samples=4, dims={"y": ["country"]}, coords={"country": ["DE", "FR"]})


def test_terms_that_share_a_finite_site_are_joined_in_the_report():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("group", 2):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            with numpyro.plate("member", 3):
                numpyro.sample("y", dist.Normal(mu + 2.0 * c, 1.0), obs=y)

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    y = jnp.asarray(Y.reshape(3, 2))
    report = fit_of(model, guide, [{"loc": np.float32(0.0)}], y).to_arviz(num_samples=5)
    assert report.log_likelihood["y"].dims == ("chain", "draw", "group")
    # Independent terms add up to log p(y | mu), hence with the prior to the joint density.
    total = report.log_likelihood["y"].sum("group") + norm.logpdf(report.posterior["mu"])
    np.testing.assert_allclose(total, report.sample_stats["lp"], atol=1e-4)


# --- files


def test_a_report_and_its_params_come_back_from_disk(runs, tmp_path):
    path = runs["mixed fit"].save(tmp_path / "fit.nc", num_samples=60)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.nc", "fit.nc.params.npz"]
    back, report = az.from_netcdf(path), runs["mixed fit"].to_arviz(num_samples=60)
    assert groups_of(back) == groups_of(report)
    np.testing.assert_array_equal(back.posterior["loc"], report.posterior["loc"])
    np.testing.assert_array_equal(back.vi_trace["loss"], report.vi_trace["loss"])
    assert back.attrs["objective"] == "Trace_ELBO"
    np.testing.assert_allclose(back.attrs["pareto_k"], report.attrs["pareto_k"])
    params = read_params(tmp_path / "fit.nc.params.npz")
    jax.tree.map(np.testing.assert_array_equal, params, runs["mixed fit"].params)


def test_a_write_that_fails_leaves_the_old_file(runs, reports, tmp_path, monkeypatch):
    path = tmp_path / "fit.nc"
    path.write_text("old")

    def broken(self, name, **kwargs):
        with open(name, "w") as file:
            file.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(type(reports["fit"]), "to_netcdf", broken)
    with pytest.raises(OSError, match="disk full"):
        runs["fit"].save(path, num_samples=60)
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.nc", "fit.nc.params.npz"]


def test_params_of_any_nesting_and_type_survive(tmp_path):
    params = {
        "net": {
            "layers": [{"w": np.ones((2, 3)), "b": jnp.zeros(3)}, {"w": jnp.ones(2, jnp.bfloat16)}],
            "a/b": np.int32(3),
        },
        "pair": (np.float32(1.0), np.array([True, False])),
        "sparse": {0: np.zeros(1), 2: np.ones(1)},
    }
    back = read_params(write_params(params, tmp_path / "params.npz"))
    assert back["net"]["layers"][1]["w"].dtype == jnp.bfloat16
    back["pair"] = tuple(back["pair"])
    jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(np.asarray, params))
    with pytest.raises(ArgumentError, match="'f'.*no array"):
        write_params({"f": object()}, tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    with pytest.raises(ArgumentError, match="no index"):
        read_params(tmp_path / "other.npz")


# --- words


def test_the_summary_says_whether_to_believe_the_fit(runs, capsys):
    runs["fit"].print_summary(num_samples=400)
    text = capsys.readouterr().out
    assert "mu " in text and "r_hat" in text and "Trace_ELBO with AutoNormal, 300 steps, completed." in text
    assert "Verdict: good." in text and "The restarts agree" in text
    wide = fit_of(
        conjugate,
        normal_guide,
        [POSTERIOR, {"loc": np.float32(5.0), "scale": np.float32(0.1)}],
        jnp.asarray(Y),
    )
    wide.print_summary(num_samples=400)
    text = capsys.readouterr().out
    assert (
        "Verdict: bad." in text and "The restarts disagree" in text and "The best ELBO is chain 0's" in text
    )


def test_mistakes_are_named(runs):
    with pytest.raises(ArgumentTypeError, match="dict"):
        to_arviz({})
    with pytest.raises(ArgumentError, match="has not run"):
        to_arviz(MCMC(NUTS(conjugate), num_warmup=1, num_samples=1))
    with pytest.raises(HandlerError, match="handlers are open"), numpyro.handlers.seed(rng_seed=0):
        runs["fit"].sample()
    with pytest.raises(ArgumentError, match="num_samples"):
        runs["fit"].sample(num_samples=0)
