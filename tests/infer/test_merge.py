"""Merged fits: against joint posteriors in closed form, in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import Predictive
from numpyro.infer.autoguide import (
    AutoBNAFNormal,
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.infer import Fit, fit, merge
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.5 * RNG.normal(size=12)
PRIOR = np.array([[1.0, 0.4, 0.0], [0.4, 0.8, 0.2], [0.0, 0.2, 0.5]])
CENTRE = np.array([0.5, 0.0, -1.0])
HALVES = (slice(0, 7), slice(7, 12))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def regression(x, y):
    """Sites out of the alphabet's order; log s is one of the coefficients."""
    w = numpyro.sample("z", dist.MultivariateNormal(CENTRE[:2], PRIOR[:2, :2]))
    # the third given the first two
    gain = PRIOR[2, :2] @ np.linalg.inv(PRIOR[:2, :2])
    law = dist.LogNormal(CENTRE[2] + gain @ (w - CENTRE[:2]), np.sqrt(PRIOR[2, 2] - gain @ PRIOR[:2, 2]))
    s = numpyro.sample("a", law)
    mean = x[:, :2] @ w + x[:, 2] * jnp.log(s)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def posterior(rows=slice(None), prior=PRIOR, x=X):
    """Mean and precision of the coefficients in the order z, log a."""
    precision = np.linalg.inv(prior) + x[rows].T @ x[rows] / 0.25
    return np.linalg.solve(precision, np.linalg.solve(prior, CENTRE) + x[rows].T @ Y[rows] / 0.25), precision


def at(guide, params, *args, model=regression, num_chains=1):
    """A fit at these numbers: of no step."""
    return fit(
        KEY,
        model,
        guide,
        ELBO(),
        optax.sgd(0.0),
        1,
        *args,
        progress_bar=False,
        init_params=params,
        num_chains=num_chains,
    )


@functools.cache
def half_fits(kind):
    fits = []
    for rows in HALVES:
        guide, (mean, precision) = kind(regression), posterior(rows)
        covariance = np.linalg.inv(precision)
        if kind is AutoLaplaceApproximation:
            params = {"auto_loc": mean}
        elif kind is AutoMultivariateNormal:
            params = {"auto_loc": mean, "auto_scale_tril": np.linalg.cholesky(covariance)}
        else:  # Σ = D + C Cᵀ with D below the least eigenvalue
            values, vectors = np.linalg.eigh(covariance)
            scale = np.full(3, np.sqrt(0.5 * values[0]))
            factor = vectors * np.sqrt(values - 0.5 * values[0]) / scale[:, None]
            params = {"auto_loc": mean, "auto_scale": scale, "auto_cov_factor": factor}
            guide = kind(regression, rank=3)
        fits.append(at(guide, params, X[rows], Y[rows]))
    return fits


FULL = [AutoLaplaceApproximation, AutoMultivariateNormal, AutoLowRankMultivariateNormal]


@pytest.mark.parametrize("kinds", [*((k, k) for k in FULL), (FULL[0], FULL[2])], ids=str)
def test_halves_of_the_data_make_the_joint_posterior(kinds):
    fits = [half_fits(kind)[i] for i, kind in enumerate(kinds)]
    merged = merge(fits, None, X, Y)
    mean, precision = posterior()
    np.testing.assert_allclose(merged.params["auto_loc"][0], mean, atol=1e-6)
    root = merged.params["auto_scale_tril"][0]
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(precision), atol=1e-6)


def test_the_merged_fit_is_the_posterior_for_numpyro_and_arviz():
    merged = merge(half_fits(AutoLaplaceApproximation), [1.0, 1.0], X, Y)
    draws = merged.sample(KEY, 2000)
    # the weights of draws of the posterior are all the evidence
    evidence = dist.MultivariateNormal(X @ CENTRE, X @ PRIOR @ X.T + 0.25 * np.eye(12)).log_prob(Y)
    np.testing.assert_allclose(draws.log_weights, float(evidence), atol=1e-6)
    mean, precision = posterior()
    error = np.sqrt(np.diag(np.linalg.inv(precision)) / 2000)
    report = merged.to_arviz(num_samples=2000).posterior
    for found in (
        report["a"].values[0],
        Predictive(merged.guide, params=first(merged), num_samples=2000)(KEY)["a"],
    ):
        assert abs(np.log(found).mean() - mean[2]) < 4.5 * error[2]
    assert (np.abs(draws.values["z"][0].mean(0) - mean[:2]) < 4.5 * error[:2]).all()
    assert merged.verdict(KEY).level in ("good", "unknown") and merged.num_chains == 1


def first(fit):
    return {name: x[0] for name, x in fit.params.items()}


def test_descended_fits_of_halves():
    fits = [
        fit(
            KEY, regression, AutoLaplaceApproximation(regression), ELBO(), optax.sgd(0.02), 1500,
            X[rows], Y[rows], progress_bar=False,
        )
        for rows in HALVES
    ]  # fmt: skip
    np.testing.assert_allclose(merge(fits, None, X, Y).params["auto_loc"][0], posterior()[0], atol=1e-6)


SIDE = np.linalg.qr(X)[0]  # orthogonal columns: the posterior has no correlations


def apart(x, y):
    w = numpyro.sample("w", dist.Normal(CENTRE, jnp.sqrt(np.diag(PRIOR))).to_event(1))
    s = numpyro.sample("s", dist.Normal(1.0, 2.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)
    numpyro.sample("s_seen", dist.Normal(s, 1.0), obs=0.3)


def mean_field_fits(num_chains=1):
    """Both halves are all rows with noise √2 times as large: their product is the posterior of all."""
    precision = 1.0 / np.diag(PRIOR) + 0.5 / 0.25
    mean = (CENTRE / np.diag(PRIOR) + 0.5 * SIDE.T @ Y / 0.25) / precision
    seen = (0.25 * 1.0 + 0.5 * 0.3) / 0.75
    by_site = {"w_auto_loc": mean, "w_auto_scale": precision**-0.5}
    by_site |= {"s_auto_loc": np.array(seen), "s_auto_scale": np.array(0.75**-0.5)}
    vector = {"auto_loc": np.append(mean, seen), "auto_scale": np.append(precision**-0.5, 0.75**-0.5)}
    return [
        at(AutoNormal(apart), by_site, SIDE, Y, model=apart, num_chains=num_chains),
        at(AutoDiagonalNormal(apart), vector, SIDE, Y, model=apart, num_chains=num_chains),
    ]


def test_mean_field_fits_stay_mean_field_and_chains_stay_apart():
    fits = mean_field_fits(2)
    fits[1].params["auto_loc"] = fits[1].params["auto_loc"] + 0.7 * np.array([[0.0], [1.0]])
    merged = merge(fits)
    assert isinstance(merged.guide, AutoNormal) and merged.num_chains == 2
    precision = 1.0 / np.diag(PRIOR) + 1.0 / 0.25
    mean = (CENTRE / np.diag(PRIOR) + SIDE.T @ Y / 0.25) / precision
    np.testing.assert_allclose(merged.params["w_auto_loc"][0], mean, atol=1e-6)
    np.testing.assert_allclose(merged.params["w_auto_scale"][1], precision**-0.5, atol=1e-6)
    np.testing.assert_allclose(merged.params["s_auto_loc"][0], (0.25 + 0.3) / 1.25, atol=1e-6)
    half = 1.0 / np.diag(PRIOR) + 0.5 / 0.25
    moved = merged.params["w_auto_loc"][1] - merged.params["w_auto_loc"][0]
    np.testing.assert_allclose(moved, 0.7 * half / precision, atol=1e-6)


def test_a_mean_field_fit_and_a_full_one():
    fits = mean_field_fits()
    full = dict(
        auto_loc=fits[1].params["auto_loc"][0], auto_scale_tril=np.diag(fits[1].params["auto_scale"][0])
    )
    mixed = merge([fits[0], at(AutoMultivariateNormal(apart), full, SIDE, Y, model=apart)])
    alone = merge(fits)
    np.testing.assert_allclose(mixed.params["auto_loc"][0, :3], alone.params["w_auto_loc"][0], atol=1e-6)
    root = mixed.params["auto_scale_tril"][0]
    np.testing.assert_allclose(np.diag(root @ root.T)[3], alone.params["s_auto_scale"][0] ** 2, atol=1e-6)


def test_weights_that_sum_to_one_are_the_average_of_the_paper():
    weights = np.array([0.3, 0.7])
    merged = merge(half_fits(AutoMultivariateNormal), weights, X, Y)
    parts = [posterior(rows) for rows in HALVES]
    precision = sum(w * f for w, (_, f) in zip(weights, parts, strict=True))
    mean = np.linalg.solve(precision, sum(w * f @ m for w, (m, f) in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(merged.params["auto_loc"][0], mean, atol=1e-6)
    root = merged.params["auto_scale_tril"][0]
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(precision), atol=1e-6)


def heavy(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.StudentT(4.0, 0.0, 1.0)), 0.5), obs=y)


def test_a_prior_that_is_not_gaussian_is_expanded_at_the_average():
    ends = [(0.5, 4.0), (0.9, 9.0)]
    fits = [
        at(
            AutoNormal(heavy),
            {"mu_auto_loc": np.array(m), "mu_auto_scale": np.array(f**-0.5)},
            1.0,
            model=heavy,
        )
        for m, f in ends
    ]
    merged = merge(fits, [1.0, 0.8])
    total = 4.0 + 0.8 * 9.0
    average = (4.0 * 0.5 + 0.8 * 9.0 * 0.9) / total
    slope = -5.0 * average / (4.0 + average**2)
    bend = -5.0 * (4.0 - average**2) / (4.0 + average**2) ** 2
    precision = total + 0.8 * bend
    np.testing.assert_allclose(merged.params["mu_auto_scale"], precision**-0.5, atol=1e-6)
    np.testing.assert_allclose(merged.params["mu_auto_loc"], average - 0.8 * slope / precision, atol=1e-6)


# --- what cannot be merged


def scalar(prior=None, name="mu", support="real", shape=()):
    prior = dist.Normal(0.0, 1.0) if prior is None else prior

    def model(y):
        mu = numpyro.sample(name, prior.expand(shape).to_event(len(shape)))
        numpyro.sample("y", dist.Normal(mu, 1.0).to_event(len(shape)), obs=y)

    return model  # fmt: skip


def plain(model, guide=AutoNormal, y=0.5, **options):
    return fit(KEY, model, guide(model), ELBO(), optax.adam(0.01), 2, y, progress_bar=False, **options)


@functools.cache
def base():
    return plain(scalar())


def learned(y):
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), scale), obs=y)


def wide_fits():
    params = {"mu_auto_loc": np.array(0.0), "mu_auto_scale": np.array(3.0)}
    model = scalar()
    return [at(AutoNormal(model), params, 0.5, model=model)] * 2


def padded(only_one):
    """Two unknowns, the second of them masked and, if ``only_one``, seen by nothing else."""

    def model(y):
        with numpyro.plate("units", 2), numpyro.handlers.mask(mask=jnp.array([True, False])):
            local = numpyro.sample("local", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(local[0] + (0.0 if only_one else local[1]), 1.0), obs=y)
        if not only_one:
            numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(local[1]))

    return model


MISTAKES = {
    "one fit": (lambda: base(), (), ArgumentTypeError, "must be a list of two or more"),
    "no fit": (lambda: [base(), 3.0], (), ArgumentTypeError, r"fits\[1\] must be a result"),
    "a point": (lambda: [plain(scalar(), AutoDelta)] * 2, (), ArgumentTypeError, "AutoDelta, which is no"),
    "a flow": (
        lambda: [plain(scalar(shape=(2,)), AutoBNAFNormal)] * 2, (), ArgumentTypeError, "AutoBNAFNormal",
    ),
    "a program": (
        lambda: [Fit({}, np.zeros((1, 0)), scalar(), lambda y: None, None, (0.5,))] * 2,
        (), ArgumentTypeError, "no Gaussian in unconstrained space",
    ),
    "chains": (
        lambda: [base(), plain(scalar(), num_chains=2)], (), ArgumentError, "has 2 chains",
    ),
    "weights": (lambda: [base()] * 2, ([1.0],), ArgumentError, "weights must be 2 numbers"),
    "negative": (lambda: [base()] * 2, ([1.0, -1.0],), ArgumentError, "at least 0"),
    "all zero": (lambda: [base()] * 2, ([0.0, 0.0],), ArgumentError, "not all 0"),
    "words": (lambda: [base()] * 2, ("ab",), ArgumentTypeError, "weights must be an array"),
    "other data": (
        lambda: [base(), plain(scalar(), y=0.6)], (), ArgumentError, "weights, data\\)",
    ),
    "too many arguments": (lambda: [base()] * 2, (None, 0.5, 0.5), ArgumentError, "merge: model"),
    "sites": (
        lambda: [base(), plain(scalar(name="nu"))], (), ModelError, "latent site 'mu', and fit 1",
    ),
    "shapes": (
        lambda: [base(), plain(scalar(shape=(2,)))], (None, 0.5), ModelError, r"'mu' has shape",
    ),
    "supports": (
        lambda: [base(), plain(scalar(dist.LogNormal(0.0, 1.0)))], (), ModelError, "has support",
    ),
    "priors": (
        lambda: [base(), plain(scalar(dist.Normal(0.0, 2.0)))], (), ModelError, "prior of site 'mu'",
    ),
    "params": (lambda: [plain(learned)] * 2, (), ModelError, "has param 'scale', a point"),
    "too wide": (wide_fits, (), NonFiniteError, "left in chain 0 at site 'mu' when"),
    "absent": (
        lambda: [plain(padded(True))] * 2, (), ModelError, "masks 1 of the 2 elements of site 'local'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_merged_says_why(name):
    fits, more, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words):
        merge(fits(), *more)


def test_a_masked_element_that_something_sees_is_merged():
    """Its own density comes as a factor: N(0, 1) and N(0, 4), and two observations of their sum."""
    model = padded(False)
    alone, seen = np.diag([1.0, 0.25]), np.ones((2, 2))
    params = [
        {"auto_loc": np.linalg.solve(alone + seen, y * np.ones(2)),
         "auto_scale_tril": np.linalg.cholesky(np.linalg.inv(alone + seen))} for y in (1.0, 2.0)
    ]  # fmt: skip
    fits = [
        at(AutoMultivariateNormal(model), p, y, model=model) for p, y in zip(params, (1.0, 2.0), strict=True)
    ]
    root = merge(fits, None, 1.5).params["auto_scale_tril"][0]
    # neither prior may be counted twice
    np.testing.assert_allclose(np.linalg.inv(root @ root.T), alone + 2.0 * seen, atol=1e-6)


def test_shapes_of_the_arguments_given():
    def rows(y):
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(numpyro.sample("own", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    fits = [plain(rows, y=jnp.ones(3)), plain(rows, y=jnp.zeros(3))]
    with pytest.raises(ModelError, match="'own' has shape \\(6,\\) for the arguments given"):
        merge(fits, None, jnp.ones(6))


def test_a_plate_that_was_subsampled():
    def rows(y):
        with numpyro.plate("rows", len(y), subsample_size=2) as which:
            numpyro.sample("y", dist.Normal(numpyro.sample("own", dist.Normal(0.0, 1.0)), 1.0), obs=y[which])

    with pytest.raises(ModelError, match="'own' of fit 0 lies in a plate that was subsampled"):
        merge([plain(rows, y=jnp.ones(4))] * 2)


def test_rows_that_were_subsampled_are_taken_whole():
    def minibatches(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(y), subsample_size=1):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, 0))

    y, guide = np.array([0.5, 1.0, 2.0, -0.3]), AutoLaplaceApproximation(minibatches)
    halves = [(half, half.sum() / 3.0) for half in (y[:2], y[2:])]
    fits = [at(guide, {"auto_loc": np.array([m])}, half, model=minibatches) for half, m in halves]
    merged = merge(fits, None, y)
    np.testing.assert_allclose(merged.params["auto_loc"], [[y.sum() / 5.0]], rtol=1e-5)
    np.testing.assert_allclose(merged.params["auto_scale_tril"], [[[5.0**-0.5]]], rtol=1e-5)


FACTORS = {
    "prior": (lambda mu, y: -1.5 * mu**2, 4.0),
    "data": (lambda mu, y: -1.5 * mu**2 * jnp.isfinite(y).all(), 7.0),
    "the size of data": (lambda mu, y: -0.75 * len(y) * mu**2, 7.0),
    "data that are looked at": (lambda mu, y: -1.5 * mu**2 if float(y.sum()) > -9.0 else 0.0, 7.0),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_without_data_is_counted_once(name):
    term, precision = FACTORS[name]

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("law", term(mu, y))
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)

    y, guide = np.array([0.5, 1.0, 2.0, -0.3]), AutoLaplaceApproximation(model)
    fits = [at(guide, {"auto_loc": np.array([h.sum() / 6.0])}, h, model=model) for h in (y[:2], y[2:])]
    merged = merge(fits, None, y)
    np.testing.assert_allclose(merged.params["auto_loc"], [[y.sum() / (4.0 + precision)]], rtol=1e-5)
    np.testing.assert_allclose(merged.params["auto_scale_tril"], [[[(4.0 + precision) ** -0.5]]], rtol=1e-5)


def test_wide_fits_can_be_averaged():
    merged = merge(wide_fits(), [0.5, 0.5])
    np.testing.assert_allclose(merged.params["mu_auto_scale"], 3.0, atol=1e-6)


def test_single_precision():
    with jax.enable_x64(False):
        fits = half_fits(AutoLaplaceApproximation)
        merged = merge(fits, None, X, Y)
    np.testing.assert_allclose(merged.params["auto_loc"][0], posterior()[0], atol=1e-4)
