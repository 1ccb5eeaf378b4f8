"""The objective by step: one line a restart, and the noise around it."""

from typing import Any

import numpy as np

from ppl_ext.diagnostics.plots.axes import colour, one_axes, tidy
from ppl_ext.diagnostics.reading import losses
from ppl_ext.errors import ArgumentError

_MARK = "ppl_ext.elbo"


def plot_elbo(
    result: Any,
    ax: Any = None,
    *,
    window: int | None = None,
    noise: bool = True,
    label: str | None = None,
    color: Any = None,
) -> Any:
    r"""Draw the objective (minus the loss) of each restart, smoothed, with the noise of single steps as a
    band.

    The line is the mean over a window of w steps, the band one standard deviation s of single steps to each
    side, told from the differences of neighbours so that a slope is no noise. Where a run has settled, its
    last window estimates the objective with standard error :math:`s/\sqrt w`, which the legend gives:
    restarts whose numbers differ by many of those ended in different places. The vertical axis leaves out the
    first fifth of the run, which would flatten the rest. A run that stopped being finite ends in a cross.

    :param result: a ``Fit``, an ``SVIRunResult``, a report with a ``vi_trace``, or losses (step,) or (chain,
        step), in nats.
    :param ax: Matplotlib axes to draw on; new ones by default. Several results may go on the same axes.
    :param window: w; by default a fiftieth of the run.
    :param noise: whether to draw the band.
    :param label: name of the result, if it shares the axes with others; its restarts then have one colour and
        one line in the legend.
    :param color: one colour for all restarts.
    :return: the axes.
    :raises ArgumentTypeError: if there are no losses in ``result``.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import numpy as np
    >>> steps = np.arange(1000)
    >>> losses = 5.0 * np.exp(-steps / 100.0) + np.random.default_rng(0).normal(size=(2, 1000))
    >>> ax = plot_elbo(losses)
    >>> ax.get_ylabel()
    'objective, nats'
    """
    traces = -losses(result)
    num_steps = traces.shape[1]
    window = max(1, num_steps // 50) if window is None else window
    if not isinstance(window, int | np.integer) or not 1 <= window <= num_steps:
        raise ArgumentError(
            f"window must be a whole number of steps between 1 and {num_steps}, got {window!r}."
        )
    ax = one_axes(ax)
    shared = (
        color if color is not None or label is None else colour(len({line.get_color() for line in ax.lines}))
    )
    for chain, trace in enumerate(traces):
        here = colour(chain) if shared is None else shared
        finite = np.isfinite(trace)
        length = num_steps if finite.all() else int(finite.argmin())
        width = min(window, length)
        if width:
            steps, mean, sd = _smooth(trace[:length], width)
            name = (
                f"restart {chain}: {_estimate(mean[-1], sd[-1] / np.sqrt(width))}"
                if label is None and length == num_steps
                else None
            )
            ax.plot(
                steps, mean, color=here, lw=1.4 if label is None else 1.0, alpha=0.9, label=name, gid=_MARK
            )
            if noise:
                ax.fill_between(
                    steps, mean - sd, mean + sd, color=here, alpha=0.25 / np.sqrt(len(traces)), lw=0, zorder=1
                )
        if length < num_steps:
            last = (steps[-1], mean[-1]) if width else (0, 0.0)
            ax.plot(
                *last,
                "X",
                color=here,
                ms=9,
                mec="white",
                label=f"restart {chain}: not finite at step {length}",
                gid=_MARK,
            )
    if label is not None:
        restarts = f", {len(traces)} restarts" if len(traces) > 1 else ""
        ax.plot([], [], color=shared, lw=2, label=label + restarts)
    _frame(ax)
    tidy(ax, xlabel="step", ylabel="objective, nats")
    ax.legend(loc="lower right", frameon=False)
    return ax


def _smooth(trace: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, running mean, and running standard deviation about the trend."""
    mean = np.lib.stride_tricks.sliding_window_view(trace, width).mean(-1)
    if width < 2:
        return np.arange(len(mean)), mean, np.zeros_like(mean)
    squares = np.lib.stride_tricks.sliding_window_view(np.square(np.diff(trace)), width - 1).mean(-1)
    return np.arange(len(mean)) + (width - 1) / 2.0, mean, np.sqrt(squares / 2.0)


def _estimate(value: float, error: float) -> str:
    digits = 2 if not 0.0 < error < np.inf else max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _frame(ax: Any) -> None:
    """Fit the vertical axis to where the runs have got to, over all results on these axes."""
    from matplotlib.transforms import Bbox

    lines = [np.asarray(line.get_ydata(), np.float64) for line in ax.lines if line.get_gid() == _MARK]
    late = np.concatenate([y[len(y) // 5 :] for y in lines if len(y)] or [np.zeros(1)])
    bands = [collection.get_datalim(ax.transData) for collection in ax.collections]
    low, high = late.min(), late.max()
    if bands and (spread := [path.vertices for band in ax.collections for path in band.get_paths()]):
        edges = np.concatenate([v[v[:, 0] >= 0.2 * Bbox.union(bands).x1, 1] for v in spread])
        low, high = min(low, edges.min()), max(high, edges.max())
    margin = 0.05 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
