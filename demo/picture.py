"""The picture: estimates by algorithm on top; partial pooling, the fits' course and the mixture below."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from demo.report import Run
from ppl_ext.diagnostics import plot_elbo, plot_forest

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


def draw_picture(path: Path, radon: list[Run], counties: pd.DataFrame, faithful: list[Run], eruptions: pd.DataFrame) -> None:
    """Write a PNG. The runs' names are those that ``demo/run.py`` gives them."""
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(15, 10), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.9])
        _draw_forest(top, radon)
        pooling, course, mixture = bottom.subplots(1, 3, width_ratios=[1.35, 1, 1])
        _draw_pooling(pooling, radon, counties)
        _draw_course(course, radon)
        _draw_mixture(mixture, faithful, eruptions)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _draw_forest(figure, runs: list[Run]) -> None:
    labels = {
        "intercept": "Intercept",
        "floor_effect": "First-floor effect",
        "uranium_effect": "Uranium effect",
        "county_sd": "Sd between counties",
        "noise_sd": "Sd between homes",
    }
    title = "Radon: one model, four algorithms (mean, 50 % and 94 % intervals)"
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
    axis.scatter(uranium, mean, s=22, color=colour, lw=0, zorder=4, label=f"partial pooling, {run.name}, 94 %")
    nuts = by_name["NUTS"].draws("county_level").mean(axis=0)
    axis.scatter(uranium, nuts, marker="_", s=42, lw=1.3, color=_COLOURS["NUTS"], zorder=5, label="partial pooling, NUTS")
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
        eruptions["eruptions"], eruptions["waiting"], c=probability, cmap="coolwarm", s=16, lw=0, alpha=0.85, vmin=0, vmax=1
    )
    axis.figure.colorbar(points, ax=axis, label="probability of a long eruption (ELBO, score)", shrink=0.7, pad=0.02)
    lines = {"NUTS": ("-", 2.4), "ELBO, enumerated": ("--", 1.8), "ELBO, score": (":", 2.4)}
    scale, shift = eruptions.std().to_numpy(), eruptions.mean().to_numpy()
    for name, (line, width) in lines.items():
        run = by_name[name]
        centres = np.stack([run.draws("duration").mean(axis=0), run.draws("waiting").mean(axis=0)], axis=-1) * scale + shift
        spreads = run.draws("spread").mean(axis=0) * scale
        for centre, spread in zip(centres, spreads, strict=True):
            axis.add_patch(Ellipse(centre, *(4 * spread), fill=False, ls=line, lw=width, color=_COLOURS[name]))
        axis.plot([], [], ls=line, lw=width, color=_COLOURS[name], label=name)
    axis.set(xlabel="duration of the eruption, minutes", ylabel="waiting time to the next, minutes")
    axis.set_title("Old Faithful: a discrete site")
    axis.legend(loc="upper left", title="components, 2 sd", title_fontsize=8.5, alignment="left")
