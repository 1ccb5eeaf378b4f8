"""How often a row stands in a longer plate, so that a uniform draw of that takes rows by their scores."""

from typing import Any

import jax
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, check_number, described

FINENESS = 4  # cells for each row on average, before every row has at least one


def cells_of_rows(where: str, scores: Any, mix: Any) -> np.ndarray:
    r"""How many cells each row has, (n,), of a plate whose uniform draws are draws of rows by their scores.

    .. math:: k_i = \lceil 4 n p_i \rceil, \qquad p_i = \frac{\mathrm{mix}}{n}
        + (1 - \mathrm{mix}) \frac{s_i}{\sum_j s_j}

    divided by what all of them share, so that there are at most 5n and a row's probability is at least
    4/5 of the one asked for.

    :raises ArgumentTypeError: for scores that are no array of numbers, or traced.
    :raises ArgumentError: for a mix outside [0, 1], scores that are negative, not finite or all zero, or a
        mix of 0 with a score of 0.

    >>> cells_of_rows("here", [1.0, 1.0, 2.0], 0.0).tolist()
    [1, 1, 2]
    """
    check_number(f"{where}: mix", mix, at_least=0.0)
    if mix > 1:
        raise ArgumentError(f"{where}: mix must be in [0, 1], got {described(mix)}.")
    if isinstance(scores, str):
        raise ArgumentTypeError(
            f"{where}: scores must be an array with one score a row, got '{scores}'. "
            "ppl_ext.designs.leverage, lewis and gradient_scores make them."
        )
    check_array(f"{where}: scores", scores)
    if isinstance(scores, jax.core.Tracer):
        raise ArgumentTypeError(
            f"{where}: how often a row stands in the plate is fixed before tracing, and the scores are "
            "traced. Make the handler outside of jit, grad and vmap."
        )
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ArgumentError(f"{where}: scores must have shape (rows,), got {described(scores)}.")
    if not (fine := np.isfinite(scores) & (scores >= 0)).all():
        row = int(np.argmin(fine))
        raise ArgumentError(
            f"{where}: scores must be finite and at least 0; that of row {row} is {scores[row]}."
        )
    if mix < 1 and not scores.any():
        raise ArgumentError(f"{where}: all scores are 0, so nothing tells rows apart. Take mix=1, or none.")
    if mix == 0 and not scores.all():
        row = int(np.argmin(scores))
        raise ArgumentError(
            f"{where}: {int((scores == 0).sum())} of {len(scores)} rows, the first {row}, have a score of 0 "
            "and would never be taken with mix=0: the log likelihood would be without them. Take mix above 0."
        )
    share = scores / scores.max() if mix < 1 else np.ones(len(scores))
    probabilities = mix / len(scores) + (1 - mix) * share / share.sum()
    wanted = FINENESS * len(scores) * probabilities
    counts = np.maximum(np.ceil(wanted * (1 - 1e-9)), 1).astype(np.int64)
    return counts // np.gcd.reduce(counts)
