"""What a particle run says of itself."""

import math

import numpy as np

from ppl_ext.runtime.verdict import Level, Reason

SPREAD, WIDE = 0.5, 1.5
"""A standard deviation of the log evidence above which it is doubtful, and above which it is bad."""

FEW = 10.0
"""Effective particles of a step below which a filtered mean is off by a third of its standard deviation."""


def evidence_spread(ess: np.ndarray, num_particles: int) -> float:
    r"""A guess of the standard deviation of a log evidence, from the steps' effective sample sizes, (T,).

    .. math:: \operatorname{sd}(\log \hat Z) \approx \Big(\tfrac1N \sum_t (N / \mathrm{ESS}_t - 1)\Big)^{1/2}

    the sum of the squared coefficients of variation of the steps' weights, as if these were independent. It
    is a guess from one run; it misses what no particle has seen.
    """
    return math.sqrt(float(np.sum(num_particles / ess - 1.0)) / num_particles)


def reasons_of_particles(ess: np.ndarray, num_particles: int | None, what: str = "step") -> list[Reason]:
    """What the effective sample sizes of the steps, (T,), say of a run of N particles."""
    if not ess.size:
        return []
    at = int(np.nanargmin(ess)) if not np.isnan(ess).all() else 0
    if np.isnan(ess).any() or ess[at] == 0.0:
        dead = int(np.argmax(np.isnan(ess) | (ess == 0.0)))
        return [Reason("bad", f"no particle survived {what} {dead}: what follows is NaN")]
    of = "" if num_particles is None else f" of {num_particles}"
    words = f"smallest effective sample size {ess[at]:.1f}{of}, at {what} {at}"
    found = [Reason("good" if ess[at] >= FEW else "doubtful" if ess[at] >= 3.0 else "bad", words)]
    if num_particles is not None:
        spread = evidence_spread(ess, num_particles)
        level: Level = "good" if spread <= SPREAD else "doubtful" if spread <= WIDE else "bad"
        found.append(Reason(level, f"standard deviation of the log evidence about {spread:.2g}"))
    return found


STUCK_MOVES, SLOW_MOVES = 0.02, 0.1
"""A share of accepted moves of parameters below which they are hardly renewed, and below which it is slow."""


def reasons_of_nested(
    ess: np.ndarray, acceptance: np.ndarray, num_particles: int, ran_out: bool = False
) -> list[Reason]:
    r"""What the steps of N parameters with filters of their own (SMC²) say, from the effective sample sizes
    and acceptances (T,) of these, the latter NaN where nothing moved.

    Weights grow uneven until a move, so that the evidence's spread is judged where they are used up:

    .. math:: \operatorname{sd}(\log \hat Z) \approx \Big(\tfrac1N \sum_{t \text{ with moves, or } T} (N /
        \mathrm{ESS}_t - 1)\Big)^{1/2}

    a guess from one run, as in :func:`reasons_of_particles`.
    """
    if not ess.size:
        return []
    moved = ~np.isnan(acceptance)
    at = int(np.nanargmin(np.where(np.isnan(ess), np.inf, ess)))
    level: Level = "good" if ess[at] >= FEW else "doubtful" if ess[at] >= 3.0 else "bad"
    words = f"smallest effective sample size {ess[at]:.1f} of {num_particles} parameters, at step {at}"
    found = [Reason(level, words)]
    used = ess[moved | (np.arange(len(ess)) == len(ess) - 1)]
    spread = math.sqrt(float(np.sum(num_particles / np.maximum(used, 1.0) - 1.0)) / num_particles)
    level = "good" if spread <= SPREAD else "doubtful" if spread <= WIDE else "bad"
    found.append(Reason(level, f"standard deviation of the log evidence about {spread:.2g}"))
    if moved.any():
        low, last = float(acceptance[moved].min()), float(acceptance[moved][-1])
        level = "good" if low >= SLOW_MOVES else "doubtful" if last >= STUCK_MOVES else "bad"
        remedy = "" if level == "good" else ": take more states, or more steps of the moves"
        found.append(Reason(level, f"moves of parameters are accepted in {low:.0%} or more{remedy}"))
    else:
        found.append(Reason("good", "weights never grew so uneven that parameters had to move"))
    if ran_out:
        found.append(
            Reason("doubtful", "filters came to max_states, and moves were still seldom accepted: raise it")
        )
    return found
