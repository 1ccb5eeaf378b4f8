"""A smoothed series: what was known of the states at each time, what is known of them in the end, and how
well particles did.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_ext.diagnostics.plots.axes import GREY, colour, new_column, several_axes, tidy
from ppl_ext.diagnostics.plots.ess import plot_ess
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.results import NUM_SAMPLES

MAX_LINES = 3
"""Elements of an array-valued site that get a band of their own."""


def plot_smoothing(
    result: Any,
    var_names: Sequence[str] | str | None = None,
    axes: Any = None,
    *,
    level: float = 0.9,
    num_samples: int = NUM_SAMPLES,
    observed: Any = None,
    time: Any = None,
) -> np.ndarray:
    """Draw the states of a smoothed series by time, one panel a site, then the effective sample size, then
    the renewal rate.

    Each state has a filled band, given all observations, and one between dashed lines, given those up to its
    own time; at the end they meet. Of a particle Gibbs result there is no filter; its last panel is the share
    of sweeps that changed the path: near zero, the sweeps do not move there and need more particles.

    :param result: of :func:`~ppl_ext.smoothing.smooth` or :class:`~ppl_ext.smoothing.ParisParticleGibbs`.
    :param var_names: sites of the step, one panel each; all by default. Of an array the first three elements
        are drawn.
    :param axes: Matplotlib axes, one for each panel; a new column of them by default. An exact result has no
        panel of sample sizes.
    :param level: probability of the bands.
    :param num_samples: trajectories that the bands of :func:`smooth` are made from.
    :param observed: (time,) or (time, series), data drawn as points on the first panel.
    :param time: (time,), labels of the steps; 0, 1, ... by default.
    :return: the axes, (panel,).
    :raises ArgumentError: if a site is not there, a level is no probability, shapes do not fit or the axes
        are too few or too many.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext.smoothing import smooth
    >>> def model(y):
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(0.9 * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> y = jnp.array([0.3, -0.1, 0.5])
    >>> axes = plot_smoothing(smooth(model, num_particles=50).run(jax.random.key(0), y), observed=y)
    >>> [ax.get_ylabel() for ax in axes]
    ['x', 'effective sample size']
    """
    if not hasattr(result, "trajectories") and not (
        hasattr(result, "filtered") and hasattr(result, "sample")
    ):
        raise ArgumentTypeError(
            f"plot_smoothing takes what smooth or ParisParticleGibbs returned, got {type(result).__name__}."
        )
    if not 0.0 < level < 1.0:
        raise ArgumentError(f"level must lie between 0 and 1, got {level}.")
    levels = [0.5 - level / 2.0, 0.5, 0.5 + level / 2.0]
    renewal = np.asarray(result.renewal, np.float64)[1:] if hasattr(result, "renewal") else None
    length = len(renewal) if renewal is not None else len(result.log_evidence_increments)
    if not length:
        raise ArgumentError("The series is empty, so there is nothing to draw.")
    smoothed, filtered = _bands(result, levels, num_samples, length)
    names = (
        list(smoothed)
        if var_names is None
        else [var_names]
        if isinstance(var_names, str)
        else list(var_names)
    )
    for name in names:
        if name not in smoothed:
            raise ArgumentError(f"There is no site '{name}' in the step. There are: {list(smoothed)}.")
    time = np.arange(length) if time is None else np.asarray(time)
    if time.shape != (length,):
        raise ArgumentError(f"time must have the length of the series, {length}, got shape {time.shape}.")
    count = len(names) + (result.ess is not None) + (renewal is not None)
    figsize = (8.0, 2.0 + 1.8 * count)
    axes = new_column(count, figsize) if axes is None else several_axes(axes, count, figsize, "panel")
    for ax, name in zip(axes, names, strict=False):
        _states(ax, time, smoothed[name], filtered.get(name), level)
        tidy(ax, ylabel=name)
    if observed is not None:
        seen = np.asarray(observed)
        if not len(names) or seen.shape[:1] != (length,):
            raise ArgumentError(
                f"observed must have the length of the series, {length}, got shape {seen.shape}."
            )
        axes[0].plot(time, seen.reshape(length, -1), ".", color="0.3", ms=4, zorder=4, label="observed")
        _legend(axes[0])
    if result.ess is not None:
        ess = np.asarray(result.ess)[..., -length:]
        plot_ess(ess, result.how.get("num_particles"), axes[len(names)], time=time)
        axes[len(names)].set_xlabel("" if renewal is not None else "time")
    if renewal is not None:
        axes[-1].plot(time, renewal, color=colour(2), lw=1.4)
        axes[-1].axhline(0.0, color=GREY, lw=0.8, zorder=0)
        axes[-1].set_ylim(-0.02, 1.02)
        tidy(axes[-1], f"lowest renewal {renewal.min():.2g}, at {time[renewal.argmin()]}", ylabel="renewal")
    tidy(axes[-1], xlabel="time")
    return axes


def _bands(result: Any, levels: list[float], num_samples: int, length: int) -> tuple[dict, dict]:
    """Quantiles by site of a step, (level, time, ...): smoothed ones, and filtered ones where there are."""
    if hasattr(result, "trajectories"):
        drawn = {name: np.asarray(x).reshape(-1, *np.shape(x)[2:]) for name, x in result.trajectories.items()}
        steps = [
            name for name, x in drawn.items() if x.shape[1:2] == (length,) and name not in _before(result)
        ]
        return {name: np.quantile(drawn[name], levels, axis=0) for name in steps}, {}
    filtered = {name: np.asarray(x) for name, x in result.filtered(levels).items()}
    drawn = {name: np.asarray(x) for name, x in result.sample(num_samples=num_samples).items()}
    return {name: np.quantile(drawn[name], levels, axis=0) for name in filtered}, filtered


def _before(result: Any) -> frozenset[str]:
    """Sites before the scan, whose first axis may have the length of the series by chance."""
    return frozenset(getattr(result, "initial_names", ()))


def _states(
    ax: Any, time: np.ndarray, smoothed: np.ndarray, filtered: np.ndarray | None, level: float
) -> None:
    flat = smoothed.reshape(*smoothed.shape[:2], -1)
    for i in range(min(flat.shape[2], MAX_LINES)):
        low, middle, high = flat[..., i]
        several = f"[{i}]" if flat.shape[2] > 1 else ""
        ax.fill_between(
            time,
            low,
            high,
            color=colour(i),
            alpha=0.28,
            lw=0,
            label=f"smoothed{several}, {100 * level:.3g} %",
        )
        ax.plot(time, middle, color=colour(i), lw=1.5)
        if filtered is not None:
            edges = filtered.reshape(*filtered.shape[:2], -1)[[0, 2], :, i].T
            lines = ax.plot(time, edges, color=colour(i), lw=0.9, ls="--", alpha=0.8)
            lines[0].set_label(f"filtered{several}, {100 * level:.3g} %")
    _legend(ax)


def _legend(ax: Any) -> None:
    ax.legend(frameon=False, ncols=3, fontsize="small", loc="upper right")
