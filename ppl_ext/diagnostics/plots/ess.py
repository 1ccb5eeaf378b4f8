"""The effective sample size by time: where a particle method, or anything with weights, runs thin."""

from typing import Any

import numpy as np

from ppl_ext.diagnostics.plots.axes import GREY, colour, one_axes, tidy
from ppl_ext.errors import ArgumentError

FEW_LINES = 8
"""More chains than this are drawn as a band."""


def plot_ess(
    ess: Any, num_particles: int | None = None, ax: Any = None, *, time: Any = None, threshold: float = 0.5
) -> Any:
    r"""Draw the effective sample size of weighted particles by time.

    .. math:: \text{ESS}_t = \frac{(\sum_n w_t^n)^2}{\sum_n (w_t^n)^2}

    A dip is a time whose observation the proposal did not see coming; the lowest is marked. Up to eight
    chains are lines, more are a median with the band of the middle 90 % of them.

    :param ess: (time,) or (..., time), between 0 and N; all axes but the last are chains or draws.
    :param num_particles: N. With it the axis reaches up to N and the line below which to resample is drawn,
        at ``threshold`` times N.
    :param ax: Matplotlib axes to draw on; new ones by default.
    :param time: (time,), labels of the steps; 0, 1, ... by default.
    :param threshold: between 0 and 1.
    :return: the axes; the title tells the lowest ESS, when it was, and how often it was under the threshold.
    :raises ArgumentError: if shapes do not fit together, or an ESS is negative, not a number, or above N.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> ax = plot_ess([90.0, 12.0, 70.0, 88.0], num_particles=100)
    >>> ax.get_title()
    'lowest ESS 12 of 100, at 1; under 50 % at 1 of 4 times'

    Source: Kong, Liu, Wong 1994, for the effective sample size.
    """
    ess = np.asarray(ess, np.float64)
    if ess.ndim == 0 or ess.size == 0:
        raise ArgumentError(f"ess must be (time,) or (..., time), got shape {ess.shape}.")
    lines = ess.reshape(-1, ess.shape[-1])
    time = np.arange(lines.shape[1]) if time is None else np.asarray(time)
    if time.shape != lines.shape[1:]:
        raise ArgumentError(f"time must have the length of ess, {lines.shape[1]}, got shape {time.shape}.")
    if not (lines >= 0.0).all() or (
        num_particles is not None and (lines > num_particles * (1.0 + 1e-5)).any()
    ):
        raise ArgumentError(
            f"ess must lie between 0 and num_particles={num_particles}, got {lines.min()} to {lines.max()}."
        )
    ax = one_axes(ax, (8.0, 3.4))
    if len(lines) <= FEW_LINES:
        for i, line in enumerate(lines):
            ax.plot(
                time,
                line,
                color=colour(i),
                lw=1.2,
                alpha=0.9,
                marker="o" if lines.shape[1] <= 60 else None,
                ms=3,
            )
    else:
        low, middle, high = np.quantile(lines, [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(time, low, high, color=colour(0), alpha=0.25, lw=0)
        ax.plot(time, middle, color=colour(0), lw=1.4)
    chain, step = np.unravel_index(lines.argmin(), lines.shape)
    ax.plot(time[step], lines[chain, step], "v", color="#d55e00", ms=8, mec="white", zorder=5)
    title = f"lowest ESS {lines[chain, step]:.3g}"
    if num_particles is not None:
        ax.axhline(threshold * num_particles, color=GREY, ls="--", lw=1, zorder=0)
        ax.set_ylim(0.0, 1.04 * num_particles)
        under = (lines < threshold * num_particles).any(axis=0).sum()
        title += (
            f" of {num_particles}, at {time[step]}; under {100 * threshold:.3g} % at {under} of "
            f"{lines.shape[1]} times"
        )
    else:
        ax.set_ylim(bottom=0.0)
        title += f", at {time[step]}"
    tidy(ax, title, xlabel="time", ylabel="effective sample size")
    return ax
