"""A calibration in words, and as an ArviZ report."""

import math
from typing import Any

import numpy as np

from ppl_ext.diagnostics.report.arviz_export import ESTIMATES, arviz_version, build_report
from ppl_ext.diagnostics.report.run_record import versions
from ppl_ext.runtime.verdict import Level, Reason, Verdict, judged

FEWEST = 50
"""Simulations below which a rank statistic that looks uniform says little."""


def in_words(calibration: Any) -> str:
    """Say in words what :meth:`~ppl_ext.diagnostics.Calibration.summary` says."""
    lines = [
        f"{calibration.num_simulations} simulations, each truth ranked among {calibration.num_draws} draws "
        f"(one in {calibration.thin} kept)",
        *_table(calibration),
    ]
    if failed := calibration.failed:
        first = min(failed)
        lines.append(
            f"{len(failed)} simulations failed and are left out; simulation {first}: {failed[first]}"
        )
    count = sum(np.size(p) for p in calibration.p_values.values())
    verdict = (
        "calibrated, as far as this many simulations can tell"
        if calibration.p_value > 0.01
        else "not calibrated"
    )
    return "\n".join([*lines, f"Over all {count} quantities: p = {calibration.p_value:.2g}: {verdict}."])


def judge(calibration: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.diagnostics.Calibration`."""
    p, num = calibration.p_value, calibration.num_simulations
    words = f"ranks of {num} truths: p = {p:.2g} that they are uniform"
    level: Level = "bad" if not p > 0.01 else "good" if num >= FEWEST else "unknown"
    reasons = [Reason(level, words)]
    if calibration.failed:
        reasons.append(Reason("doubtful", f"{len(calibration.failed)} simulations failed and are left out"))
    return judged(reasons)


def to_arviz(calibration: Any) -> Any:
    """Write the report of :meth:`~ppl_ext.diagnostics.Calibration.to_arviz`."""
    groups = {
        "prior": {name: x[None] for name, x in calibration.truths.items()},
        "prior_predictive": {name: x[None] for name, x in calibration.data.items()},
        "ranks": calibration.ranks,
        ESTIMATES: {f"p_value_{name}": p for name, p in calibration.p_values.items()},
    }
    attrs = {
        "num_draws": calibration.num_draws,
        "thin": calibration.thin,
        "num_failed": len(calibration.failed),
        "p_value": calibration.p_value,
        **versions(),
        "arviz_version": arviz_version(),
    }
    return build_report(groups, dims={name: ["simulation"] for name in calibration.ranks}, attrs=attrs)


def _table(calibration: Any) -> list[str]:
    """One row a quantity: of an array, its worst element."""
    width = max(len(name) for name in calibration.ranks) + 8
    lines = [f"{'':<{width}}{'mean':>8}{'spread':>10}{'p':>10}"]
    every = sum(np.size(p) for p in calibration.p_values.values())
    for name, ranks in calibration.ranks.items():
        p = np.asarray(calibration.p_values[name])
        index = tuple(int(i) for i in np.unravel_index(int(p.argmin()), p.shape))
        label = f"{name}[{','.join(map(str, index))}]" if index else name
        mean, spread, words = _shape(ranks.reshape(len(ranks), -1)[:, int(p.argmin())], calibration.num_draws)
        words = words if p.min() * every <= 0.01 else ""
        lines.append(f"{label:<{width}}{mean:>8.2f}{spread:>10.2f}{p.min():>10.2g}  {words}".rstrip())
    return lines


def _shape(ranks: np.ndarray, num_draws: int) -> tuple[float, float, str]:
    """Mean of the ranks between 0 and 1, their spread (1 if uniform), and what the larger of the two
    deviations means.
    """
    u = (ranks + 0.5) / (num_draws + 1)
    variance = (1.0 - (num_draws + 1.0) ** -2) / 12.0
    spread = float(np.mean((u - 0.5) ** 2) / variance)
    shift = (u.mean() - 0.5) / math.sqrt(variance / len(u))
    # a uniform's fourth moment is 1.8 times its variance squared
    widening = (spread - 1.0) / math.sqrt(0.8 / len(u))
    if max(abs(shift), abs(widening)) < 3.0:
        words = "ranks are not uniform: see plot_calibration"
    elif abs(shift) > abs(widening):
        words = "biased: draws lie too low" if shift > 0.0 else "biased: draws lie too high"
    else:
        words = "over-confident: too narrow" if widening > 0.0 else "under-confident: too wide"
    return float(u.mean()), math.sqrt(spread), words
