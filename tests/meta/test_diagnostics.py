"""Scores of new episodes against exact predictive laws, other modes, the ArviZ reports, and the pictures."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.meta import (
    NIW,
    EpisodeStream,
    LaplaceGGN,
    adapted_to_arviz,
    evaluate,
    expected_calibration_error,
    lift,
    mass_elsewhere,
    plot_episodes,
)
from tests.meta.test_lift import KEY, NOISE, STREAM, episodes, quiet

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

NEW = episodes((6, 9, 4, 7), seed=5)
SUPPORT, QUERY = [(x[:2], y[:2]) for x, y in NEW], [(x[2:], y[2:]) for x, y in NEW]


@pytest.fixture(scope="module")
def scores(fitted):
    return evaluate(fitted, KEY, SUPPORT, QUERY, num_samples=2000, prior="mode")


@pytest.mark.slow
def test_densities_are_those_of_the_exact_predictive_law(fitted, scores):
    """Bayesian linear regression with the mode's Gaussian as its prior, row by row."""
    for i, ((x, y), (at, of)) in enumerate(zip(SUPPORT, QUERY, strict=True)):
        post = fitted.adapt(KEY, x, y, prior="mode", num_samples=1)
        f = np.stack([np.ones(len(at)), at], 1)
        sd = np.sqrt(np.einsum("ni,ij,nj->n", f, post.covariance, f) + NOISE**2)
        exact = -np.asarray(dist.Normal(f @ np.asarray(post.mean), sd).log_prob(of)).mean()
        assert abs(scores.nll[i] - exact) < 0.15
        assert np.abs(scores.pit[i] - norm.cdf((of - f @ np.asarray(post.mean)) / sd)).max() < 4.5 * np.sqrt(
            0.25 / 2000
        )


def test_coverage_and_calibration(scores, capsys):
    assert scores.accuracy is None and scores.coverage.shape == scores.calibration_error.shape == (4,)
    inside = [np.mean((u >= 0.05) & (u <= 0.95)) for u in scores.pit]
    np.testing.assert_allclose(scores.coverage, inside)
    assert scores.pooled_calibration_error < 0.3
    scores.print_summary()
    assert "coverage" in capsys.readouterr().out


def test_expected_calibration_error_by_hand():
    confidence, correct = np.array([0.95, 0.95, 0.55, 0.55, 1.0]), np.array([True, False, True, True, True])
    assert (
        abs(expected_calibration_error(confidence, correct) - (abs(2.0 - 2.9) + abs(2.0 - 1.1)) / 5) < 1e-12
    )
    with pytest.raises(ArgumentError, match="shapes must be equal"):
        expected_calibration_error(confidence, correct[:2])


def coin(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=w * x), obs=y)


@pytest.mark.slow
def test_classes_have_accuracy_and_confidence():
    x = np.array([4.0, -4.0, 4.0, -4.0], np.float32)
    data = [(x, (s * x > 0).astype(np.int32)) for s in (1.0, -1.0, 1.0)]
    fit = quiet(lift(coin, ["w"]), data, local_solver=LaplaceGGN(num_steps=5), num_steps=20)
    scores = evaluate(fit, KEY, data, data)
    assert (scores.accuracy == 1.0).all() and scores.coverage is None
    assert (
        all((0.5 < c).all() and (c <= 1).all() for c in scores.confidence)
        and 0 < scores.pooled_calibration_error < 0.5
    )
    # all are right
    np.testing.assert_allclose(scores.nll, [-np.log(c).mean() for c in scores.confidence], rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(query=QUERY[:2]), ArgumentError, "4 supports and 2 queries"),
        (dict(level=1.5), ArgumentError, r"level must lie in \(0, 1\)"),
        (dict(fit=3), ArgumentTypeError, "must be a MetaFit"),
        (dict(num_samples=0), ArgumentError, "num_samples must be a positive"),
        (dict(support=[(x, y * np.nan) for x, y in SUPPORT]), NonFiniteError, "in episode 0 .*'y'"),
    ],
)
def test_what_evaluate_refuses(fitted, change, error, message):
    with pytest.raises(error, match=message):
        evaluate(**{"fit": fitted, "rng_key": KEY, "support": SUPPORT, "query": QUERY, **change})


# --- other modes


def folded(y):
    """The sign of w is not to be seen: two modes alike."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(w**2, 0.5), obs=y)


def test_a_posterior_with_two_modes_is_flagged():
    """Symmetric but for the prior, whose mean is 0.1: the other mode's share follows from the prior's density
    at the two.
    """
    stream = EpisodeStream([np.full(4, 4.0, np.float32), np.full(4, 4.0, np.float32)])
    share = mass_elsewhere(lift(folded, ["w"], prior=NIW([0.1], 5.0, [[4.0]], 4.0)).untrained(stream), stream)
    expected = 1 / (1 + np.exp(0.5 * 1.0 * ((2 + 0.1) ** 2 - (2 - 0.1) ** 2)))  # precision n/V = 1
    np.testing.assert_allclose(share, expected, atol=0.03)


@pytest.mark.slow
def test_one_mode_is_not_flagged(fitted):
    assert mass_elsewhere(fitted, STREAM).max() < 1e-3
    with pytest.raises(ArgumentTypeError, match="must be a MetaFit"):
        mass_elsewhere(3, STREAM)
    with pytest.raises(ModelError, match=r"'y' has data of shape \(1,\)"):
        mass_elsewhere(fitted, [(NEW[0][0], NEW[0][1][:1])])
    with pytest.raises(NonFiniteError, match="mass_elsewhere: in episode 0 .*'y'"):
        mass_elsewhere(fitted, [(NEW[0][0], NEW[0][1] * np.nan)])


# --- reports and pictures


@pytest.mark.slow
def test_the_report_of_a_fit(fitted, scores):
    names = list("abcdef")
    report = fitted.to_arviz(STREAM, num_samples=400, labels=names)
    w = report.posterior["w"]
    assert w.dims[:3] == ("chain", "draw", "episode")
    assert w.sel(episode="d").shape == (1, 400, 2)
    q = fitted.posteriors(STREAM)
    sd = np.sqrt(np.diagonal(q.covariance, axis1=1, axis2=2))
    assert np.abs((w.values[0].mean(0) - q.mean) / sd).max() < 4.5 / np.sqrt(400)
    assert report.posterior["mean"].shape == (1, 400, 2) and report.posterior["covariance"].shape == (
        1,
        400,
        2,
        2,
    )
    x, y = episodes()[2]
    by_hand = dist.Normal(w.values[0, :, 2, 0] + w.values[0, :, 2, 1] * x[0], NOISE).log_prob(y[0])
    np.testing.assert_allclose(
        report.log_likelihood["episodes"].values[0, :, 2], by_hand, rtol=1e-3, atol=1e-4
    )
    assert report.vi_trace["loss"].shape == (1, 60)
    assert az.summary(report, var_names=["w"]).shape[0] == 12
    scored = fitted.to_arviz(NEW, num_samples=3, scores=scores)
    np.testing.assert_allclose(scored.constant_data["nll"], scores.nll)
    with pytest.raises(ArgumentError, match="labels must be one for each of the 6"):
        fitted.to_arviz(STREAM, labels=["a"])
    with pytest.raises(ArgumentError, match="scores must be what evaluate returned"):
        fitted.to_arviz(STREAM, scores=scores)


@pytest.mark.slow
def test_the_report_of_new_episodes(fitted):
    posts = {name: fitted.adapt(KEY, *e, num_samples=7) for name, e in zip("xy", NEW[:2], strict=True)}
    report = adapted_to_arviz(posts)
    assert report.posterior["w"].shape == (1, 7, 2, 2) and report.posterior["episode"].values.tolist() == [
        "x",
        "y",
    ]
    np.testing.assert_array_equal(
        posts["y"].to_arviz("y").posterior["w"].values[:, :, 0], report.posterior["w"].sel(episode="y").values
    )
    with pytest.raises(ArgumentTypeError, match="what adapt returned"):
        adapted_to_arviz({"x": 3})
    with pytest.raises(ArgumentTypeError, match="must be a dict from labels"):
        adapted_to_arviz(posts["x"])
    with pytest.raises(ArgumentError, match="no posterior"):
        adapted_to_arviz({})


@pytest.mark.slow
def test_pictures_take_axes_and_return_them(fitted):
    figure, given = plt.subplots(1, 2)
    axes = plot_episodes(
        fitted, NEW[:2], np.linspace(-3, 3, 20), given, labels=["one", "two"], num_samples=200
    )
    assert list(axes) == list(given) and axes[1].get_title() == "two" and axes[0].get_ylabel() == "y"
    lower = np.asarray(axes[0].collections[0].get_paths()[0].vertices)
    assert (
        lower[:, 1].min()
        < axes[0].lines[0].get_ydata().min()
        < axes[0].lines[0].get_ydata().max()
        < lower[:, 1].max()
    )
    plt.close(figure)
    with pytest.raises(ArgumentError, match="axes must be 2"):
        plot_episodes(fitted, NEW[:2], np.zeros(3), given[:1])
    with pytest.raises(ArgumentError, match="no observed site 'z'"):
        plot_episodes(fitted, NEW[:1], np.zeros(3), site="z", num_samples=5)
    with pytest.raises(ArgumentTypeError, match="at must be an array of numbers, got 'a'"):
        plot_episodes(fitted, NEW[:1], "a")
    with pytest.raises(ArgumentError, match=r"at must have shape \(n,\)"):
        plot_episodes(fitted, NEW[:1], np.zeros((3, 1)))
    plt.close("all")
