"""Every algorithm's result goes to ArviZ, and what users reach for there runs on it.

A new algorithm joins by one row of ``ALGORITHMS``: a function without arguments that returns its report on
``Y``. The model may be any that observes ``y`` in the plate ``rows``, without local latent sites there, so
that leave-one-out has a sensible answer.
"""

import matplotlib

matplotlib.use("Agg")

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal

import ppl_ext
from ppl_ext import objectives
from ppl_ext.diagnostics.report.arviz_export import variables_of
from ppl_ext.infer import SGHMC, SGLD, SMC, fit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

ROWS, GROUPS, DRAWS = 24, 3, 200
GROUP = np.arange(ROWS) % GROUPS
Y = np.random.default_rng(0).normal(GROUP - 1.0, 1.0).astype(np.float32)
KEY = jax.random.key(0)


def model(y):
    with numpyro.plate("group", GROUPS):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("rows", ROWS):
        numpyro.sample("y", dist.Normal(level[GROUP], width), obs=y)


def guide(y):
    positive = dist.constraints.positive
    with numpyro.plate("group", GROUPS):
        spread = numpyro.param("spread", 0.5 * jnp.ones(GROUPS), constraint=positive)
        numpyro.sample("level", dist.Normal(numpyro.param("loc", jnp.zeros(GROUPS)), spread))
    numpyro.sample(
        "width",
        dist.LogNormal(
            numpyro.param("log_width", 0.0), numpyro.param("log_spread", 0.2, constraint=positive)
        ),
    )


def mixture(y):
    with numpyro.plate("group", GROUPS):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("rows", ROWS):
        which = numpyro.sample(
            "which", dist.Categorical(jnp.ones(GROUPS) / GROUPS), infer={"enumerate": "parallel"}
        )
        numpyro.sample("y", dist.Normal(level[which], width), obs=y)


def mixture_guide(y):
    guide(y)
    logits = numpyro.param("logits", jnp.zeros((ROWS, GROUPS)))
    with numpyro.plate("rows", ROWS):
        numpyro.sample("which", dist.Categorical(logits=logits), infer={"gradient": "enumerate"})


def ours(objective, program=model, approximation=guide):
    result = fit(
        KEY, program, approximation, objective, optax.adam(0.02), 800, Y, num_chains=2, progress_bar=False
    )
    return result.to_arviz(num_samples=DRAWS)


def numpyros(program, approximation, loss):
    result = SVI(program, approximation, numpyro.optim.Adam(0.02), loss).run(KEY, 800, Y, progress_bar=False)
    return ppl_ext.to_arviz(result, model=program, guide=approximation, model_args=(Y,), num_samples=DRAWS)


def nuts(program):
    mcmc = MCMC(
        NUTS(program),
        num_warmup=200,
        num_samples=DRAWS,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY, Y)
    return ppl_ext.to_arviz(mcmc)


def stochastic_gradients(kernel):
    mcmc = MCMC(
        kernel,
        num_warmup=1000,
        num_samples=10 * DRAWS,
        thinning=10,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY, Y)
    return ppl_ext.to_arviz(mcmc)


ALGORITHMS = {
    "NUTS": lambda: nuts(model),
    "SGHMC": lambda: stochastic_gradients(SGHMC(model, step_size=0.05, friction=0.2)),
    "SGLD": lambda: stochastic_gradients(SGLD(model, step_size=0.02)),
    "NUTS, enumerated mixture": lambda: nuts(mixture),
    "SMC": lambda: SMC(model, 2 * DRAWS, progress_bar=False).run(KEY, Y).to_arviz(),
    "SMC, enumerated mixture": lambda: SMC(mixture, 2 * DRAWS, progress_bar=False).run(KEY, Y).to_arviz(),
    "fit, ELBO": lambda: ours(objectives.ELBO(num_particles=2)),
    "fit, IWELBO": lambda: ours(objectives.IWELBO(num_particles=4)),
    "fit, Renyi": lambda: ours(objectives.Renyi(alpha=0.5, num_particles=4)),
    "fit, ForwardKL": lambda: ours(objectives.ForwardKL(num_particles=16)),
    "fit, ELBO with both options": lambda: ours(objectives.ELBO(analytic_kl=True, stick_the_landing=True)),
    "fit, DoublyReparameterized": lambda: ours(objectives.DoublyReparameterized(num_particles=4)),
    "fit, Thermodynamic": lambda: ours(objectives.Thermodynamic(num_particles=16)),
    "fit, ReweightedWakeSleep": lambda: ours(objectives.ReweightedWakeSleep(num_particles=16)),
    "fit, MarkovScoreClimbing": lambda: ours(
        objectives.MarkovScoreClimbing(objectives.ConditionalImportanceSampling(16))
    ),
    "fit, constrained": lambda: ours(
        objectives.constrain(objectives.ELBO(), objectives.kl("width"), at_most=2.0)
    ),
    "fit, enumerated mixture": lambda: ours(objectives.ELBO(num_particles=2), mixture, mixture_guide),
    "SVI, AutoNormal": lambda: numpyros(model, AutoNormal(model), Trace_ELBO()),
    "SVI, AutoLaplaceApproximation": lambda: numpyros(model, AutoLaplaceApproximation(model), Trace_ELBO()),
    "SVI, hand-written guide": lambda: numpyros(model, guide, Trace_ELBO()),
    "SVI, enumerated mixture": lambda: numpyros(mixture, guide, TraceEnum_ELBO(num_particles=2)),
}


SLOW = {
    "SGLD",
    "fit, ELBO with both options",
    "fit, DoublyReparameterized",
    "fit, Thermodynamic",
    "fit, ReweightedWakeSleep",
    "fit, constrained",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ALGORITHMS],
)
def report(request):
    """Each algorithm runs once."""
    return ALGORITHMS[request.param]()


def elpd_of(result):
    return result.elpd if hasattr(result, "elpd") else result.elpd_loo  # ArviZ 1.x, 0.23


pytestmark = pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")


def test_groups_and_names(report):
    variables = variables_of(report)
    assert {"level", "width"} <= set(variables["posterior"]) <= {"level", "width", "which"}
    assert variables["log_likelihood"] == variables["observed_data"] == ["y"]
    assert report.posterior["level"].dims == ("chain", "draw", "group")
    assert report.posterior["width"].dims == ("chain", "draw")
    assert report.log_likelihood["y"].dims == ("chain", "draw", "rows")
    assert report.observed_data["y"].dims == ("rows",)
    np.testing.assert_array_equal(report.observed_data["y"], Y)
    assert "lp" in report.sample_stats and np.isfinite(report.sample_stats["lp"]).all()
    assert report.attrs["inference_library"] == "ppl_ext"


def test_summary(report):
    assert len(az.summary(report)) == sum(
        int(np.prod(x.shape[2:])) for x in report.posterior.data_vars.values()
    )
    table = az.summary(report, var_names=["level", "width"], round_to="none")
    assert list(table.index) == ["level[0]", "level[1]", "level[2]", "width"]
    spread = np.asarray(report.posterior["width"], float)
    np.testing.assert_allclose(table.loc["width", "mean"], spread.mean(), rtol=1e-5)
    columns = ["mean", "sd"] + (["r_hat"] if report.posterior.sizes["chain"] > 1 else [])
    assert np.isfinite(table[columns].to_numpy(float)).all()


def test_plot_forest(report):
    try:
        az.plot_forest(report)
    finally:
        plt.close("all")


def test_loo(report):
    result = az.loo(report, pointwise=True)
    assert result.n_data_points == ROWS
    pointwise = np.asarray(result.elpd_i if hasattr(result, "elpd_i") else result.loo_i)
    assert pointwise.shape == (ROWS,) and np.isfinite(pointwise).all()
    np.testing.assert_allclose(pointwise.sum(), elpd_of(result), rtol=1e-5)
    assert elpd_of(ppl_ext.diagnostics.loo(report)) == elpd_of(result)


@pytest.fixture(scope="module")
def null():
    """One level for all and too little noise: a comparison has something to tell apart."""

    def alike(y):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        with numpyro.plate("rows", ROWS):
            numpyro.sample("y", dist.Normal(level, 0.3), obs=y)

    return nuts(alike)


def test_compare(report, null):
    table = az.compare({"this": report, "null": null})
    assert list(table.index) == ["this", "null"], (
        "a model with the right levels predicts better than one that is sure of a single one"
    )
    numbers = table.drop(columns="p_worse", errors="ignore").select_dtypes(
        "number"
    )  # the best one is not worse than itself: NaN in ArviZ 1.3
    assert np.isfinite(numbers.to_numpy(float)).all()
    assert np.isfinite(table.get("p_worse", table["elpd_diff"])["null"])
