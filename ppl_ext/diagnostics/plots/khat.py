"""The tail of importance weights, beside the generalised Pareto distribution that is fitted to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_ext.diagnostics.plots.axes import GREY, colour, name_all, one_axes, tidy
from ppl_ext.diagnostics.psis import pareto_k_threshold, psis
from ppl_ext.diagnostics.reading import log_weights
from ppl_ext.runtime.results import NUM_SAMPLES


def plot_khat(
    result: Any, ax: Any = None, *, names: Sequence[str] | None = None, num_samples: int = NUM_SAMPLES
) -> Any:
    r"""Draw the largest importance weights, sorted, with their fitted tail, the shape k and the importance
    ESS.

    Points are the weights of the tail: the i-th largest of S at height (i - 1/2)/S, the share of draws that
    weigh as much or more; its place is the logarithm of its weight, 0 being the average weight. A line is the
    fitted tail, :math:`\Pr(w > u + x) \propto (1 + k x/\sigma)^{-1/k}`, cut at the largest weight, as the
    smoothed weights are. Far to the right and high up the heavy tails lie: single draws that outweigh all the
    others. The dashed line is a tail of k = 0.7 from the same start, the heaviest that can be relied on.

    :param result: a ``Fit``, its draws, a report of a guide, or log weights (draw,) or (chain, draw), in
        nats.
    :param ax: Matplotlib axes to draw on; new ones by default.
    :param names: of the chains, for the legend.
    :param num_samples: draws a chain from a ``Fit``.
    :return: the axes; the title names the worst k.
    :raises ArgumentError: if ``result`` has no importance weights.
    :raises ArgumentTypeError: if it is the wrong kind of object.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import numpy as np
    >>> ax = plot_khat(0.5 * np.random.default_rng(0).normal(size=4000))
    >>> ax.get_title()
    'Pareto k = -0.05 (good up to 0.70), ESS 3118 of 4000'

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto smoothed importance sampling", section 3.
    """
    weights = log_weights(result, num_samples)
    weights = weights.reshape(-1, weights.shape[-1])
    smoothed, shapes, ess = psis(weights)
    names = name_all(names, len(weights), "chain")
    ax = one_axes(ax)
    num_draws = weights.shape[-1]
    for i, (raw, smooth, k) in enumerate(zip(weights, smoothed, shapes, strict=True)):
        label = f"{names[i]}: k = {k:.2f}, ESS {ess[i]:.0f}" if len(weights) > 1 else None
        if np.isnan(k):
            ax.plot(
                [], [], "o", color=colour(i), label=f"{names[i]}: failed, a log weight is NaN or infinite"
            )
            continue
        _tail(ax, raw, smooth, num_draws, colour(i), label)
    _limit(ax, weights[0], num_draws)
    worst = int(np.argmax(np.where(np.isnan(shapes), np.inf, shapes)))
    whose = f"worst of {len(weights)}: " if len(weights) > 1 else ""
    limit = pareto_k_threshold(num_draws)
    title = (
        f"{whose}Pareto k = {shapes[worst]:.2f} (good up to {limit:.2f}), ESS {ess[worst]:.0f} of {num_draws}"
    )
    ax.set_yscale("log")
    tidy(
        ax, title, xlabel="log weight, nats above the average weight", ylabel="share of draws that weigh more"
    )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax


def _split(raw: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Indices of the tail and of the rest, each from small to large, and the logarithm of the average
    weight.
    """
    size = int(np.ceil(min(num_draws / 5.0, 3.0 * np.sqrt(num_draws))))  # as psis chooses it
    order = np.argsort(raw, kind="stable")
    order = order[np.isfinite(raw[order])]
    average = float(np.logaddexp.reduce(raw[order]) - np.log(num_draws)) if len(order) else 0.0
    return order[-size:], order[:-size], average


def _shares(tail: np.ndarray, num_draws: int) -> np.ndarray:
    return (np.arange(len(tail), 0, -1) - 0.5) / num_draws


def _tail(ax: Any, raw: np.ndarray, smooth: np.ndarray, num_draws: int, ink: str, label: str | None) -> None:
    """One row of weights: points, and the fitted line."""
    tail, rest, average = _split(raw, num_draws)
    # Below the tail the smoothed weights are the raw ones up to a constant.
    shift = raw[rest[0]] - smooth[rest[0]] if len(rest) else 0.0
    share = _shares(tail, num_draws)
    ax.plot(raw[tail] - average, share, "o", ms=4, color=ink, alpha=0.55, mew=0, label=label)
    ax.plot(
        smooth[tail] + shift - average,
        share,
        color=ink,
        lw=1.6,
        label="fitted tail" if label is None else None,
    )


def _limit(ax: Any, raw: np.ndarray, num_draws: int, k: float = 0.7) -> None:
    """A tail of k = 0.7 through the threshold and the point where half of the tail is left."""
    tail, rest, average = _split(raw, num_draws)
    if not len(rest) or np.isnan(raw).any():
        return
    top = raw[tail[-1]]
    start, middle = np.exp(raw[rest[-1]] - top), np.exp(raw[tail[len(tail) // 2]] - top)
    left = _shares(tail, num_draws) * num_draws / len(tail)
    limit = start + (middle - start) * (left**-k - 1.0) / (2.0**k - 1.0)
    if middle > start > 0.0:
        ax.plot(
            np.log(limit) + top - average,
            _shares(tail, num_draws),
            "--",
            color=GREY,
            lw=1.2,
            label="k = 0.7, the limit",
            zorder=1,
        )
