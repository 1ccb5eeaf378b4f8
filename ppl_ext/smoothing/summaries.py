"""Results of smoothing in words: a table, and what is known of their quality."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppl_ext.diagnostics.report.estimates import points
from ppl_ext.diagnostics.report.summary import DISAGREE, table, worst_r_hat

FEW = 0.1
"""An effective sample size below this part of the particles is worth a word; so is a renewal rate."""


def flat(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Nested values by one name each."""
    return {
        name + jax.tree_util.keystr(path): np.asarray(x)
        for name, value in values.items()
        for path, x in jax.tree_util.tree_flatten_with_path(value)[0]
    }


def of_smoothing(result: Any) -> str:
    """Say in words what :meth:`~ppl_ext.smoothing.SmoothingResult.print_summary` prints."""
    steps, how = len(result.log_evidence_increments), dict(result.how)
    lines = [
        f"{steps} steps, log evidence {float(result.log_evidence):.4f}; "
        + ", ".join(f"{name} {x}" for name, x in how.items())
    ]
    if result.expectations:
        lines.append(points({"expectation": flat(result.expectations)}))
    if result.ess is None:
        lines.append("Exact for this model at these parameters: no particles, no Monte Carlo error.")
        return "\n".join(lines)
    ess, num = np.asarray(result.ess), how.get("num_particles")
    if ess.size:
        at, of = int(ess.argmin()), "" if num is None else f" of {num}"
        lines.append(
            f"Smallest effective sample size {ess[at]:.1f}{of}, at step {at}; mean {ess.mean():.1f}."
        )
        if ess[at] == 0:
            lines.append(f"No particle survived step {at}: the evidence is 0 there, and what follows is NaN.")
        elif num is not None and ess[at] < FEW * num:
            lines.append(
                f"Few particles carry the weight at step {at}: what is said of the states near it, and the "
                "evidence, are noisy. More particles, or a proposal that sees the data, help."
            )
    lines.append(_fallbacks(result.fallbacks))
    lines.append("One run does not tell its own Monte Carlo error: repeat it with other keys.")
    return "\n".join(line for line in lines if line)


def of_sweeps(result: Any) -> str:
    """Say in words what :meth:`~ppl_ext.smoothing.ParticleGibbsSmoothing.print_summary` prints."""
    renewal = np.asarray(result.renewal)
    chains, sweeps = np.shape(result.renewed)[:2]
    lines = [f"{chains} chains of {sweeps} sweeps after the burn-in; {_listed(result.how)}"]
    if result.estimates:
        lines += ["Estimates by sweep (their spread is that of the sweeps, not of the states):"]
        lines += [table(flat(result.estimates))]
        worst = worst_r_hat(flat(result.estimates))
        if worst is not None and not worst[1] <= DISAGREE:
            lines.append(
                f"The chains disagree (R-hat {worst[1]:.2f} at '{worst[0]}'): take more sweeps, or more "
                "particles."
            )
    at = int(renewal.argmin())
    place = f"step {at - 1}" if at else "the time before the first step"
    lines.append(f"The path was renewed least often at {place}: in {renewal[at]:.0%} of the sweeps.")
    if renewal[at] < FEW:
        lines.append(
            "There the sweeps hardly forget where they began, and their estimates depend on it: take more "
            "particles, or more sweeps and a longer burn-in."
        )
    lines.append(_fallbacks(result.fallbacks))
    return "\n".join(line for line in lines if line)


def of_ascent(result: Any) -> str:
    """Say in words what :meth:`~ppl_ext.smoothing.Learned.print_summary` prints."""
    iterates, scores, params = flat(result.iterates), flat(result.scores), flat(result.params)
    num = len(next(iter(iterates.values()), ()))
    lines = [f"{num} steps of ascent."]
    half = num // 2
    late = {n: x[half:].std(0) for n, x in iterates.items()}
    last = {n: x[-1] for n, x in iterates.items()}
    lines.append(points({"estimate": params, "last": last, "late sd": late}))
    if num < 4:
        return "\n".join([*lines, "Too few steps to tell whether they have settled."])
    moving = on_the_move(iterates)
    lines.append(
        "Mean score over the later half: "
        + ", ".join(f"{n} {_around(x[half:])}" for n, x in scores.items())
        + " (unconstrained parameters; all steps are noisy)."
    )
    lines.append(
        f"Still on the move in the last quarter: {', '.join(map(repr, moving))}. Run longer."
        if moving
        else "The last two quarters of the iterates agree within their spread. A local optimum would look "
        "the same, and so would a learning rate too small to get anywhere."
    )
    return "\n".join(lines)


def on_the_move(iterates: Mapping[str, np.ndarray]) -> list[str] | None:
    """The names of iterates (step, ...) whose last two quarters differ by more than their spread; None of
    fewer than four steps.
    """
    num = len(next(iter(iterates.values()), ()))
    if num < 4:
        return None
    quarter, moving = num // 4, []
    for name, x in iterates.items():
        drift = np.abs(x[-quarter:].mean(0) - x[-2 * quarter : -quarter].mean(0))
        if (drift > 2.0 * x[-quarter:].std(0) + 1e-6 * np.abs(x[-1])).any():
            moving.append(name)
    return moving


def of_stream(result: Any) -> str:
    """Say in words what :meth:`~ppl_ext.smoothing.OnlineResult.print_summary` prints."""
    if shape := np.shape(result.log_evidence):
        return f"Log evidences of shape {shape}: of many streams at once. A summary is of one."
    lines = [f"{int(result.num_steps)} steps so far, log evidence {float(result.log_evidence):.4f}"]
    if result.expectations:
        lines.append(points({"expectation": flat(result.expectations)}))
    if np.isneginf(float(result.log_evidence)):
        lines.append("No particle survived: the evidence is 0, and expectations are NaN.")
    lines.append(_fallbacks(result.fallbacks))
    lines.append("One run does not tell its own Monte Carlo error: run a second stream with another key.")
    return "\n".join(line for line in lines if line)


def of_discriminative(result: Any) -> str:
    """Say in words what :meth:`~ppl_ext.smoothing.DiscriminativeResult.print_summary` prints."""
    mean, guarded = np.asarray(result.mean), np.asarray(result.guarded)
    if mean.ndim != 2:
        return f"Filtered means of shape {mean.shape}: of many series at once. A summary is of one."
    steps, dim = mean.shape
    lines = [f"{steps} steps, {dim} coordinates of the state."]
    if steps:
        sd = np.sqrt(np.diagonal(np.asarray(result.covariance), axis1=1, axis2=2))
        columns = {"last mean": mean[-1], "last sd": sd[-1], "mean sd": sd.mean(0)}
        lines.append(points({title: {"x": x} for title, x in columns.items()}))
    if count := int(guarded.sum()):
        lines.append(
            f"At {count} of {steps} steps the regression was less sure than the prior, which was not divided "
            "out there: these moments are not the exact ones."
        )
    lines.append("Given each time's past and itself, not its future; as good as the regression behind it.")
    return "\n".join(lines)


def _fallbacks(count: Any) -> str:
    if not (found := int(count)):
        return ""
    return (
        f"{found} backward rows in which no particle before could have led to the one after: there the "
        "smoothed expectations follow the filter's ancestors."
    )


def _around(x: np.ndarray) -> str:
    """A mean and the spread around it, of the element whose mean is furthest off."""
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    spread = rows.std(0)
    worst = int(np.argmax(np.abs(rows.mean(0)) / np.where(spread > 0.0, spread, 1.0))) if rows.size else 0
    return f"{rows[:, worst].mean():.3g} (sd {spread[worst]:.2g})" if rows.size else "none"


def _listed(how: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {x}" for name, x in how.items())
