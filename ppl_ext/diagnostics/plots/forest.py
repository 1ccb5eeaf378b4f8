"""Posterior means and intervals of several algorithms, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppl_ext.diagnostics.plots.axes import colour, several_axes, tidy
from ppl_ext.diagnostics.reading import posterior_draws
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.results import NUM_SAMPLES

MAX_ROWS = 40
"""Elements a panel shows of one variable."""


class _Rows(NamedTuple):
    draws: np.ndarray  # (draw, element)
    labels: list[str]


def plot_forest(
    results: Mapping[str, Any],
    var_names: Sequence[str] | None = None,
    axes: Any = None,
    *,
    labels: Mapping[str, str] | None = None,
    colors: Mapping[str, Any] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> np.ndarray:
    """Draw posterior means with 50 % and 94 % intervals, one panel a variable, one colour an algorithm.

    The first result is the reference: a faint line stands at its means. If all variables are scalars, a row
    is an algorithm; otherwise a row is an element, with the algorithms beside each other.

    :param results: by name, each a ``Fit``, a numpyro ``MCMC``, an ArviZ report, or a mapping from variables
        to draws (chain, draw, ...).
    :param var_names: which variables, in order; by default all continuous ones that every result has. The
        first 40 elements are shown.
    :param axes: Matplotlib axes, one for each variable; a new row of them by default.
    :param labels: titles of the panels by variable.
    :param colors: colours by result.
    :param num_samples: draws a chain from a ``Fit``.
    :return: the axes, (variable,).
    :raises ArgumentError: if a result has not the variable, or the axes are too few or too many.
    :raises ArgumentTypeError: if a result holds no draws.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> wide, narrow = rng.normal(size=(4, 200)), 0.8 * rng.normal(size=(1, 500))
    >>> axes = plot_forest({"NUTS": {"mu": wide}, "ELBO": {"mu": narrow}})
    >>> [tick.get_text() for tick in axes[0].get_yticklabels()]
    ['NUTS', 'ELBO']
    """
    if not isinstance(results, Mapping) or not results:
        raise ArgumentTypeError(
            f"results must map names to results, for instance {{'NUTS': mcmc}}; got {type(results).__name__}."
        )
    draws = {name: posterior_draws(result, num_samples) for name, result in results.items()}
    chosen = (
        _common(draws)
        if var_names is None
        else [var_names]
        if isinstance(var_names, str)
        else list(var_names)
    )
    for variable in chosen:
        for name, values in draws.items():
            if variable not in values:
                raise ArgumentError(
                    f"The result '{name}' has no draws of '{variable}'. It has: {sorted(values)}."
                )
    panels = {
        variable: {name: _rows(variable, values[variable]) for name, values in draws.items()}
        for variable in chosen
    }
    for variable, panel in panels.items():
        sizes = {name: rows.draws.shape[1] for name, rows in panel.items()}
        if len(set(sizes.values())) > 1:
            raise ArgumentError(
                f"'{variable}' has a different number of elements in different results: {sizes}."
            )
    inks = {name: (colors or {}).get(name, colour(i)) for i, name in enumerate(results)}
    scalars = all(next(iter(panel.values())).labels == [""] for panel in panels.values())
    height = max(len(next(iter(panel.values())).labels) for panel in panels.values()) * (
        0.12 + 0.14 * len(results)
    )
    axes = several_axes(
        axes, len(chosen), (max(4.5, 2.9 * len(chosen)), max(2.4, 1.2 + height)), "variable", sharey=scalars
    )
    for ax, (variable, panel) in zip(axes, panels.items(), strict=True):
        _panel(ax, panel, inks, scalars)
        tidy(ax, (labels or {}).get(variable, variable))
    if not scalars:
        for name in reversed(list(results)):  # in the order of the rows, which count downwards
            axes[0].plot([], [], color=inks[name], lw=5, label=name)
        handles, names = axes[0].get_legend_handles_labels()
        axes[-1].legend(handles[::-1], names[::-1], frameon=False, loc="best")
    return axes


def _common(draws: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first, *others = draws.values()
    chosen = [
        v for v, x in first.items() if np.asarray(x).dtype.kind == "f" and all(v in other for other in others)
    ]
    if not chosen:
        raise ArgumentError(
            f"The results share no continuous variable: { ({n: sorted(v) for n, v in draws.items()}) }."
        )
    return chosen


def _rows(variable: str, x: Any) -> _Rows:
    """All chains' draws, and a label for each element: its coordinates, if the array knows them."""
    values = np.asarray(x)
    if values.ndim < 2:
        raise ArgumentError(f"Draws of '{variable}' must be (chain, draw, ...), got shape {values.shape}.")
    shape = values.shape[2:]
    coordinates = [
        x[d].values if d in getattr(x, "coords", ()) else range(n)
        for d, n in zip(getattr(x, "dims", ())[2:], shape, strict=False)
    ]
    coordinates = coordinates or [range(n) for n in shape]
    count = int(np.prod(shape))
    indices = [np.unravel_index(i, shape) for i in range(min(count, MAX_ROWS))]
    labels = [", ".join(str(c[i]) for c, i in zip(coordinates, index, strict=True)) for index in indices]
    if count > MAX_ROWS:
        labels[-1] += f" (of {count})"
    return _Rows(values.reshape(-1, count)[:, :MAX_ROWS].astype(np.float64), labels)


def _panel(ax: Any, panel: Mapping[str, _Rows], inks: Mapping[str, Any], scalars: bool) -> None:
    elements = next(iter(panel.values())).labels
    for order, (name, rows) in enumerate(panel.items()):
        offset = order if scalars else 0.8 * ((order + 0.5) / len(panel) - 0.5)
        thick, size = (5.0, 6.0) if scalars else (3.2, 4.0)
        for row in range(len(elements)):
            x, y = rows.draws[:, row], row + offset
            low, lower, upper, high = np.quantile(x, [0.03, 0.25, 0.75, 0.97])
            ax.plot([low, high], [y, y], color=inks[name], lw=thick / 3.0, solid_capstyle="round")
            ax.plot([lower, upper], [y, y], color=inks[name], lw=thick, solid_capstyle="butt")
            ax.plot(x.mean(), y, "o", color="white", mec=inks[name], mew=1.4, ms=size)
            if order == 0:
                ends = (-0.5, len(panel) - 0.5) if scalars else (row - 0.45, row + 0.45)
                ax.plot([x.mean()] * 2, ends, color="0.8", lw=1, zorder=0)
    ticks, bottom = (list(panel), len(panel)) if scalars else (elements, len(elements))
    ax.set_yticks(range(bottom), ticks)
    ax.set_ylim(bottom - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.08)
