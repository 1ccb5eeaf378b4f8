"""A picture for each chapter."""

from functools import wraps

import arviz as az
import matplotlib
import numpy as np
import pandas as pd

from demo.report import Run
from ppl_ext.diagnostics import plot_elbo, plot_forest, plot_functions
from ppl_ext.meta import plot_episodes

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen
from matplotlib.patches import Ellipse  # noqa: E402  for the same reason

_COLOURS = {
    "NUTS": "#222222",
    "ELBO": "#0072b2",
    "IWELBO (K=8)": "#d55e00",
    "Renyi (0.5, K=8)": "#009e73",
    "ELBO, enumerated": "#0072b2",
    "ELBO, score": "#d55e00",
}
_IN_ORDER = ("#222222", "#0072b2", "#d55e00", "#009e73")
_PRIOR = ("#d55e00", "#0072b2", "#222222")
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
}


def _styled(draw):
    """The picture in the demo's style, and closed, so that nothing but the page holds it."""

    @wraps(draw)
    def drawn(*args):
        with plt.rc_context(_STYLE):
            figure = draw(*args)
            plt.close(figure)
            return figure

    return drawn


@_styled
def radon(runs: list[Run], counties: pd.DataFrame):
    """Parameters by algorithm on top, partial pooling and the fits' course below. The runs' names are the
    chapter's.
    """
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.9])
    _draw_forest(top, runs)
    pooling, course = bottom.subplots(1, 2, width_ratios=[1.35, 1])
    _draw_pooling(pooling, runs, counties)
    _draw_course(course, runs)
    return figure


@_styled
def faithful(runs: list[Run], eruptions: pd.DataFrame):
    figure, axis = plt.subplots(figsize=(8, 6), layout="constrained")
    _draw_mixture(axis, runs, eruptions)
    return figure


@_styled
def nile(
    years: np.ndarray, flow: np.ndarray, paths: dict[str, np.ndarray], runs: list[Run], names: list[str]
):
    """Bands of the level by sampler, and densities of the parameters by algorithm."""
    figure = plt.figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.6, 1])
    axis = left.subplots()
    axis.plot(years, flow, ".", color="0.6", label="flow")
    for (name, draws), colour in zip(paths.items(), _IN_ORDER, strict=False):
        low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
        axis.plot(years, middle, color=colour, lw=1.8, label=name)
        axis.plot(years, np.stack([low, high], 1), color=colour, lw=0.9, ls="--")
    axis.axvline(1898.5, color="0.8", lw=1, zorder=0)
    axis.annotate("the first dam at Aswan", (1899, flow.max()), fontsize=8.5, color="0.35")
    axis.set(xlabel="year", ylabel="flow, 10$^{10}$ m³")
    axis.set_title("The level: median and 90 %")
    axis.legend(loc="lower left")
    titles = {"level_sd": "sd of the level's steps", "noise_sd": "sd of the noise"}
    for panel, name in zip(right.subplots(len(names), 1), names, strict=True):
        for run, colour in zip(runs, _IN_ORDER, strict=False):
            x, density = az.kde(run.draws(name))[:2]
            panel.plot(x, density, color=colour, lw=1.8, label=run.name, ls="-" if run is runs[0] else "--")
        panel.set(yticks=[])
        panel.set_title(titles[name])
    right.axes[0].legend()
    return figure


@_styled
def crash(
    grid: np.ndarray,
    prior: dict[str, np.ndarray],
    posterior: dict[str, np.ndarray],
    seen: dict,
    unseen: dict,
    units: pd.DataFrame,
):
    """Functions of the prior above, of the posterior below, in milliseconds and g."""
    figure = plt.figure(figsize=(13, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    mean, sd = units["mean"], units["sd"]
    ms = grid * sd["times"] + mean["times"]
    for axis, (name, values), colour in zip(top.subplots(1, 3), prior.items(), _PRIOR, strict=True):
        plot_functions(ms, values * sd["accel"] + mean["accel"], axis, color=colour)
        axis.set(xlabel="milliseconds after the impact", ylabel="acceleration, g")
        axis.set_title(name)
    for axis, (name, values), colour in zip(
        bottom.subplots(1, 2, sharey=True), posterior.items(), _PRIOR, strict=False
    ):
        plot_functions(ms, values * sd["accel"] + mean["accel"], axis, color=colour, num_lines=5)
        for data, ink, size in ((seen, "0.25", 14), (unseen, "#e69f00", 18)):
            at, y = (np.asarray(data[k]) * sd[u] + mean[u] for k, u in (("x", "times"), ("y", "accel")))
            axis.scatter(at, y, s=size, color=ink, lw=0, zorder=5)
        axis.set(xlabel="milliseconds after the impact", ylabel="acceleration, g")
        axis.set_title(f"posterior under the {name}")
    return figure


@_styled
def chicks(fit, columns: list[np.ndarray], names: list[int], shown: int):
    """New chicks: what was shown, what is predicted, and what came."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained", sharex=True, sharey=True)
    six = [(c, n) for c, n in zip(columns, names, strict=True)][: axes.size]
    plot_episodes(
        fit,
        [(x[:shown], y[:shown]) for (x, y), _ in six],
        np.linspace(0.0, 2.1, 60),
        axes.ravel(),
        labels=[f"chick {n}" for _, n in six],
    )
    for axis, ((x, y), _) in zip(axes.ravel(), six, strict=True):
        axis.plot(x[shown:], y[shown:], "o", color="#e69f00", ms=5, label="came later")
        axis.set(
            xlabel="age, 10 days" if axis in axes[-1] else "",
            ylabel="log weight, g" if axis in axes[:, 0] else "",
        )
    axes[0, 0].legend(loc="upper left")
    return figure


def _draw_forest(figure, runs: list[Run]) -> None:
    labels = {
        "intercept": "Intercept",
        "floor_effect": "First-floor effect",
        "uranium_effect": "Uranium effect",
        "county_sd": "Sd between counties",
        "noise_sd": "Sd between homes",
    }
    title = "One model, four algorithms (mean, 50 % and 94 % intervals)"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    axes = figure.subplots(1, len(labels), sharey=True)
    plot_forest({run.name: run.report for run in runs}, list(labels), axes, labels=labels, colors=_COLOURS)
    for axis in axes:
        axis.set_title(axis.get_title(loc="left"), fontweight="normal", fontsize=10.5)


def _draw_pooling(axis, runs: list[Run], counties: pd.DataFrame) -> None:
    by_name = {run.name: run for run in runs}
    run = by_name["IWELBO (K=8)"]
    colour = _COLOURS[run.name]
    level = run.draws("county_level")
    mean, (low, high) = level.mean(axis=0), np.quantile(level, [0.03, 0.97], axis=0)
    uranium, raw, homes = (counties[column].to_numpy() for column in ("uranium", "raw_level", "homes"))
    axis.vlines(uranium, raw, mean, color="0.88", lw=0.9, zorder=1)
    axis.scatter(uranium, raw, s=5 + 2 * homes, color="0.75", lw=0, zorder=2, label="raw mean (area: homes)")
    axis.vlines(uranium, low, high, color=colour, lw=0.9, alpha=0.5, zorder=3)
    axis.scatter(
        uranium, mean, s=22, color=colour, lw=0, zorder=4, label=f"partial pooling, {run.name}, 94 %"
    )
    nuts = by_name["NUTS"].draws("county_level").mean(axis=0)
    axis.scatter(
        uranium,
        nuts,
        marker="_",
        s=42,
        lw=1.3,
        color=_COLOURS["NUTS"],
        zorder=5,
        label="partial pooling, NUTS",
    )
    ends = np.array([uranium.min(), uranium.max()])
    line = run.draws("intercept").mean() + run.draws("uranium_effect").mean() * ends
    axis.plot(ends, line, color=colour, lw=1.2, ls="--", zorder=2, label="county-level regression")
    for index in np.argsort(-homes)[:2]:
        axis.annotate(
            f"{counties['name'].iloc[index]}, {homes[index]} homes",
            xy=(uranium[index], raw[index]),
            xytext=(uranium[index] + 0.06, raw[index] - 0.4),
            fontsize=8.5,
            color="0.35",
            arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.8, "shrinkB": 6},
        )
    axis.set(xlabel="log uranium in the county's soil", ylabel="log radon at basement level")
    axis.set_title("Small counties are pulled to the regression")
    axis.legend(loc="upper left")
    axis.set_ylim(0.3, raw.max() + 0.25)


def _draw_course(axis, runs: list[Run]) -> None:
    """The objective by step, one line per restart."""
    for run in runs:
        if run.losses is not None:
            plot_elbo(run.losses, axis, noise=False, label=run.name, color=_COLOURS[run.name])
    axis.set_title("Bounds while fitting")


def _draw_mixture(axis, runs: list[Run], eruptions: pd.DataFrame) -> None:
    by_name = {run.name: run for run in runs}
    probability = by_name["ELBO, score"].draws("kind").mean(axis=0)
    points = axis.scatter(
        eruptions["eruptions"],
        eruptions["waiting"],
        c=probability,
        cmap="coolwarm",
        s=16,
        lw=0,
        alpha=0.85,
        vmin=0,
        vmax=1,
    )
    axis.figure.colorbar(
        points, ax=axis, label="probability of a long eruption (ELBO, score)", shrink=0.7, pad=0.02
    )
    lines = {"NUTS": ("-", 2.4), "ELBO, enumerated": ("--", 1.8), "ELBO, score": (":", 2.4)}
    scale, shift = eruptions.std().to_numpy(), eruptions.mean().to_numpy()
    for name, (line, width) in lines.items():
        run = by_name[name]
        centres = (
            np.stack([run.draws("duration").mean(axis=0), run.draws("waiting").mean(axis=0)], axis=-1) * scale
            + shift
        )
        spreads = run.draws("spread").mean(axis=0) * scale
        for centre, spread in zip(centres, spreads, strict=True):
            axis.add_patch(
                Ellipse(centre, *(4 * spread), fill=False, ls=line, lw=width, color=_COLOURS[name])
            )
        axis.plot([], [], ls=line, lw=width, color=_COLOURS[name], label=name)
    axis.set(xlabel="duration of the eruption, minutes", ylabel="waiting time to the next, minutes")
    axis.set_title("Two kinds of eruption")
    axis.legend(loc="upper left", title="components, 2 sd", title_fontsize=8.5, alignment="left")
