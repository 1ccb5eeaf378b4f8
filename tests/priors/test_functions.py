"""Functions at given inputs, read off any kind of fit, and their scores against formulas."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, Predictive
from numpyro.infer.autoguide import AutoNormal
from scipy.special import expit, logsumexp
from scipy.stats import norm

from ppl_ext.diagnostics.report.arviz_export import variables_of
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.infer import SGLD, fit
from ppl_ext.objectives import ELBO
from ppl_ext.priors.functions.posterior_functions import posterior_functions

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(0)
X = np.linspace(-1.0, 1.0, 9).astype(np.float32)
Y = (0.7 * X + 0.4 * RNG.normal(size=9)).astype(np.float32)
DRAWS = {
    "slope": RNG.normal(0.7, 0.2, size=(2, 50)).astype(np.float32),
    "noise": np.exp(RNG.normal(-1.0, 0.2, size=(2, 50))).astype(np.float32),
}


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    f = numpyro.deterministic("f", slope * x)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


@pytest.fixture(scope="module")
def read():
    return posterior_functions(model, DRAWS, X, y=Y)


def test_regression_scores_are_those_of_the_mixture(read):
    f, noise = DRAWS["slope"][..., None] * X, DRAWS["noise"][..., None]
    np.testing.assert_allclose(read.values, f, rtol=1e-5)
    np.testing.assert_allclose(read.rmse, np.sqrt(np.mean((Y - f.mean((0, 1))) ** 2)), rtol=1e-5)
    log_p = norm.logpdf(Y, f, noise).reshape(100, 9)
    np.testing.assert_allclose(read.nll, -np.mean(logsumexp(log_p, axis=0) - np.log(100)), rtol=1e-5)
    level = norm.cdf(Y, f, noise).mean((0, 1))
    wanted = [np.mean((level > 0.5 - p / 2) & (level < 0.5 + p / 2)) for p in (0.3, 0.5, 0.9)]
    np.testing.assert_allclose(read.coverage((0.3, 0.5, 0.9)), wanted)
    assert 0.0 < read.coverage((0.3,))[0] < 1.0
    whole = read.coverage()
    np.testing.assert_allclose(read.calibration_error(), np.mean(np.abs(whole - np.arange(0.1, 0.95, 0.1))))


def test_scores_of_draws_far_apart_do_not_underflow():
    far = {"slope": np.array([0.7, 300.0], np.float32), "noise": np.full(2, 0.01, np.float32)}
    found = posterior_functions(model, far, X, y=X)
    log_p = norm.logpdf(X, np.array([[0.7], [300.0]]) * X, 0.01)
    np.testing.assert_allclose(found.nll, -np.mean(logsumexp(log_p, axis=0) - np.log(2)), rtol=1e-4)
    assert 150.0 < found.nll < 1e5, "exponentials of such scores are zero"


def test_chains_are_compared_as_functions(read):
    wanted = [az.rhat(np.asarray(read.values[..., column]), method="split") for column in (0, 8)]
    np.testing.assert_allclose(read.r_hat[[0, 8]], wanted, rtol=1e-4)
    assert np.isnan(read.r_hat[4]) and np.isnan(read.ess[4]), "all draws of f(0) are 0"
    apart = {**DRAWS, "slope": DRAWS["slope"] + np.array([[0.0], [3.0]], np.float32)}
    assert (posterior_functions(model, apart, X).r_hat[[0, 8]] > 2.0).all()


def test_replicates_come_from_the_predictive(read):
    spread = read.replicated - read.values
    np.testing.assert_allclose(spread.std(), np.sqrt(np.mean(DRAWS["noise"] ** 2)), rtol=0.1)


@pytest.mark.slow
def test_outputs(read):
    by_name = posterior_functions(model, DRAWS, X, output="f", chunk_size=7)
    by_function = posterior_functions(model, DRAWS, X, output=lambda values: values["f"] + values["slope"])
    np.testing.assert_allclose(by_name.values, read.values, rtol=1e-6)
    np.testing.assert_allclose(
        by_function.values, read.values + DRAWS["slope"][..., None], rtol=1e-4, atol=1e-6
    )
    assert (by_name.output, by_function.output, read.output) == ("f", "f", "y")
    elsewhere = posterior_functions(model, DRAWS, np.array([10.0], np.float32))
    np.testing.assert_allclose(elsewhere.values[..., 0], 10.0 * DRAWS["slope"], rtol=1e-5)


def classes(x, many, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        logits = jnp.stack([0.0 * x, slope * x, 2.0 * slope * x], -1)
        law = dist.Categorical(logits=logits) if many else dist.Bernoulli(logits=slope * x)
        numpyro.sample("y", law, obs=y)


@pytest.mark.parametrize("many", [False, True])
def test_classes_are_scored_by_probabilities(many):
    x, draws = np.linspace(-3, 3, 40).astype(np.float32), {"slope": DRAWS["slope"] * 2.0}
    y = RNG.integers(0, 3 if many else 2, size=40)
    found = posterior_functions(classes, draws, x, many, y=y)
    slopes = draws["slope"].reshape(-1, 1) * x
    if many:
        p = np.exp(np.stack([0.0 * slopes, slopes, 2.0 * slopes], -1))
        p = (p / p.sum(-1, keepdims=True)).mean(0)
    else:
        p = np.stack([1 - expit(slopes), expit(slopes)], -1).mean(0)
    np.testing.assert_allclose(found.nll, -np.mean(np.log(p[np.arange(40), y])), rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, np.mean(p.argmax(-1) == y))
    error = 0.0
    for low in np.arange(0.0, 1.0, 0.2):
        inside = (p.max(-1) >= low) & (p.max(-1) < low + 0.2)
        if inside.any():
            error += inside.mean() * abs(
                np.mean(p.argmax(-1)[inside] == y[inside]) - p.max(-1)[inside].mean()
            )
    np.testing.assert_allclose(found.calibration_error(5), error, rtol=1e-4)
    assert found.values.shape == ((2, 50, 40, 3) if many else (2, 50, 40))
    for what in ("coverage", "rmse"):
        with pytest.raises(ArgumentError, match=what):
            getattr(found, what)() if what == "coverage" else found.rmse


@pytest.mark.slow
def test_counts_are_read_from_replicates():
    def counts(y=None):
        numpyro.sample("y", dist.Poisson(numpyro.sample("rate", dist.Gamma(2.0, 1.0))).expand([60]), obs=y)

    y = np.random.default_rng(1).poisson(4.0, size=60)
    found = posterior_functions(counts, {"rate": np.full((1, 400), 4.0, np.float32)}, y=y)
    assert found.calibration_error() < 0.12 and found.levels.shape == (1, 400, 60)


def test_a_report_holds_functions_and_predictions(read, capsys):
    report = read.to_arviz(inputs=X)
    variables = variables_of(report)
    assert (
        variables["posterior"]
        == variables["predictions"]
        == variables["log_likelihood"]
        == variables["observed_data"]
        == ["y"]
    )
    assert report.posterior["y"].dims == report.log_likelihood["y"].dims == ("chain", "draw", "input")
    assert report.constant_data["inputs"].dims == ("input",)
    read.print_summary()
    out = capsys.readouterr().out
    assert "Largest R-hat" in out and f"RMSE {read.rmse:.4f}, NLL {read.nll:.4f}" in out


@pytest.mark.slow
def test_every_kind_of_fit_is_read():
    flat = {name: x.reshape(100) for name, x in DRAWS.items()}
    assert posterior_functions(model, flat, X).values.shape == (1, 100, 9)
    more = Predictive(model, flat)(jax.random.key(0), X)
    assert posterior_functions(model, {**flat, **more}, X[:4], site="y").values.shape == (1, 100, 4)
    mcmc = MCMC(SGLD(model, batch_size=4, step_size=1e-3), num_warmup=0, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(0), X, Y)
    assert posterior_functions(model, mcmc, X[:2], y=Y[:2]).values.shape == (1, 5, 2)
    result = fit(
        jax.random.key(0),
        model,
        AutoNormal(model),
        ELBO(),
        optax.adam(0.1),
        5,
        X,
        Y,
        num_chains=2,
        progress_bar=False,
    )
    assert posterior_functions(model, result, X[:2], num_samples=6).values.shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"samples": {}}, ArgumentError, "no draw"),
        ({"samples": None}, ArgumentTypeError, "NoneType"),
        (
            {"samples": {"slop": DRAWS["slope"]}},
            ArgumentError,
            "none of the samples' names .'slop'. is a latent site",
        ),
        ({"samples": {"slope": DRAWS["slope"]}}, ModelError, "'noise', 'y'. have no samples"),
        ({"samples": {"slope": DRAWS["slope"]}, "site": "y"}, ModelError, "'noise' has no samples"),
        ({"samples": {**DRAWS, "slope": DRAWS["slope"][..., None]}}, ArgumentError, "site 'slope' has shape"),
        ({"samples": {**DRAWS, "slope": DRAWS["slope"][:, :3]}}, ArgumentError, "as many chains and draws"),
        (
            {"samples": {**DRAWS, "slope": DRAWS["slope"] * np.nan}},
            NonFiniteError,
            "100 of 100 samples of site 'slope'",
        ),
        ({"y": Y[:3]}, ArgumentError, "y has shape .3,., but site 'y' has .9,."),
        ({"y": Y * np.nan}, ArgumentError, "9 of the targets"),
        ({"y": "targets"}, ArgumentTypeError, "y must be an array"),
        ({"output": "g"}, ArgumentError, "output 'g'"),
        ({"output": 3}, ArgumentTypeError, "output must be"),
        ({"site": "z"}, ArgumentError, "site 'z'"),
        ({"site": 3}, ArgumentTypeError, "site must be"),
        ({"chunk_size": 0}, ArgumentError, "chunk_size"),
        ({"num_samples": 0}, ArgumentError, "num_samples"),
        ({"rng_key": 3}, ArgumentTypeError, "rng_key"),
        ({"model": None}, ArgumentTypeError, "model"),
        ({"args": ()}, ArgumentError, "takes"),
    ],
)
def test_what_cannot_be_read_is_named(change, error, words):
    given = {"model": model, "samples": DRAWS, "args": (X,)} | change
    with pytest.raises(error, match=words):
        posterior_functions(given.pop("model"), given.pop("samples"), *given.pop("args"), **given)


def test_scores_need_targets():
    found = posterior_functions(model, DRAWS, X)
    for read_score in (
        lambda: found.rmse,
        lambda: found.nll,
        lambda: found.accuracy,
        found.coverage,
        found.calibration_error,
    ):
        with pytest.raises(ArgumentError, match="pass y="):
            read_score()
    with pytest.raises(ArgumentError, match="levels must lie"):
        found.coverage((0.5, 1.0))
