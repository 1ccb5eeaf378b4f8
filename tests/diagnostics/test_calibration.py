"""Simulation-based calibration tells right posteriors from wrong ones.

A right posterior is asked for p > 0.01 over all of its quantities, so each of those tests would be a false
alarm for one key in a hundred at most (the keys are fixed). A wrong one is asked for p < 1e-4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.svi import SVIRunResult

from ppl_ext.diagnostics import Calibration, calibrate, plot_calibration
from ppl_ext.diagnostics.report.arviz_export import build_report
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError, ModelError, NonFiniteError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

# nearly one direction: a correlated posterior
COVARIATES = np.array([[1.0, 0.9], [0.8, 1.1], [1.2, 1.0]], np.float32)


def regression(x, y=None):
    with numpyro.plate("columns", 2):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)


def exact(key, y, num_draws, widen=1.0, shift=0.0):
    """Draws of the slopes' posterior, perhaps spoilt."""
    precision = jnp.eye(2) + COVARIATES.T @ COVARIATES / 0.25
    mean = jnp.linalg.solve(precision, COVARIATES.T @ y / 0.25)
    scale = jnp.linalg.inv(jnp.linalg.cholesky(precision)).T
    return mean + shift + widen * jax.random.normal(key, (num_draws, 2)) @ scale.T


def calibrate_regression(algorithm, num_simulations=200, seed=0, **options):
    return calibrate(
        jax.random.key(seed),
        regression,
        algorithm,
        COVARIATES,
        data="y",
        num_simulations=num_simulations,
        progress_bar=False,
        **options,
    )


# --- right and wrong posteriors


def test_nuts_on_a_conjugate_model_passes():
    mcmc = MCMC(NUTS(regression), num_warmup=200, num_samples=400, progress_bar=False)
    result = calibrate_regression(mcmc)
    assert set(result.ranks) == {"slope", "log_likelihood"} and result.ranks["slope"].shape == (200, 2)
    assert result.p_value > 0.01


def test_a_guide_made_over_confident_on_purpose_fails(capsys):
    # Mean-field on a correlated posterior: right means, sds of about 0.4 of what they should be.
    guide, objective, optim = AutoNormal(regression), ELBO(), optax.adam(0.05)

    def mean_field(key, data):
        return fit(key, regression, guide, objective, optim, 400, COVARIATES, progress_bar=False, **data)

    result = calibrate_regression(mean_field, num_simulations=80)
    assert result.p_value < 1e-4
    result.print_summary()
    printed = capsys.readouterr().out
    assert "over-confident: too narrow" in printed and "not calibrated" in printed


@pytest.mark.slow
def test_the_exact_posterior_passes_at_a_thousand_data_sets():
    result = calibrate_regression(
        lambda key, data: {"slope": exact(key, data["y"], 99)}, 1000, seed=1, batch_size=1000
    )
    assert result.p_value > 0.01 and result.num_draws == 99 and result.thin == 1


@pytest.mark.parametrize(
    ("widen", "shift", "words"),
    [(0.8, 0.0, "too narrow"), (1.3, 0.0, "too wide"), (1.0, 0.2, "too high"), (1.0, -0.2, "too low")],
)
def test_a_spoilt_posterior_fails_and_is_named(widen, shift, words, capsys):
    result = calibrate_regression(
        lambda key, data: {"slope": exact(key, data["y"], 99, widen, shift)}, 1000, batch_size=1000
    )
    assert result.p_value < 1e-4
    result.print_summary()
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("slope"))
    assert row.endswith(words)


def test_returning_the_prior_fails_by_the_log_likelihood_alone():
    result = calibrate_regression(
        lambda key, data: {"slope": jax.random.normal(key, (99, 2))}, batch_size=200
    )
    assert result.p_values["slope"].min() > 0.01
    assert result.p_values["log_likelihood"] < 1e-4


@pytest.mark.slow
def test_a_quantity_of_the_users_is_ranked():
    # Independent draws of each coordinate have the right margins; only the difference shows that they are not
    # together.
    def margins(key, data):
        draws = exact(key, data["y"], 99)
        return {"slope": jnp.stack([draws[:, 0], jnp.roll(draws[:, 1], 1)], axis=-1)}

    def difference(values, data):
        return {"difference": values["slope"][0] - values["slope"][1]}

    result = calibrate_regression(margins, 400, batch_size=400, quantities=difference)
    assert result.p_values["slope"].min() > 0.01
    assert result.p_values["difference"] < 1e-4


def switched(y=None):
    on = numpyro.sample("on", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(1.0 * on, 1.0), obs=y)


def switch_posterior(key, data, sharpen=1.0):
    log_odds = jnp.log(0.3 / 0.7) + sharpen * (data["y"] - 0.5)
    return {"on": jax.random.bernoulli(key, jax.nn.sigmoid(log_odds), (99,)).astype(int)}


@pytest.mark.slow
def test_ties_of_a_discrete_site_are_broken_at_random():
    result = calibrate(
        jax.random.key(1),
        switched,
        switch_posterior,
        data="y",
        num_simulations=1000,
        batch_size=1000,
        progress_bar=False,
    )
    assert result.p_value > 0.01

    def too_sure(key, data):
        return switch_posterior(key, data, sharpen=3.0)

    wrong = calibrate(
        jax.random.key(1),
        switched,
        too_sure,
        data="y",
        num_simulations=1000,
        batch_size=1000,
        progress_bar=False,
    )
    assert wrong.p_value < 1e-4


# --- autocorrelation


def autocorrelated(key, data, rho=0.9, length=2000):
    """A stationary chain with the right law: its draws are worth (1 - rho)/(1 + rho) of as many independent
    ones.
    """
    noise = exact(key, jnp.zeros(3), length)

    def step(x, e):
        x = rho * x + jnp.sqrt(1 - rho**2) * e
        return x, x

    chain = jax.lax.scan(step, noise[0], noise)[1]
    return {"slope": chain + exact(key, data["y"], 1, widen=0.0)}


@pytest.mark.slow
def test_autocorrelated_draws_are_thinned_to_what_they_are_worth():
    result = calibrate_regression(autocorrelated, 500, batch_size=500, num_draws=1000)
    # (1 + rho)/(1 - rho) = 19.
    assert 19 * 0.9 < result.thin < 19 * 1.2
    assert result.num_draws == 2000 // result.thin
    assert result.p_value > 0.01


@pytest.mark.slow
def test_a_chain_that_is_worth_little_is_told():
    with pytest.warns(UserWarning, match="worth only .* independent draws"):
        result = calibrate_regression(
            lambda key, data: autocorrelated(key, data, length=200), 100, batch_size=100
        )
    assert result.num_draws < 20


# --- what an algorithm may return


def run_svi(key, data, svi):
    return svi.run(key, 300, COVARIATES, progress_bar=False, **data)


def run_mcmc(key, data):
    mcmc = MCMC(
        NUTS(regression),
        num_warmup=100,
        num_samples=100,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, COVARIATES, **data)
    return mcmc


@pytest.mark.slow
def test_an_svi_run_and_an_mcmc_run_inside_a_function_pass():
    guide = AutoMultivariateNormal(regression)
    svi = SVI(regression, guide, optax.adam(0.1), Trace_ELBO(num_particles=8))
    result = calibrate_regression(lambda key, data: run_svi(key, data, svi), 100, batch_size=50, guide=guide)
    assert result.p_value > 0.01
    # The guide was left without tracers, so it can be used again.
    assert (
        calibrate_regression(lambda key, data: run_svi(key, data, svi), 3, guide=guide, num_draws=9).num_draws
        == 9
    )
    result = calibrate_regression(run_mcmc, 100, batch_size=100)
    assert result.p_value > 0.01


@pytest.mark.slow
def test_batches_and_one_after_the_other_agree_to_the_last_rank():
    runs = []

    def algorithm(key, data):
        runs.append(key)
        return {"slope": exact(key, data["y"], 30)}

    one_by_one = calibrate_regression(algorithm, 20)
    assert len(runs) == 20
    in_batches = calibrate_regression(algorithm, 20, batch_size=7)
    assert len(runs) == 21  # traced once for all three batches
    for name, ranks in one_by_one.ranks.items():
        np.testing.assert_array_equal(ranks, in_batches.ranks[name])


@pytest.mark.slow
def test_draws_by_chain_and_reports_are_taken():
    def chains(key, data):
        return {"slope": exact(key, data["y"], 30).reshape(2, 15, 2)}

    def report(key, data):
        return build_report({"posterior": chains(key, data)})

    plain = calibrate_regression(lambda key, data: {"slope": exact(key, data["y"], 30)}, 10)
    for algorithm in (chains, report):
        np.testing.assert_array_equal(
            calibrate_regression(algorithm, 10).ranks["slope"], plain.ranks["slope"]
        )


@pytest.mark.slow
def test_ranks_are_counts_of_draws_below_the_truth():
    draws = np.random.default_rng(0).permutation(np.linspace(-3.0, 3.0, 50))
    result = calibrate_regression(
        lambda key, data: {"slope": jnp.stack([draws, draws], axis=-1)}, 30, batch_size=30
    )
    expected = (draws < result.truths["slope"][..., None]).sum(-1)
    np.testing.assert_array_equal(result.ranks["slope"], expected)
    assert result.data["y"].shape == (30, 3)


@pytest.mark.slow
def test_data_may_have_another_argument_and_give_the_sizes():
    def model(observed):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(observed), subsample_size=2):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(jnp.asarray(observed), 0))

    def algorithm(key, data):
        mean, sd = data["observed"].sum() / 6.0, jnp.sqrt(1.0 / 6.0)
        return {"mu": mean + sd * jax.random.normal(key, (99,))}

    options = {"data": {"y": "observed"}, "num_simulations": 300, "batch_size": 300, "progress_bar": False}
    result = calibrate(jax.random.key(0), model, algorithm, observed=jnp.zeros(5), **options)
    assert result.data["observed"].shape == (300, 5)
    assert result.p_value > 0.01


# --- what goes wrong


@pytest.mark.slow
def test_failed_simulations_are_left_out_and_told(capsys):
    def sometimes(key, data):
        draws = exact(key, data["y"], 30)
        return {"slope": jnp.where(data["y"][0] > 1.0, jnp.nan, draws)}

    result = calibrate_regression(sometimes, 60, batch_size=60)
    assert 0 < len(result.failed) < 30
    assert result.num_simulations == 60 - len(result.failed) == len(result.truths["slope"])
    assert (result.data["y"][:, 0] <= 1.0).all()
    result.print_summary()
    assert "failed and are left out" in capsys.readouterr().out
    with pytest.raises(NonFiniteError, match="all 5 simulations failed"):
        calibrate_regression(lambda key, data: {"slope": jnp.full((30, 2), jnp.nan)}, 5)


def test_a_run_that_breaks_down_is_a_failed_simulation():
    def breaks(key, data):
        if data["y"][0] > 0.5:
            raise NonFiniteError("the loss stopped being finite")
        return {"slope": exact(key, data["y"], 30)}

    result = calibrate_regression(breaks, 20)
    assert result.failed and set(result.failed.values()) == {"the loss stopped being finite"}


def factored(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("extra", -(mu**2))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def improper(y=None):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scaled(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.handlers.scale(scale=10.0):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def held(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("fixed", dist.Normal(mu, 1.0), obs=0.3)
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def overflowing(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    numpyro.sample("y", dist.Normal(jnp.exp(mu), 1.0), obs=y)


def nothing_latent(y=None):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def never(key, data):
    raise AssertionError("the model should have been refused")


@pytest.mark.parametrize(
    ("model", "data", "error", "words"),
    [
        (factored, "y", ModelError, "factor 'extra'"),
        (improper, "y", ModelError, "proper prior"),
        (scaled, "y", ModelError, "'y' is scaled"),
        (held, "y", ModelError, "'fixed' is observed"),
        (overflowing, "y", NonFiniteError, "'y' values that are not finite"),
        (nothing_latent, "y", ModelError, "no latent site"),
        (factored, "z", ArgumentError, "no argument 'z'"),
        (factored, {"z": "y"}, ArgumentError, "'z', which is no sample site"),
        (factored, [], ArgumentError, "names no site"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(model, data, error, words):
    with pytest.raises(error, match=words):
        calibrate(jax.random.key(0), model, never, data=data, num_simulations=50, progress_bar=False)


@pytest.mark.slow
def test_mistakes_are_named():
    def good(key, data):
        return {"slope": exact(key, data["y"], 30)}

    for option in ("num_simulations", "num_draws", "batch_size"):
        with pytest.raises(ArgumentError, match=option):
            calibrate_regression(good, **{option: 0})
    with pytest.raises(ArgumentTypeError, match="algorithm must be"):
        calibrate_regression("NUTS")
    with pytest.raises(ArgumentError, match=r"draws of \['other'\].*sites \['slope'\]"):
        calibrate_regression(lambda key, data: {"other": jnp.zeros(30)}, 3)
    with pytest.raises(ArgumentError, match=r"draws of 'slope' have shape \(30, 3\)"):
        calibrate_regression(lambda key, data: {"slope": jnp.zeros((30, 3))}, 3)
    with pytest.raises(ArgumentTypeError, match="No posterior draws in int"):
        calibrate_regression(lambda key, data: 3, 3)
    with pytest.raises(ArgumentError, match="Leave batch_size out"):
        calibrate_regression(
            lambda key, data: {"slope": jnp.full((30, 2), float(data["y"][0]))}, 3, batch_size=3
        )
    with pytest.raises(ArgumentError, match="pass guide="):
        calibrate_regression(lambda key, data: SVIRunResult({}, None, None), 1)
    with pytest.raises(HandlerError, match="calibrate"), numpyro.handlers.seed(rng_seed=0):
        calibrate_regression(good)
    used = run_mcmc(jax.random.key(0), {"y": jnp.zeros(3)})
    with pytest.raises(ArgumentError, match="has run already"):
        calibrate_regression(used)


def test_a_calibration_is_built_from_plain_ranks():
    result = Calibration({"mu": np.arange(100), "beta": np.tile(np.arange(100)[:, None], 3)}, num_draws=99)
    assert result.p_values["beta"].shape == (3,) and result.p_value == 1.0
    assert repr(result) == "Calibration(num_simulations=100, num_draws=99, p_value=1)"
    with pytest.raises(ArgumentError, match="no ranks of 'sigma'"):
        plot_calibration(result, ["sigma"])
