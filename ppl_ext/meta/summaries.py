"""Results of meta-learning in words: a table, and what is known of their quality."""

from typing import Any

import jax
import numpy as np

from ppl_ext.diagnostics.report.estimates import losses_in_words, points
from ppl_ext.diagnostics.report.summary import table

SETTLED = 0.01
"""A change of the bound between the last two tenths of a run, as a share of its whole fall, that is small."""


def of_fit(fit: Any) -> str:
    """Say in words what :meth:`~ppl_ext.meta.MetaFit.summary` says."""
    niw, losses = fit.niw, np.asarray(fit.losses, np.float64)
    between = np.sqrt(_expected_variances(niw))
    columns = {
        "mean": {"theta": np.asarray(niw.loc)},
        "sd of mean": {"theta": between / np.sqrt(float(niw.mean_precision))},
        "sd between": {"theta": between},
    }
    sites = ", ".join(f"{s.name}{list(s.shape) if s.shape else ''}" for s in fit.hierarchy.form.sites)
    lines = [
        f"Shared law of {sites} (theta, unconstrained), {niw.structure} NIW, {fit.hierarchy.num_episodes:g} "
        f"episodes, {type(fit.solver).__name__}:",
        points(columns),
    ]
    shared = {
        name + jax.tree_util.keystr(path): np.asarray(x)
        for name, value in fit.shared.items()
        for path, x in jax.tree_util.tree_flatten_with_path(value)[0]
    }
    if shared:
        lines += ["Shared values:", points({"value": shared})]
    return "\n".join([*lines, _bound(losses, "step")])


def of_adapted(post: Any) -> str:
    """Say in words what :meth:`~ppl_ext.meta.Adapted.summary` says."""
    draws = {name: np.asarray(x)[None] for name, x in post.samples.items()}
    return (
        f"Posterior of one episode, {len(post.theta)} independent draws:\n{table(draws)}\n"
        "As good as the local fit behind them, which is exact for a linear-Gaussian episode."
    )


def of_kinds(kinds: Any) -> str:
    """Say in words what :meth:`~ppl_ext.meta.Kinds.summary` says."""
    memberships = np.asarray(kinds.memberships)
    means = {f"theta of kind {k}": np.asarray(law.loc) for k, law in enumerate(kinds.laws)}
    spread = {f"theta of kind {k}": np.sqrt(_expected_variances(law)) for k, law in enumerate(kinds.laws)}
    shares = ", ".join(f"{x:.3f}" for x in np.asarray(kinds.shares))
    sure = float((memberships.max(-1) > 0.95).mean()) if memberships.size else float("nan")
    return "\n".join(
        [
            f"{len(kinds.laws)} kinds, shares {shares}:",
            points({"mean": means, "sd between": spread}),
            f"{sure:.0%} of the {len(memberships)} episodes are of one kind with probability above 0.95.",
            _bound(np.asarray(kinds.losses, np.float64), "round"),
            "A local optimum, the best of several starts. The number of kinds was assumed, not found.",
        ]
    )


def of_scores(scores: Any) -> str:
    """Say in words what :meth:`~ppl_ext.meta.Scores.summary` says."""
    lines = []
    for name, x in scores.by_name().items():
        x = x[np.isfinite(x)]
        if not x.size:
            lines.append(f"{name:<18} none: no episode has rows to score")
            continue
        se = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
        lines.append(f"{name:<18} {x.mean():.3f} ± {se:.3f}")
    lines.append(f"calibration error of all rows together {scores.pooled_calibration_error:.3f}")
    return "\n".join(lines)


def _bound(losses: np.ndarray, unit: str) -> str:
    """How the bound went, and whether it still falls."""
    if not losses.size:
        return "Not trained: this is the prior."
    words = losses_in_words(losses[None]).partition(": ")[2]
    tenth = losses.size // 10
    if tenth < 2:
        return f"{losses.size} {unit}s; {words}."
    rest = f"still falls: take more {unit}s" if still_falls(losses) else "has settled"
    return f"{losses.size} {unit}s; {words}. The bound {rest}."


def still_falls(losses: np.ndarray) -> bool:
    """Whether the last tenth of a run lies below the one before by more than a hundredth of the whole
    fall.
    """
    if (tenth := losses.size // 10) < 2:
        return False
    last, before = losses[-tenth:].mean(), losses[-2 * tenth : -tenth].mean()
    return bool(before - last > SETTLED * abs(losses[:tenth].mean() - last))


def _expected_variances(niw: Any) -> np.ndarray:
    """The diagonal of E Σ, (d,); infinite where it has no mean."""
    scale = np.asarray(niw.scale_matrix, np.float64)
    diagonal = scale if scale.ndim == 1 else np.diagonal(scale)
    less = float(niw.df) - np.repeat(niw.blocks, niw.blocks) - 1.0
    return np.where(less > 0.0, diagonal / np.where(less > 0.0, less, 1.0), np.inf)
