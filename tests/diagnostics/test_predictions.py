"""Draws for rows that have no data yet, from any run, and the groups of a report that hold them."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import predict, to_arviz
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)
X, NEW = jnp.array([-1.0, 0.5, 2.0]), jnp.array([10.0, -20.0])
ENUMERATED = {"enumerate": "parallel"}


def regression(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        loc = numpyro.deterministic("loc", slope * x)
        numpyro.sample("y", dist.Normal(loc, 1e-4), obs=y)


def logistic(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


def effects(x, y=None):
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(x)):
        effect = numpyro.sample("effect", dist.Normal(0.0, width))
        numpyro.sample("y", dist.Normal(x + effect, 1e-3), obs=y)


def mixture(x, y=None):
    high = numpyro.sample("high", dist.Normal(5.0, 0.1))
    with numpyro.plate("rows", len(x)):
        which = numpyro.sample("which", dist.Bernoulli(0.3), infer=ENUMERATED)
        numpyro.sample("y", dist.Normal(high * which, 0.1), obs=y)


def autoregression(past, future=0):
    """The future is a site of its own, as in NumPyro's Holt-Winters."""
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(before, y_t):
        return numpyro.sample("y", dist.Normal(phi * before, 0.1), obs=y_t), None

    last, _ = scan(step, 1.0, past)

    def on(before, _):
        y = numpyro.sample("y_future", dist.Normal(phi * before, 1e-5))
        return y, None

    if future:
        scan(on, last, None, length=future)


def hidden(y, length=3):
    def step(before, y_t):
        state = numpyro.sample("state", dist.Bernoulli(0.2 + 0.6 * before), infer=ENUMERATED)
        numpyro.sample("y", dist.Normal(2.0 * state, 0.1), obs=y_t)
        return state, None

    numpyro.sample("unused", dist.Normal(0.0, 1.0))
    scan(step, 0, y, length=length)


def sampled(model, *args):
    mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=200, progress_bar=False)
    mcmc.run(KEY, *args)
    return mcmc


@pytest.fixture(scope="module")
def runs():
    guide = AutoNormal(regression)
    svi = SVI(regression, guide, optax.adam(0.05), ELBO())
    return {
        "fit": (
            fit(
                KEY,
                regression,
                guide,
                ELBO(),
                optax.adam(0.05),
                50,
                X,
                0.5 * X,
                num_chains=2,
                progress_bar=False,
            ),
            {},
        ),
        "mcmc": (sampled(regression, X, 0.5 * X), {}),
        "svi": (
            svi.run(KEY, 50, X, 0.5 * X, progress_bar=False),
            {"model": regression, "guide": guide, "model_args": (X, 0.5 * X)},
        ),
    }


@pytest.mark.parametrize("name", ["fit", "mcmc", "svi"])
def test_new_rows_at_each_posterior_draw(name, runs, tmp_path):
    run, how = runs[name]
    new = predict(jax.random.key(7), run, NEW, num_samples=200, **how)
    report = to_arviz(
        run,
        num_samples=200,
        predictions=new,
        predictions_constant_data={"x": NEW},
        pred_dims=dict.fromkeys(["y", "loc", "x"], ["new"]),
        coords={"new": ["a", "b"], "rows": [1, 2, 3]},
        **how,
    )
    expected = report.posterior["slope"].values[..., None] * np.asarray(NEW)
    np.testing.assert_allclose(new["loc"], expected, rtol=1e-5)
    assert 0 < np.abs(new["y"] - expected).max() < 1e-3
    assert (
        report.predictions["y"].dims
        == report.predictions_constant_data["x"].expand_dims(["chain", "draw"]).dims
        == ("chain", "draw", "new")
    )
    assert report.predictions["y"]["new"].values.tolist() == ["a", "b"] and "slope" not in report.predictions
    assert report.observed_data["y"].dims == ("rows",) and report.predictions["loc"].dims == (
        "chain",
        "draw",
        "new",
    )
    report.to_netcdf(str(tmp_path / "report.nc"))
    again = az.from_netcdf(str(tmp_path / "report.nc"))
    np.testing.assert_array_equal(again["predictions"]["y"].values, new["y"])


def test_one_row_and_keywords(runs):
    assert predict(KEY, runs["mcmc"][0], x=NEW[:1])["y"].shape == (1, 200, 1)
    assert (predict(KEY, runs["mcmc"][0], NEW)["y"] == predict(KEY, runs["mcmc"][0], NEW)["y"]).all()
    assert (
        predict(KEY, runs["mcmc"][0], NEW)["y"] != predict(jax.random.key(1), runs["mcmc"][0], NEW)["y"]
    ).any()


def test_finite_data_are_drawn_and_not_summed_out():
    mcmc = sampled(logistic, X, jnp.array([0, 1, 1]))
    slope = np.asarray(mcmc.get_samples()["slope"])
    y = predict(KEY, mcmc, jnp.full(400, 1.0))["y"]
    p = 1 / (1 + np.exp(-slope))
    np.testing.assert_allclose(y[0].mean(1), p, atol=5 * 0.5 / 20)
    with pytest.raises(
        ArgumentError,
        match=r"to_arviz: 'y' had data in the run and has none with these model_args.*predict\(rng_key",
    ):
        to_arviz(mcmc, model_args=(NEW, None))


def test_a_finite_site_of_new_rows_has_its_law():
    new = predict(KEY, sampled(mixture, X, jnp.array([0.0, 5.0, 5.0])), jnp.zeros(300))
    assert set(new) == {"which", "y"}
    np.testing.assert_allclose(new["which"].mean(), 0.3, atol=0.02)
    assert (np.abs(new["y"] - 5.0 * new["which"]) < 1.0).all()


def test_effects_of_rows_are_drawn_for_new_ones():
    mcmc = sampled(effects, X, X + jnp.array([-1.0, 1.0, 0.5]))
    with pytest.raises(
        ArgumentError,
        match=r"'effect' has shape \(2,\) for these arguments, and draws of shape "
        r"\(3,\).*redraw=\['effect'\]",
    ):
        predict(KEY, mcmc, NEW)
    new = predict(KEY, mcmc, jnp.zeros(500), redraw=["effect"])
    np.testing.assert_allclose(new["y"], new["effect"], atol=0.01)
    np.testing.assert_allclose(new["effect"][0].std(1), mcmc.get_samples()["width"], rtol=0.25)
    same_rows = predict(KEY, mcmc, X)
    np.testing.assert_allclose(same_rows["y"][0], X + mcmc.get_samples()["effect"], atol=0.01)


def test_draws_that_belong_to_other_rows_are_told_of():
    """Three effects of the run's rows stood for three new rows, without a word: their law has other means."""

    def local(x, y=None):
        with numpyro.plate("rows", len(x)):
            effect = numpyro.sample("effect", dist.Normal(x, 0.1))
            numpyro.sample("y", dist.Normal(effect, 0.1), obs=y)

    mcmc = sampled(local, X, X)
    with pytest.warns(UserWarning, match=r"'effect' has another law.*redraw=\['effect'\] draws it"):
        predict(KEY, mcmc, X + 10.0)
    np.testing.assert_allclose(predict(KEY, mcmc, X)["y"].mean((0, 1)), X, atol=0.05)
    new = predict(KEY, mcmc, X + 10.0, redraw=["effect"])
    np.testing.assert_allclose(new["y"].mean((0, 1)), X + 10.0, atol=0.05)


def test_a_law_of_what_all_rows_share_may_change():
    def centred(x, y=None):
        with numpyro.plate("slopes", 2):
            slope = numpyro.sample("slope", dist.Normal(x.mean(), 1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(slope.sum() * x, 0.1), obs=y)

    assert set(predict(KEY, sampled(centred, X, X), X + 1.0)) == {"y"}


def test_the_future_of_a_series_goes_on_from_its_past():
    past = jnp.array([0.8, 0.7, 0.5])
    mcmc = sampled(autoregression, past)
    new = predict(KEY, mcmc, past, future=2)
    phi = np.asarray(mcmc.get_samples()["phi"])
    assert set(new) == {"y_future"}
    np.testing.assert_allclose(new["y_future"][0], 0.5 * np.stack([phi, phi**2], 1), atol=1e-3)


def test_states_that_given_data_depend_on_are_no_draws_of_the_prior():
    y = jnp.array([0.0, 2.0, 2.0])
    guide = AutoNormal(numpyro.handlers.block(hidden, hide=["state"]))
    result = fit(KEY, hidden, guide, ELBO(), optax.adam(0.05), 3, y, progress_bar=False)
    with pytest.raises(
        ModelError, match="the data of 'y' depend on 'state', of which there are no posterior draws"
    ):
        predict(KEY, result, y, num_samples=10)
    new = predict(KEY, result, None, length=4, num_samples=500)
    assert new["state"].shape == (1, 500, 4)
    np.testing.assert_allclose(new["state"].mean((0, 1))[:2], [0.2, 0.32], atol=0.09)
    np.testing.assert_allclose(new["y"], 2.0 * new["state"], atol=0.6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda mcmc: predict(KEY, mcmc, X, X), "nothing is drawn; pass None for the data"),
        (lambda mcmc: predict(KEY, mcmc, NEW, redraw=["slop"]), r"redraw names 'slop'.*There are: slope"),
        (lambda mcmc: predict(KEY, mcmc, NEW, redraw="slope"), "redraw must be a list"),
        (lambda mcmc: predict(mcmc, KEY, NEW), "predict: rng_key must be"),
        (
            lambda mcmc: predict(KEY, regression, NEW),
            "predict: result must be a Fit, a numpyro MCMC or an SVIRunResult",
        ),
        (lambda mcmc: predict(KEY, mcmc), "predict: model"),
        (
            lambda mcmc: to_arviz(mcmc, predictions={"y": np.zeros(3)}),
            r"predictions must hold draws \(chain, draw, ...\)",
        ),
        (lambda mcmc: to_arviz(mcmc, predictions_constant_data=3), "predictions_constant_data must be"),
        (
            lambda mcmc: to_arviz(mcmc, pred_dims={"y": ["new"]}),
            r"pred_dims names 'y', which is no variable of the prediction. There are: none",
        ),
        (
            lambda mcmc: to_arviz(mcmc, predictions=predict(KEY, mcmc, NEW), coords={"rows": [1, 2, 3]}),
            "3 labels for the axis 'rows', which has length 2 in '(loc|y)' of the predictions.*pred_dims",
        ),
        (
            lambda mcmc: to_arviz(mcmc, model_args=(X, None)),
            "'y' had data in the run and has none with these model_args",
        ),
    ],
)
def test_what_cannot_be(call, words, runs):
    with pytest.raises((ArgumentError, TypeError), match=words):
        call(runs["mcmc"][0])
