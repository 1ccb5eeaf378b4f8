"""Whether to believe a result of meta-learning."""

from typing import Any

import numpy as np

from ppl_ext.meta.summaries import still_falls
from ppl_ext.runtime.verdict import Reason, Verdict, judged


def of_fit(fit: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.meta.MetaFit`."""
    beyond = "a bound at rest says nothing of its gap: score held-out episodes by ppl_ext.meta.evaluate"
    return judged([*_of_losses(np.asarray(fit.losses, np.float64)), Reason("unknown", beyond)])


def of_adapted(post: Any) -> Verdict:
    """Judge an :class:`~ppl_ext.meta.Adapted`."""
    if not all(np.isfinite(np.asarray(x)).all() for x in post.samples.values()):
        return judged([Reason("bad", "a draw is NaN or infinite")])
    words = "as good as the local fit behind it, which is exact for a linear-Gaussian episode"
    return judged([Reason("unknown", words)])


def of_kinds(kinds: Any) -> Verdict:
    """Judge :class:`~ppl_ext.meta.Kinds`."""
    local = "a local optimum, the best of several starts; the number of kinds was assumed"
    return judged([*_of_losses(np.asarray(kinds.losses, np.float64)), Reason("unknown", local)])


def of_scores(scores: Any) -> Verdict:
    """Judge :class:`~ppl_ext.meta.Scores`."""
    if any(np.isneginf(x).any() or np.isposinf(x).any() for x in scores.by_name().values()):
        return judged([Reason("bad", "a row has a predictive density of zero")])
    return judged([Reason("unknown", "scores compare predictions; by themselves none is good or bad")])


def _of_losses(losses: np.ndarray) -> list[Reason]:
    if not losses.size:
        return [Reason("unknown", "not trained: this is the prior")]
    if not np.isfinite(losses[-1]):
        return [Reason("bad", "the bound is not finite")]
    return [Reason("doubtful", "the bound still falls")] if still_falls(losses) else []
