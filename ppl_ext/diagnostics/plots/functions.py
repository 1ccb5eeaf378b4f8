"""Draws of a function of one variable: a median, bands, and a few of the draws themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_ext.diagnostics.plots.axes import colour, one_axes, tidy
from ppl_ext.errors import ArgumentError


def plot_functions(
    x: Any,
    draws: Any,
    ax: Any = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    num_lines: int = 10,
    observed: tuple[Any, Any] | None = None,
    label: str | None = None,
    color: Any = None,
) -> Any:
    """Draw functions of one variable: pointwise central bands, the pointwise median, and some of the draws.

    The bands hold for each input by itself; the lines show what they do not: how smooth a single function is,
    and how its values at two inputs go together.

    :param x: (point,), the inputs, in any order.
    :param draws: (..., point), for instance (chain, draw, point): the functions' values there.
    :param ax: Matplotlib axes to draw on; new ones by default.
    :param levels: probabilities of the bands.
    :param num_lines: how many of the draws to show, evenly spaced among them.
    :param observed: inputs and outputs of data, drawn as points.
    :param label: name in a legend.
    :param color: one colour for all of it.
    :return: the axes.
    :raises ArgumentError: if shapes do not fit together, or a level is not a probability.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import numpy as np
    >>> x = np.linspace(0.0, 1.0, 20)
    >>> slopes = np.random.default_rng(0).normal(size=(2, 100, 1))
    >>> ax = plot_functions(x, slopes * x, num_lines=5)
    >>> len(ax.lines), len(ax.collections)
    (6, 2)
    """
    x, draws = np.asarray(x, np.float64), np.asarray(draws, np.float64)
    if x.ndim != 1 or draws.ndim < 2 or draws.shape[-1] != len(x):
        raise ArgumentError(
            f"x must be (point,) and draws (..., point), got shapes {x.shape} and {draws.shape}."
        )
    if any(not 0.0 < level < 1.0 for level in levels):
        raise ArgumentError(f"levels must lie between 0 and 1, got {tuple(levels)}.")
    if observed is not None and (len(observed) != 2 or np.shape(observed[0]) != np.shape(observed[1])):
        raise ArgumentError(
            f"observed must be inputs and outputs of one shape, got {[np.shape(o) for o in observed]}."
        )
    order = np.argsort(x, kind="stable")
    x, draws = x[order], draws.reshape(-1, draws.shape[-1])[:, order]
    ax = one_axes(ax)
    ink = colour(len({line.get_color() for line in ax.lines})) if color is None else color
    widest_first = sorted(levels, reverse=True)
    for i, level in enumerate(widest_first):
        low, high = np.quantile(draws, [0.5 - level / 2.0, 0.5 + level / 2.0], axis=0)
        ax.fill_between(x, low, high, color=ink, alpha=0.16 + 0.08 * i, lw=0, zorder=1)
    for i in np.linspace(0, len(draws) - 1, min(num_lines, len(draws))).astype(int):
        ax.plot(x, draws[i], color=ink, lw=0.6, alpha=0.5, zorder=2)
    ax.plot(x, np.median(draws, axis=0), color=ink, lw=2.0, zorder=3, label=label)
    if observed is not None:
        ax.plot(
            np.ravel(observed[0]), np.ravel(observed[1]), "o", color="0.15", ms=4, mew=0, alpha=0.8, zorder=4
        )
    bands = " and ".join(f"{100 * level:.3g} %" for level in sorted(levels))
    tidy(ax, f"median, {bands} bands" if levels else None, xlabel="x", ylabel="f(x)")
    if label is not None:
        ax.legend(frameon=False)
    return ax
