"""Ranks of simulation-based calibration, against what uniform ranks would do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import bdtrik

from ppl_ext.diagnostics.calibration.uniformity import uniformity_band
from ppl_ext.diagnostics.plots.axes import GREY, colour, several_axes, tidy
from ppl_ext.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from ppl_ext.diagnostics.calibration.calibrate import Calibration

MAX_LINES = 10
"""Elements of an array that get a line of their own."""


def plot_calibration(
    calibration: "Calibration",
    var_names: Sequence[str] | None = None,
    axes: Any = None,
    *,
    kind: str = "ecdf",
    level: float = 0.95,
    num_bins: int = 20,
) -> np.ndarray:
    r"""Draw the ranks of each quantity, with the band that uniform ranks keep to.

    ``kind="ecdf"``: the share of ranks below each value minus what a uniform distribution has there, in the
    band that all of a uniform line lies in with probability ``level``: a line that leaves it anywhere has p <
    1 - level (see ``p_values``). A line that is up on the left and down on the right has ranks at both ends:
    over-confident. Down and up: too wide. Above the band throughout: draws lie too high.

    ``kind="histogram"``: counts of ranks in bins, with a band for each bin by itself. A valley is
    over-confident, a hill too wide, a slope biased.

    :param calibration: what :func:`~ppl_ext.diagnostics.calibrate` returned.
    :param var_names: which quantities, one panel each; all by default. Of an array, the ecdf shows the ten
        worst elements and the histogram the worst one.
    :param axes: Matplotlib axes, one for each quantity; a new row of them by default.
    :param level: probability of the band.
    :param num_bins: of the histogram, at most the number of different ranks.
    :return: the axes, (quantity,).
    :raises ArgumentError: if a quantity is not there, ``kind`` is neither, or the axes are too few or too
        many.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import numpy as np
    >>> from ppl_ext.diagnostics import Calibration
    >>> ranks = np.random.default_rng(0).integers(0, 100, 200)
    >>> axes = plot_calibration(Calibration({"mu": ranks}, num_draws=99))
    >>> axes[0].get_title()
    'mu, p = 0.52'

    Source: Säilynoja, Bürkner, Vehtari 2022, "Graphical test for discrete uniformity", for the picture and
    the band; Talts et al. 2018 for the histogram.
    """
    if not hasattr(calibration, "ranks") or not hasattr(calibration, "p_values"):
        raise ArgumentTypeError(
            f"plot_calibration takes what calibrate returned, got {type(calibration).__name__}."
        )
    if kind not in ("ecdf", "histogram"):
        raise ArgumentError(f"kind must be 'ecdf' or 'histogram', got {kind!r}.")
    chosen = (
        list(calibration.ranks)
        if var_names is None
        else [var_names]
        if isinstance(var_names, str)
        else list(var_names)
    )
    for name in chosen:
        if name not in calibration.ranks:
            raise ArgumentError(f"There are no ranks of '{name}'. There are: {list(calibration.ranks)}.")
    axes = several_axes(
        axes, len(chosen), (max(4.5, 3.4 * len(chosen)), 3.4), "quantity", sharey=kind == "ecdf"
    )
    for ax, name in zip(axes, chosen, strict=True):
        ranks = calibration.ranks[name].reshape(calibration.num_simulations, -1)
        p = np.ravel(calibration.p_values[name])
        worst_first = np.argsort(p, kind="stable")
        if kind == "ecdf":
            _ecdf(ax, ranks[:, worst_first[:MAX_LINES]], calibration.num_draws, level)
        else:
            _histogram(ax, ranks[:, worst_first[0]], calibration.num_draws, level, num_bins)
        least = f"least of {len(p)} p = " if len(p) > 1 else "p = "
        tidy(
            ax,
            f"{name}, {least}{p.min():.2g}",
            xlabel="share of draws below the truth" if kind == "ecdf" else "draws below the truth",
        )
    tidy(axes[0], ylabel="share of ranks below, minus uniform" if kind == "ecdf" else "simulations")
    return axes


def _ecdf(ax: Any, ranks: np.ndarray, num_draws: int, level: float) -> None:
    band = uniformity_band(len(ranks), num_draws, level)
    x = np.concatenate([[0.0], band.points, [1.0]])
    lower, upper = (np.concatenate([[0.0], edge - band.points, [0.0]]) for edge in (band.lower, band.upper))
    ax.fill_between(
        x, lower, upper, color=GREY, alpha=0.3, lw=0, label=f"{100 * level:.3g} % of uniform ranks"
    )
    ax.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    for i, row in enumerate(ranks.T):
        share = np.bincount(row, minlength=num_draws + 1).cumsum() / len(row)
        y = np.concatenate([[0.0], share[:-1] - band.points, [0.0]])
        out = (y < lower - 1e-12) | (y > upper + 1e-12)
        ax.plot(
            x,
            y,
            color=colour(1) if out.any() else colour(0),
            lw=1.6 if i == 0 else 0.8,
            zorder=3 if out.any() else 2,
        )
    ax.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    ax.set_xlim(0.0, 1.0)


def _histogram(ax: Any, ranks: np.ndarray, num_draws: int, level: float, num_bins: int) -> None:
    # Bins of equally many ranks, or their heights would differ for uniform ranks too.
    values = num_draws + 1
    width = next(w for w in range(max(1, values // num_bins), values + 1) if values % w == 0)
    counts = np.bincount(ranks // width, minlength=values // width)
    share = width / values
    tail = (1.0 - level) / 2.0
    low, high = (np.ceil(bdtrik(q, len(ranks), share)) for q in (tail, 1.0 - tail))
    ax.axhspan(low, high, color=GREY, alpha=0.3, lw=0, zorder=0)
    ax.axhline(len(ranks) * share, color=GREY, lw=0.8, zorder=1)
    left = width * np.arange(len(counts))
    inks = [colour(1) if not low <= c <= high else colour(0) for c in counts]
    ax.bar(left - 0.5, counts, width=0.92 * width, align="edge", color=inks, zorder=2)
    ax.set_xlim(-0.5, num_draws + 0.5)
