"""Episodes of different lengths: what a model reads off its rows is what it would be without padding, in
training and in every report.

Linear-Gaussian episodes of one local site are (A, b) in closed form, and so is training on them; padding that
is seen changes both.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy.stats import norm

from ppl_ext import log_density
from ppl_ext.errors import ModelError
from ppl_ext.meta import ArrivingStream, EpisodeStream, ExactLinearGaussian, LaplaceGGN, evaluate, kinds, lift
from ppl_ext.meta.distributions.low_rank import LowRank
from ppl_ext.meta.modes import mass_elsewhere

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LENGTHS = (2, 5, 1, 7, 5)
ROWS = [
    (RNG.normal(2.0, 1.0, n).astype(np.float32), RNG.normal(i, 1.0, n).astype(np.float32))
    for i, n in enumerate(LENGTHS)
]


def effect(scale=1.0):
    return numpyro.sample("effect", dist.Normal(0.0, scale))


def observe(mean, y):
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def plain(x, y):
    observe(effect(), y)


def by_factor(x, y):
    numpyro.factor("y", dist.Normal(effect(), 1.0).log_prob(y).sum())


def in_no_plate(x, y):
    numpyro.sample("y", dist.Normal(effect(), 1.0).expand([len(y)]).to_event(1), obs=y)


def centred(x, y, mean=None):
    observe(effect() + x - (x.mean() if mean is None else mean), y)


def averaged(x, y, n=None):
    observe(effect() / (len(x) if n is None else n), y)


def process(x, y):
    covariance = jnp.exp(-0.5 * (x[:, None] - x) ** 2) + jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(effect() * jnp.ones(len(x)), covariance), obs=y)


def of_prior(x, y):
    observe(effect(1.0 * len(x)), y)


def quadratics(model):
    """(A, b) of every episode."""
    for x, y in ROWS:
        n = len(x)
        if model is averaged:
            yield 1 / n, y.sum() / n
        elif model is process:
            inverse = np.linalg.inv(np.exp(-0.5 * (x[:, None] - x) ** 2) + np.eye(n))
            yield inverse.sum(), inverse.sum(0) @ y
        else:
            yield (
                n + (1 / n**2 if model is of_prior else 0.0),
                (y - (x - x.mean() if model is centred else 0.0)).sum(),
            )


def trained(model, num_steps):
    """Coordinate ascent in closed form: location and scale of the shared law, its df, each episode's mean;
    see ``NIW.posterior``.
    """
    a, b = np.array(list(quadratics(model)), float).T
    loc, scale, df = 0.0, 1.0, 2.0
    for _ in range(num_steps):
        precision = df / scale
        mean, variance = (b + precision * loc) / (a + precision), 1 / (a + precision)
        loc = mean.sum() / (0.01 + len(a))
        scale, df = 1.0 + 0.01 * loc**2 + (variance + (mean - loc) ** 2).sum(), 2.0 + len(a)
    precision = df / scale
    return loc, scale, df, (b + precision * loc) / (a + precision)


def run(model, episodes=ROWS, **options):
    options = {"local_solver": ExactLinearGaussian(), "num_steps": 20, "progress_bar": False} | options
    return lift(model, ["effect"], keep_prior=model is of_prior).fit(KEY, episodes, **options)


@pytest.fixture(scope="module")
def fits():
    return {}


SEES = (by_factor, in_no_plate, centred, averaged, process, of_prior)


@pytest.mark.parametrize("model", [plain, *SEES])
def test_training_reports_and_adapting_are_those_without_padding(model, fits):
    fit = fits[model] = run(model)
    assert fit.hierarchy.pads == (model is plain)
    loc, scale, df, means = trained(model, 20)
    np.testing.assert_allclose(
        [fit.niw.loc[0], fit.niw.scale_matrix[0, 0], fit.niw.df], [loc, scale, df], rtol=2e-4
    )
    np.testing.assert_allclose(fit.posteriors(EpisodeStream(ROWS)).mean[:, 0], means, rtol=2e-4, atol=1e-5)
    if model is of_prior:
        return
    precision = (df + 3) / scale
    for (a, b), episode in zip(quadratics(model), ROWS, strict=True):
        alone = fit.adapt(KEY, *episode, prior="mode", num_samples=2)
        np.testing.assert_allclose(
            alone.mean[0], (b + precision * loc) / (a + precision), rtol=2e-4, atol=1e-5
        )


@pytest.mark.parametrize("model", [centred, averaged])
def test_scores_are_those_without_padding(model, fits):
    """The predictive law of a row is Normal, so its log density is known; draws of θ leave an error of about
    0.01.
    """
    fit = fits.get(model) or run(model)
    # Of other lengths than the supports, and so that copies of a last row would tell.
    query = [(np.append(x, x[0] + 9), np.append(y, y[0]) + 4) for x, y in ROWS]
    scores = evaluate(fit, KEY, ROWS, query, prior="mode", num_samples=4000, batch_size=3)
    precision = float((fit.niw.df + 3) / fit.niw.scale_matrix[0, 0])
    for i, ((a, b), (x, y)) in enumerate(zip(quadratics(model), query, strict=True)):
        mean, variance = (b + precision * fit.niw.loc[0]) / (a + precision), 1 / (a + precision)
        slope, away = (1.0, x - x.mean()) if model is centred else (1 / len(x), 0.0)
        expected = -norm(slope * mean + away, np.sqrt(1 + slope**2 * variance)).logpdf(y).mean()
        np.testing.assert_allclose(scores.nll[i], expected, rtol=0.02, atol=0.03)
        assert len(scores.pit[i]) == len(y)


GIVEN = {
    centred: [(x, y, np.full((), x.mean())) for x, y in ROWS],
    averaged: [(x, y, np.full((), float(len(x)), np.float32)) for x, y in ROWS],
}


@pytest.mark.parametrize("model", [centred, averaged])
@pytest.mark.parametrize("arriving", [False, True])
def test_minibatches_of_mixed_length_are_those_of_the_model_that_is_given_what_it_reads(model, arriving):
    """The same episodes with the mean, or the number, of their rows as an argument are padded, rightly; all
    else is the same.
    """

    def of(episodes):
        stream = ArrivingStream(lambda: iter(episodes * 3)) if arriving else episodes
        lifted = lift(model, ["effect"], num_episodes=len(episodes))
        options = {
            "local_solver": ExactLinearGaussian(),
            "num_steps": 5,
            "batch_size": 3,
            "progress_bar": False,
        }
        return lifted.fit(KEY, stream, **options)

    seen, given = of(ROWS), of(GIVEN[model])
    assert not seen.hierarchy.pads and given.hierarchy.pads
    np.testing.assert_allclose(seen.niw.loc, given.niw.loc, rtol=1e-4)
    np.testing.assert_allclose(seen.niw.scale_matrix, given.niw.scale_matrix, rtol=1e-4)
    for part, same in zip(seen.terms, given.terms, strict=True):
        np.testing.assert_allclose(part, same, rtol=1e-4, atol=1e-5)


def with_slope(x, y, mean=None):
    """Two local sites, and a shared slope and noise."""
    w = numpyro.sample("effect", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    slope = numpyro.sample("slope", dist.Normal(0.0, 3.0))
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    at = x - (x.mean() if mean is None else mean)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(w[0] + w[1] * at + slope * at**2, noise), obs=y)


@pytest.mark.parametrize(
    ("solver", "structure"), [(LaplaceGGN(2), "full"), (LaplaceGGN(2, structure="low_rank"), "diagonal")]
)
def test_shared_values_learn_the_same(solver, structure):
    def of(episodes):
        lifted = lift(with_slope, ["effect"], structure=structure)
        return lifted.fit(
            KEY, episodes, local_solver=solver, optim=optax.adam(0.05), num_steps=6, progress_bar=False
        )

    seen, given = of(ROWS), of(GIVEN[centred])
    assert not seen.hierarchy.pads and given.hierarchy.pads
    for found, same in zip(
        jax.tree.leaves((seen.niw, seen.shared)), jax.tree.leaves((given.niw, given.shared)), strict=True
    ):
        np.testing.assert_allclose(found, same, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen.losses, given.losses, rtol=1e-4)
    np.testing.assert_allclose(
        mass_elsewhere(seen, ROWS, KEY, 2, 2), mass_elsewhere(given, GIVEN[centred], KEY, 2, 2), atol=1e-3
    )
    of_seen, of_given = seen.posteriors(EpisodeStream(ROWS)), given.posteriors(EpisodeStream(GIVEN[centred]))
    np.testing.assert_allclose(of_seen.mean, of_given.mean, rtol=1e-3, atol=1e-4)
    if structure == "diagonal":  # of low rank: the rows of a factor are an episode's outputs, in any order
        of_seen, of_given = (
            q._replace(covariance=jax.vmap(LowRank.diagonal)(q.covariance)) for q in (of_seen, of_given)
        )
    np.testing.assert_allclose(of_seen.covariance, of_given.covariance, rtol=1e-3, atol=1e-4)


def test_reports_kinds_and_the_plain_hierarchy(fits):
    """Log likelihoods of a report at its own draws; memberships; the log density of the hierarchy as one
    model.
    """
    fit = fits.get(averaged) or run(averaged)
    report = fit.to_arviz(EpisodeStream(ROWS), KEY, 20)
    drawn = report.posterior["effect"].values[0]
    expected = np.stack(
        [norm(drawn[:, i, None] / len(x), 1.0).logpdf(y).sum(1) for i, (x, y) in enumerate(ROWS)], axis=1
    )
    np.testing.assert_allclose(report.log_likelihood["episodes"].values[0], expected, rtol=1e-3)
    many, given = ROWS * 2, GIVEN[averaged] * 2
    of_kinds = [
        kinds(
            lift(averaged, ["effect"]).untrained(e, ExactLinearGaussian()), KEY, e, num_rounds=5, num_starts=2
        )
        for e in (many, given)
    ]
    np.testing.assert_allclose(of_kinds[0].memberships, of_kinds[1].memberships, atol=1e-2)
    np.testing.assert_allclose(of_kinds[0].losses, of_kinds[1].losses, rtol=1e-3)
    values = {"covariance": jnp.eye(1), "mean": jnp.zeros(1), "theta": jnp.ones((len(ROWS), 1))}
    totals = [
        log_density(lift(averaged, ["effect"]).as_model(EpisodeStream(e)), values).total
        for e in (ROWS, GIVEN[averaged])
    ]
    np.testing.assert_allclose(*totals, rtol=1e-5)


def test_an_episode_without_rows_stays_at_the_prior():
    none = (np.zeros(0, np.float32), np.zeros(0, np.float32))
    fit = run(averaged, [none, *ROWS])
    assert not fit.hierarchy.pads
    q = fit.posteriors(EpisodeStream([*ROWS, none]))
    np.testing.assert_allclose(q.mean[-1], fit.niw.loc, rtol=1e-5)
    np.testing.assert_allclose(q.covariance[-1], fit.niw.scale_matrix / fit.niw.df, rtol=1e-4)
    scores = evaluate(fit, KEY, [none, *ROWS[:2]], [ROWS[1], none, ROWS[0]], num_samples=50)
    assert np.isfinite(scores.nll[[0, 2]]).all() and np.isnan(scores.nll[1]) and len(scores.pit[1]) == 0


def test_a_hierarchy_of_one_length_meets_others():
    """Lifted over episodes of five rows, it says of others what it says of each alone."""
    fit = run(centred, [e for e in ROWS if len(e[0]) == 5])
    together = fit.posteriors(EpisodeStream(ROWS))
    for i, episode in enumerate(ROWS):
        np.testing.assert_allclose(
            together.mean[i], fit.posteriors(EpisodeStream([episode])).mean[0], rtol=1e-5
        )


def test_padding_is_kept_where_it_is_not_seen():
    """Rows in a plate are masked; rows that are alike, in the episodes looked at or in all, do not hide a
    mean.
    """

    def masked(x, y):
        mean = effect()
        with numpyro.plate("rows", len(y)), numpyro.handlers.mask(mask=y > -2.0):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    constant = [(np.full(len(x), 1.0, np.float32), y) for x, y in ROWS[:-1]] + [ROWS[-1]]
    assert lift(masked, ["effect"]).hierarchy(ROWS).pads and lift(plain, ["effect"]).hierarchy(ROWS).pads
    throughout = [(np.full(len(x), 1.0, np.float32), y) for x, y in ROWS]
    for episodes in (constant, throughout):
        assert (
            not lift(centred, ["effect"]).hierarchy(episodes).pads
            and lift(plain, ["effect"]).hierarchy(episodes).pads
        )


def scaled_by_rows(x, y):
    strength = numpyro.sample("strength", dist.Normal(0.0, 1.0 * len(x)))
    observe(effect() + strength, y)


def a_site_for_each_row(x, y):
    with numpyro.plate("rows", len(y)):
        each = numpyro.sample("each", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(each + effect(), 1.0), obs=y)


def bounded_by_rows(x, y):
    observe(numpyro.sample("effect", dist.Uniform(0.0, 1.0 * len(x))), y)


@pytest.mark.parametrize(
    ("model", "local", "words"),
    [
        (scaled_by_rows, ["effect"], "the prior of shared site 'strength' depends on the episode"),
        (
            a_site_for_each_row,
            ["effect", "each"],
            "the shape or the support of local site 'each' depends on the episode",
        ),
        (
            bounded_by_rows,
            ["effect"],
            "the shape or the support of local site 'effect' depends on the episode",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_training(model, local, words):
    with pytest.raises(ModelError, match=words):
        lift(model, local).hierarchy(ROWS)


def test_a_mesh_needs_padding():
    mesh = jax.make_mesh((1,), ("episodes",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(
        ModelError, match="'averaged' sees more of its rows than a plate over them does.*Leave mesh out"
    ):
        run(averaged, mesh=mesh)
