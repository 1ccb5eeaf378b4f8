"""A fit in a table and a few sentences."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpyro.diagnostics import split_gelman_rubin

from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.psis import psis

MAX_ROWS = 40
"""Rows a table shows of one site."""

DISAGREE = 1.05
"""R-hat between restarts above which they found different posteriors."""


class Importance(NamedTuple):
    """How well a guide stands for the posterior, one entry per chain; nats, float64.

    ``elbo`` is the mean log weight and ``elbo_se`` its Monte Carlo standard error; ``pareto_k`` and ``ess``
    are those of :func:`~ppl_ext.diagnostics.psis.psis`, NaN where the guide is a point and there is nothing
    to weigh.
    """

    elbo: np.ndarray
    elbo_se: np.ndarray
    pareto_k: np.ndarray
    ess: np.ndarray


def importance(draws: Draws) -> Importance:
    """The evidence lower bound and the importance diagnostics of posterior draws."""
    weights = draws.log_weights
    num_draws = weights.shape[-1]
    smoothed = psis(weights)
    with np.errstate(invalid="ignore"):  # a draw of zero density: the ELBO is -inf, and has no standard error
        elbo = weights.mean(-1)
        se = weights.std(-1, ddof=1) / math.sqrt(num_draws) if num_draws > 1 else np.full_like(elbo, np.nan)
        # With every site at a point the weights are equal, which would read as a perfect guide.
        weighed = np.ptp(weights, axis=-1) > 0.0 if draws.points else np.ones(elbo.shape, bool)
    return Importance(
        elbo, se, np.where(weighed, smoothed.pareto_k, np.nan), np.where(weighed, smoothed.ess, np.nan)
    )


def table(values: Mapping[str, np.ndarray]) -> str:
    """Posterior mean, standard deviation, quantiles, and R-hat between chains, one row per scalar.

    >>> import numpy as np
    >>> print(table({"mu": np.array([[1.0, 2.0, 3.0]])}))
            mean        sd        5%       50%       95%
    mu      2.00      1.00      1.10      2.00      2.90
    """
    rows: list[tuple[str, list[float]]] = []
    hidden: list[str] = []
    num_chains = next(iter(values.values())).shape[0] if values else 1
    for name, x in values.items():
        shape = x.shape[2:]
        flat = np.asarray(x, np.float64).reshape(*x.shape[:2], -1)
        for i in range(min(flat.shape[-1], MAX_ROWS)):
            index = ",".join(map(str, np.unravel_index(i, shape))) if shape else ""
            rows.append((f"{name}[{index}]" if shape else name, _row(flat[..., i], num_chains)))
        if flat.shape[-1] > MAX_ROWS:
            hidden.append(
                f"{name}: {flat.shape[-1] - MAX_ROWS} more rows; see arviz.summary(result.to_arviz())."
            )
    width = max((len(label) for label, _ in rows), default=0)
    header = ["mean", "sd", "5%", "50%", "95%"] + (["r_hat"] if num_chains > 1 else [])
    lines = [" " * width + "".join(f"{h:>10}" for h in header)]
    lines += [f"{label:<{width}}" + "".join(f"{in_table(v):>10}" for v in row) for label, row in rows]
    return "\n".join(lines + hidden)


def _row(x: np.ndarray, num_chains: int) -> list[float]:
    quantiles = np.quantile(x, [0.05, 0.5, 0.95]).tolist()
    row = [x.mean(), x.std(ddof=1) if x.size > 1 else math.nan, *quantiles]
    if num_chains > 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            # R-hat halves each chain; restarts that are constant or three draws long have none.
            row.append(float(split_gelman_rubin(x)) if x.shape[1] >= 4 and np.ptp(x) > 0.0 else math.nan)
    return row


def in_table(x: float) -> str:
    """A number as the tables show it."""
    return f"{x:.2f}" if not math.isfinite(x) or 0.01 <= abs(x) < 1e5 or x == 0.0 else f"{x:.2e}"


def worst_r_hat(values: Mapping[str, np.ndarray]) -> tuple[str, float] | None:
    """The site whose restarts disagree most, and its R-hat; ``None`` with a single chain."""
    worst: tuple[str, float] | None = None
    for name, x in values.items():
        if x.shape[0] < 2 or x.shape[1] < 4:
            continue
        flat = np.asarray(x, np.float64).reshape(*x.shape[:2], -1)
        flat = flat[..., np.ptp(flat, axis=(0, 1)) > 0.0]
        if flat.shape[-1] == 0:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            here = float(np.max(split_gelman_rubin(flat)))
        if worst is None or not here <= worst[1]:
            worst = (name, here)
    return worst


def sentences(draws: Draws, weights: Importance) -> str:
    """One line per chain with its ELBO, tail shape and effective draws, and one on whether the restarts
    agree.
    """
    num_draws = draws.log_weights.shape[-1]
    lines = []
    for c, (elbo, se, k, ess) in enumerate(zip(*weights, strict=True)):
        lines.append(
            f"chain {c}: ELBO {elbo:.2f} ± {se:.2f}, Pareto k {k:.2f}, "
            f"importance ESS {ess:.0f} of {num_draws}"
        )
    worst = worst_r_hat(draws.values)
    if worst is not None:
        site, r_hat = worst
        if r_hat <= DISAGREE:
            lines.append(f"The restarts agree (largest R-hat {r_hat:.3f}, at '{site}').")
        else:
            best = int(np.nanargmax(weights.elbo)) if not np.isnan(weights.elbo).all() else 0
            lines.append(
                f"The restarts disagree (R-hat {r_hat:.2f} at '{site}'): they found different optima, or "
                f"have not got there yet. The best ELBO is chain {best}'s."
            )
        lines.append("R-hat compares restarts; draws within one are independent, so there it tells nothing.")
    return "\n".join(lines)
