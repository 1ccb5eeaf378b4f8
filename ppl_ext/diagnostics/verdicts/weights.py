"""What importance weights say of the draws that they belong to."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.psis import importance_ess, pareto_k_threshold, psis
from ppl_ext.diagnostics.report.summary import worst_r_hat
from ppl_ext.diagnostics.verdicts.chains import APART, FAR_APART
from ppl_ext.runtime.verdict import Level, Reason

SHIFT, SPREAD = 0.3, 0.3
"""A mean off by more standard deviations of the posterior, or a spread by a larger share of it, is bad."""

SURE, SURE_ENOUGH = 4.0, 2.0
"""Standard errors by which weights must say so: of a thousand numbers the worst is some three off. The second
where the weights have a heavy tail: what they miss then, they would move further still.
"""

FEW, NEARLY_ALL, FEW_EFFECTIVE = 0.25, 0.95, 50.0
"""An importance ESS below the first part of the draws is worth a word; above the second, weights are so even
that a heavy tail of them can hardly move a mean or a spread. Below the third, weighted moments are noise.
"""


FEWEST = 25
"""Draws of which a tail can be told."""


ALONE = "one restart: weights say nothing of a peak that no draw has seen; take num_chains=4"
NO_SPREAD = "it says nothing of the posterior around it"
REMEDY = "try a richer guide, a tighter objective, or NUTS"


class Move(NamedTuple):
    """How far importance weights move the draws of a site that they move most.

    ``shift``: of a mean, in weighted standard deviations; ``ratio``: the draws' standard deviation by the
    weighted one. ``sure``: whether these are too far off by more than so many standard errors.
    """

    site: str
    shift: float
    ratio: float
    sure: bool

    @property
    def far(self) -> bool:
        return self.shift > SHIFT or abs(self.ratio - 1.0) > SPREAD


def moved(
    values: Mapping[str, np.ndarray], log_weights: np.ndarray, ess: float, sure: float = SURE
) -> Move | None:
    r"""How far normalised weights W (draw,) move means and standard deviations of values (draw, ...).

    .. math:: \Big|\tfrac1S \sum_s x_s - \sum_s W_s x_s\Big| \Big/ \operatorname{sd}_W(x), \qquad
        \operatorname{sd}(x) / \operatorname{sd}_W(x)

    Standard errors are those of ``ess`` independent Gaussian draws. None where nothing has a spread.
    """
    weights, worst = np.exp(log_weights)[:, None], None
    noise = sure / math.sqrt(max(ess, 1.0))
    for name, x in values.items():
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        flat = flat[:, np.isfinite(flat).all(0) & (np.ptp(flat, axis=0) > 0.0)]
        mean = (weights * flat).sum(0)
        sd = np.sqrt((weights * (flat - mean) ** 2).sum(0))
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.abs(flat.mean(0) - mean) / sd
            ratio = flat.std(0) / sd
        off = np.abs(ratio - 1.0)
        excess = np.fmax(shift / SHIFT, off / SPREAD)
        clear = np.fmax((shift - noise) / SHIFT, (off - ratio * noise / math.sqrt(2.0)) / SPREAD) > 1.0
        for rank in (clear & np.isfinite(excess), np.isfinite(excess)):
            if rank.any():
                at = int(np.argmax(np.where(rank, excess, -np.inf)))
                found = Move(name, float(shift[at]), float(ratio[at]), bool(clear[at]))
                if worst is None or (found.sure, excess[at]) > worst[0]:
                    worst = (found.sure, excess[at]), found
                break
    return None if worst is None else worst[1]


def reasons_of_draws(draws: Draws) -> list[Reason]:
    """What the weights of a guide's draws say, chain by chain: the worst chain counts, each is a restart of
    its own.
    """
    found = []
    num_chains = draws.log_weights.shape[0]
    for c in range(num_chains):
        log_weights = np.asarray(draws.log_weights[c], np.float64)
        values = {n: x[c] for n, x in draws.values.items()}  # where nothing moves, nothing is looked at
        whose = f"chain {c}: " if num_chains > 1 else ""
        if draws.points and np.ptp(log_weights) == 0.0:
            found.append(
                Reason("unknown", f"{whose}a point estimate: the guide has no spread, so {NO_SPREAD}")
            )
            continue
        given = f" (given the point values of {', '.join(map(repr, draws.points))})" if draws.points else ""
        level, words = reason_of_weights(log_weights, values)
        found.append(Reason(level, f"{whose}{words}{given}"))
    return found


def reasons_of_fit(
    draws: Draws, losses: np.ndarray, moves: Callable[[], list[Reason]] = list
) -> list[Reason]:
    """What a guide's draws, its restarts and its losses (chain, step) say.

    :param moves: what short chains from the draws say of them, asked where weights are not good or few count
        (:func:`~ppl_ext.diagnostics.verdicts.stays.reasons_of_ends`); nothing where they cannot tell.
    """
    found, losses = reasons_of_draws(draws), np.asarray(losses)
    count = importance_ess(draws.log_weights).min() >= FEW * draws.log_weights.shape[-1]
    if not count or any(r.level != "good" for r in found):
        found = moves() or found
    if draws.points and any(r.level == "good" for r in found):
        held = ", ".join(map(repr, draws.points))
        found.append(Reason("unknown", f"the guide is a point at {held}, in whole or in part: {NO_SPREAD}"))
    if (worst := worst_r_hat(draws.values)) is not None:
        site, r = worst
        level: Level = "good" if r <= APART else "doubtful" if r <= FAR_APART else "bad"
        agree = "agree" if level == "good" else "disagree"
        found.append(Reason(level, f"the restarts {agree} (largest R-hat {r:.3f}, at '{site}')"))
    else:
        found.append(Reason("unknown", ALONE))
    if losses.size and (skipped := int(np.isnan(losses).sum())):
        found.append(Reason("doubtful", f"{skipped} of {losses.size} steps were not finite"))
    return found


def reason_of_weights(log_weights: np.ndarray, values: Mapping[str, np.ndarray]) -> Reason:
    """What log weights of draws (draw,) say of the draws, by site (draw, ...)."""
    num = len(log_weights)
    if not np.isfinite(log_weights).all():
        impossible = int(np.isneginf(log_weights).sum())
        if impossible < num and impossible == num - np.isfinite(log_weights).sum():
            return Reason(
                "bad",
                f"{impossible} of {num} draws have density zero under the model: the guide leaves its "
                "support",
            )
        return Reason("bad", "a log weight is NaN or infinite")
    smoothed = psis(log_weights)
    k, ess = float(smoothed.pareto_k), float(smoothed.ess)
    heavy = k > pareto_k_threshold(num)
    move = moved(values, smoothed.log_weights, ess, SURE_ENOUGH if heavy else SURE)
    if move is None or not move.far or ess < FEW_EFFECTIVE:
        return reason_of_shape(k, ess, num)
    return Reason(
        "bad" if move.sure else "doubtful",
        f"{_in_numbers(k, ess, num)}: the weights move the mean of '{move.site}' by {move.shift:.2f} "
        f"standard deviations, and its spread by a factor of {max(move.ratio, 1 / move.ratio):.2f}; {REMEDY}",
    )


def reason_of_shape(k: float, ess: float, num: int) -> Reason:
    """What the shape of the tail of importance weights, and their ESS, say of ``num`` draws.

    >>> reason_of_shape(0.2, 900.0, 1000).level, reason_of_shape(0.9, 900.0, 1000).level
    ('good', 'doubtful')
    """
    here = _in_numbers(k, ess, num)
    if k == math.inf and num < FEWEST:
        return Reason("unknown", f"{here}: too few draws to tell; draw more")
    if k > 1.0:
        return Reason("bad", f"{here}: the guide misses much of the posterior; {REMEDY}")
    if ess < FEW_EFFECTIVE:
        return Reason(
            "doubtful", f"{here}: too few draws count to correct the rest; a richer guide keeps more"
        )
    if k <= pareto_k_threshold(num):
        few = "; the draws need their weights, and few count" if ess < FEW * num else ""
        return Reason("good", f"{here}: weights can correct what is left, and move little{few}")
    if ess > NEARLY_ALL * num:
        return Reason("good", f"{here}: nearly all draws count alike; take them as they are, unweighted")
    return Reason("doubtful", f"{here}: means are roughly right, spreads may not be; {REMEDY}")


def _in_numbers(k: float, ess: float, num: int) -> str:
    return f"Pareto k {k:.2f}, importance ESS {ess:.0f} of {num}"
