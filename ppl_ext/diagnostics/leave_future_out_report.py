"""Leave-future-out cross-validation in words, and as an ArviZ report."""

from typing import Any

import numpy as np

from ppl_ext.diagnostics.report.arviz_export import ESTIMATES, arviz_version, build_report
from ppl_ext.diagnostics.report.run_record import versions
from ppl_ext.runtime.verdict import Level, Reason, Verdict, judged

GOOD = 0.7
"""Pareto k above which importance weights are not trusted (Vehtari et al. 2024)."""


def in_words(found: Any) -> str:
    """Say in words what :meth:`~ppl_ext.diagnostics.LeaveFutureOut.summary` says."""
    shapes = np.asarray(found.pareto_k, np.float64)
    steps = found.refits[0] + np.arange(len(shapes)) if found.refits else np.arange(len(shapes))
    lines = [
        f"elpd {found.elpd:.2f} ± {found.se:.2f} nats over {len(shapes)} steps predicted one ahead; "
        f"number of fits: {len(found.refits)}."
    ]
    weighed = np.isfinite(shapes)
    if not weighed.any():
        lines.append("No importance weights that vary were used: as good as the draws of the fits.")
    else:
        at = int(np.flatnonzero(weighed)[shapes[weighed].argmax()])
        words = "can be trusted" if shapes[at] <= GOOD else "are not to be trusted there: lower the threshold"
        lines.append(f"Largest Pareto k {shapes[at]:.2f}, at step {steps[at]}: importance weights {words}.")
    if (lost := np.flatnonzero(~np.isfinite(found.pointwise))).size:
        lines.append(f"Step {steps[lost[0]]} had a density of zero in every draw.")
    lines.append("The standard error takes the steps for independent, which those of a series seldom are.")
    return "\n".join(lines)


def judge(found: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.diagnostics.LeaveFutureOut`."""
    shapes = np.asarray(found.pareto_k, np.float64)
    reasons = []
    if not np.isfinite(found.pointwise).all():
        reasons.append(Reason("bad", "a step had a density of zero in every draw"))
    if np.isfinite(shapes).any():
        k = float(shapes[np.isfinite(shapes)].max())
        level: Level = "good" if k <= GOOD else "doubtful" if k <= 1.0 else "bad"
        reasons.append(Reason(level, f"largest Pareto k {k:.2f}"))
    else:
        reasons.append(Reason("unknown", "as good as the draws of the fits, which are not looked at here"))
    return judged(reasons)


def to_arviz(found: Any) -> Any:
    """Write the report of :meth:`~ppl_ext.diagnostics.LeaveFutureOut.to_arviz`."""
    first = found.refits[0] if found.refits else 0
    values = {
        "elpd_pointwise": np.asarray(found.pointwise),
        "pareto_k": np.asarray(found.pareto_k),
        "elpd": found.elpd,
        "se": found.se,
    }
    return build_report(
        {ESTIMATES: values},
        dims={"elpd_pointwise": ["time"], "pareto_k": ["time"]},
        coords={"time": first + np.arange(len(found.pointwise))},
        attrs={"refits": list(found.refits), **versions(), "arviz_version": arviz_version()},
    )
