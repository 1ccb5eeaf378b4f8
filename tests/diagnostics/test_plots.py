"""Pictures: what is on the axes, and what is said of wrong arguments. How they look is for eyes."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import diagnostics
from ppl_ext.diagnostics import (
    Calibration,
    plot_calibration,
    plot_elbo,
    plot_ess,
    plot_forest,
    plot_functions,
    plot_khat,
    psis,
)
from ppl_ext.diagnostics.calibration.uniformity import uniformity_band
from ppl_ext.diagnostics.report.arviz_export import build_report
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.result import to_arviz

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        level = numpyro.sample("level", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y)


@pytest.fixture(scope="module")
def results():
    """One of each kind of result."""
    y, guide = jnp.array([0.0, 1.0, 2.0]), AutoNormal(model)
    fitted = fit(
        jax.random.key(0), model, guide, ELBO(), optax.adam(0.02), 300, y, num_chains=2, progress_bar=False
    )
    mcmc = MCMC(
        NUTS(model),
        num_warmup=50,
        num_samples=60,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), y)
    run = SVI(model, guide, optax.adam(0.02), Trace_ELBO()).run(jax.random.key(0), 200, y, progress_bar=False)
    return {
        "fit": fitted,
        "mcmc": mcmc,
        "svi": run,
        "report": fitted.to_arviz(num_samples=100, log_likelihood=False),
    }


def drawn(ax):
    """Every picture has to survive being drawn."""
    np.ravel(ax)[0].figure.canvas.draw()
    return ax


# --- objectives by step


def test_elbo_lines_are_running_means_of_minus_the_loss():
    losses = RNG.normal(size=(3, 400))
    ax = drawn(plot_elbo(losses, window=50))
    assert len(ax.lines) == 3 and len(ax.collections) == 3
    for line, trace in zip(ax.lines, -losses, strict=True):
        np.testing.assert_allclose(
            line.get_ydata(), np.convolve(trace, np.ones(50) / 50, mode="valid"), atol=1e-12
        )
        assert line.get_xdata()[0] == 24.5  # a window's middle


def test_elbo_band_is_the_noise_of_a_step_whatever_the_slope():
    losses = 3.0 * RNG.normal(size=(1, 20_000)) - 0.05 * np.arange(20_000)
    ax = plot_elbo(losses, window=5000)
    path = ax.collections[0].get_paths()[0].vertices
    at = path[np.isclose(path[:, 0], path[:, 0].max()), 1]
    # A sd of 3 from 5000 differences has a relative error of 0.012; 0.2 is 5 of them. With the slope it would
    # be 72.
    assert abs(np.ptp(at) / 2.0 - 3.0) < 0.2
    # Standard error in the legend: 3/sqrt(5000) = 0.042.
    assert ax.get_legend_handles_labels()[1][0].endswith("± 0.042")


@pytest.mark.slow
def test_elbo_of_results_and_on_axes_given(results):
    _, ax = plt.subplots()
    for name in ("fit", "report", "svi"):
        assert drawn(plot_elbo(results[name], ax, label=name)) is ax
    assert ax.get_legend_handles_labels()[1] == ["fit, 2 restarts", "report, 2 restarts", "svi"]
    assert len({line.get_color() for line in ax.lines}) == 3


def test_elbo_frame_leaves_out_the_start_but_nothing_later():
    losses = np.concatenate([np.linspace(1e6, 0.0, 100), RNG.normal(size=900)])
    ax = plot_elbo(losses)
    low, high = ax.get_ylim()
    late = ax.lines[0].get_ydata()[200:]
    assert low < late.min() and late.max() < high and low > -100.0


def test_elbo_of_a_run_that_broke_down_ends_in_a_cross():
    losses = RNG.normal(size=(2, 100))
    losses[1, 70:] = np.nan
    ax = drawn(plot_elbo(losses))
    assert "restart 1: not finite at step 70" in ax.get_legend_handles_labels()[1]
    assert drawn(plot_elbo(np.full(10, np.nan))).lines
    assert drawn(plot_elbo([1.0])).lines


# --- weights


def test_khat_points_are_the_largest_weights_and_the_line_their_fit():
    log_weights = 2.0 * RNG.normal(size=1000)
    ax = drawn(plot_khat(log_weights))
    points, line, limit = ax.lines
    size = int(np.ceil(3 * np.sqrt(1000)))
    average = np.log(np.exp(log_weights).mean())
    np.testing.assert_allclose(points.get_xdata(), np.sort(log_weights)[-size:] - average)
    np.testing.assert_allclose(points.get_ydata()[[0, -1]], [(size - 0.5) / 1000, 0.5 / 1000])
    smoothed = np.sort(psis(log_weights).log_weights)[-size:]
    np.testing.assert_allclose(np.diff(line.get_xdata()), np.diff(smoothed), atol=1e-9)
    assert f"k = {psis(log_weights).pareto_k:.2f}" in ax.get_title()
    assert limit.get_label() == "k = 0.7, the limit"


def test_the_limit_of_khat_is_a_tail_of_seven_tenths():
    # Weights with exactly that tail lie along the line: quantiles of the generalised Pareto distribution.
    survival = (np.arange(4000) + 0.5) / 4000
    ax = plot_khat(np.log1p((survival**-0.7 - 1.0) / 0.7))
    points, _, limit = ax.lines
    np.testing.assert_allclose(limit.get_xdata(), points.get_xdata(), atol=0.02)


@pytest.mark.slow
def test_khat_of_results_names_the_worst_chain(results):
    for name in ("fit", "report"):
        ax = drawn(plot_khat(results[name], num_samples=100))
        assert ax.get_title().startswith("worst of 2: Pareto k = ")
    ax = drawn(plot_khat([RNG.normal(size=500), np.full(500, np.nan)], names=["good", "broken"]))
    assert "broken: failed, a log weight is NaN or infinite" in ax.get_legend_handles_labels()[1]


@pytest.mark.parametrize(
    "log_weights",
    [[0.0] * 100, [0.0] + [-np.inf] * 99, [-np.inf] * 30, [0.0], [0.0, -1.0, -1e300], [np.nan] * 3],
)
def test_khat_of_odd_weights_is_drawn(log_weights):
    drawn(plot_khat(log_weights))


# --- draws


def test_forest_shows_means_and_intervals(results):
    draws = {"a": {"mu": RNG.normal(size=(2, 500))}, "b": {"mu": 3.0 + RNG.normal(size=(1, 500))}}
    [ax] = drawn(plot_forest(draws))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(means, [x["mu"].mean() for x in draws.values()])
    wide = [
        line.get_xdata()
        for line in ax.lines
        if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0.0
    ]
    np.testing.assert_allclose(wide[0], np.quantile(draws["a"]["mu"], [0.03, 0.97]))
    np.testing.assert_allclose(wide[1], np.quantile(draws["a"]["mu"], [0.25, 0.75]))


def test_forest_of_every_kind_of_result_on_axes_given(results):
    _, given = plt.subplots(1, 2)
    everything = {
        "fit": results["fit"],
        "NUTS": results["mcmc"],
        "report": results["report"],
        "ArviZ": to_arviz(results["mcmc"]),
    }
    axes = drawn(plot_forest(everything, ["mu", "level"], given, num_samples=50, labels={"mu": "Mean"}))
    assert list(axes) == list(given)
    assert axes[0].get_title() == "Mean" and axes[1].get_title() == "level"
    assert [tick.get_text() for tick in axes[1].get_yticklabels()] == ["0", "1", "2"]
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == list(everything)


def test_forest_names_elements_by_coordinates_and_keeps_to_forty():
    report = build_report(
        {"posterior": {"b": RNG.normal(size=(1, 50, 2))}}, dims={"b": ["who"]}, coords={"who": ["you", "me"]}
    )
    [ax] = plot_forest({"x": report})
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["you", "me"]
    [ax] = plot_forest({"x": {"b": RNG.normal(size=(1, 50, 3, 20))}})
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(labels) == 40 and labels[21] == "1, 1" and labels[-1] == "1, 19 (of 60)"


def test_functions_show_bands_in_the_order_of_the_inputs():
    x = RNG.permutation(np.linspace(0.0, 1.0, 30))
    draws = RNG.normal(size=(2, 400, 1)) * x
    ax = drawn(plot_functions(x, draws, levels=(0.9,), num_lines=4, observed=([0.5], [0.1]), label="f"))
    assert len(ax.lines) == 6 and len(ax.collections) == 1
    assert (np.diff(ax.lines[-2].get_xdata()) > 0.0).all()
    np.testing.assert_allclose(
        ax.lines[-2].get_ydata(), np.median(draws.reshape(-1, 30)[:, np.argsort(x)], axis=0)
    )
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    low, high = np.quantile(draws.reshape(-1, 30), [0.05, 0.95], axis=0)
    np.testing.assert_allclose([edges.min(), edges.max()], [low.min(), high.max()])
    assert plot_functions(x, draws[0], ax) is ax


def test_ess_tells_its_lowest_time():
    ess = np.full((2, 20), 80.0)
    ess[1, 7] = 3.0
    ax = drawn(plot_ess(ess, num_particles=100, time=np.arange(1900, 1920)))
    assert ax.get_title() == "lowest ESS 3 of 100, at 1907; under 50 % at 1 of 20 times"
    ax = drawn(plot_ess(np.tile(ess, (10, 1))))
    assert len(ax.lines) == 2 and len(ax.collections) == 1
    _, given = plt.subplots()
    assert plot_ess([1.0], ax=given) is given


# --- calibration


def test_calibration_lines_turn_red_exactly_where_the_p_value_is_small():
    ranks = {"good": RNG.integers(0, 100, 200), "narrow": np.floor(100 * RNG.beta(0.5, 0.5, 200)).astype(int)}
    result = Calibration(ranks, num_draws=99)
    axes = drawn(plot_calibration(result))
    band = uniformity_band(200, 99)
    for ax, (name, r) in zip(axes, ranks.items(), strict=True):
        line = ax.lines[-1]
        np.testing.assert_allclose(
            line.get_ydata()[1:-1],
            np.bincount(r, minlength=100).cumsum()[:-1] / 200 - band.points,
            atol=1e-12,
        )
        assert (line.get_color() == "#d55e00") == (result.p_values[name] <= 0.05)
    assert {ax.lines[-1].get_color() for ax in axes} == {"#d55e00", "#0072b2"}


def test_calibration_histogram_counts_every_rank_in_equal_bins():
    ranks = RNG.integers(0, 91, (150, 4))
    [ax] = drawn(plot_calibration(Calibration({"beta": ranks}, num_draws=90), kind="histogram", num_bins=20))
    heights = [patch.get_height() for patch in ax.patches if 1.0 < patch.get_width() < 90.0]
    result = Calibration({"beta": ranks}, num_draws=90)
    worst = ranks[:, result.p_values["beta"].argmin()]
    np.testing.assert_array_equal(heights, np.bincount(worst // 7, minlength=13))  # 91 values in 13 bins of 7


# --- the edge


def test_mistakes_are_named(results):
    with pytest.raises(ArgumentError, match="window"):
        plot_elbo(np.zeros(10), window=11)
    with pytest.raises(ArgumentTypeError, match="No losses in MCMC"):
        plot_elbo(results["mcmc"])
    with pytest.raises(ArgumentError, match="no group 'vi_trace'"):
        plot_elbo(to_arviz(results["mcmc"]))
    with pytest.raises(ArgumentError, match="log_weight"):
        plot_khat(to_arviz(results["mcmc"]))
    with pytest.raises(ArgumentTypeError, match=r"does not know its guide: pass ppl_ext.to_arviz"):
        plot_khat(results["svi"])
    with pytest.raises(ArgumentError, match="2 names are needed"):
        plot_khat(np.zeros((2, 50)), names=["one"])
    with pytest.raises(ArgumentError, match="'fit' has no draws of 'sigma'"):
        plot_forest({"fit": results["fit"]}, ["sigma"])
    with pytest.raises(ArgumentError, match="share no continuous variable"):
        plot_forest({"a": {"x": np.zeros((1, 5))}, "b": {"y": np.zeros((1, 5))}})
    with pytest.raises(ArgumentError, match="different number of elements"):
        plot_forest({"a": {"x": np.zeros((1, 5, 2))}, "b": {"x": np.zeros((1, 5, 3))}})
    with pytest.raises(ArgumentError, match=r"'x' must be \(chain, draw, ...\)"):
        plot_forest({"a": {"x": np.zeros(5)}})
    with pytest.raises(ArgumentTypeError, match="results must map names"):
        plot_forest(results["fit"])
    with pytest.raises(ArgumentError, match="axes must be 1"):
        plot_forest({"a": {"x": np.zeros((1, 5))}}, axes=plt.subplots(1, 2)[1])
    with pytest.raises(ArgumentError, match="x must be"):
        plot_functions(np.zeros(3), np.zeros((5, 4)))
    with pytest.raises(ArgumentError, match="levels"):
        plot_functions(np.zeros(3), np.zeros((5, 3)), levels=(90,))
    with pytest.raises(ArgumentError, match="observed"):
        plot_functions(np.zeros(3), np.zeros((5, 3)), observed=([1.0, 2.0], [1.0]))
    for bad in ([-1.0], [np.nan], [101.0]):
        with pytest.raises(ArgumentError, match="ess must lie"):
            plot_ess(bad, num_particles=100)
    with pytest.raises(ArgumentError, match="time must have"):
        plot_ess([1.0, 2.0], time=[0])
    with pytest.raises(ArgumentError, match="kind must be"):
        plot_calibration(Calibration({"mu": np.zeros(3, int)}, 9), kind="pie")
    with pytest.raises(ArgumentTypeError, match="what calibrate returned"):
        plot_calibration({"mu": [1, 2]})


def test_the_pictures_are_listed_and_nothing_else_is_made_up():
    assert {"plot_elbo", "plot_khat", "calibrate"} <= set(dir(diagnostics))
    with pytest.raises(AttributeError, match="plot_nothing"):
        _ = diagnostics.plot_nothing


def test_matplotlib_is_loaded_by_the_first_picture_and_named_when_missing():
    script = """
        import sys
        import ppl_ext
        from ppl_ext.diagnostics import calibrate, plot_elbo
        import ppl_ext.diagnostics.plots
        assert "matplotlib" not in sys.modules
        sys.modules["matplotlib"] = None  # as if it were not installed
        try:
            plot_elbo([1.0, 2.0])
        except ImportError as error:
            assert isinstance(error, ppl_ext.errors.PplExtError)
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'ppl_ext[plots]'" in done.stdout
