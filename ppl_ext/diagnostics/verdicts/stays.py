"""What short chains from draws say of the draws: whether their means and spreads stay where they are."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.psis import importance_ess, psis
from ppl_ext.diagnostics.verdicts.weights import FEW, REMEDY, SHIFT, SPREAD, moved, reason_of_weights
from ppl_ext.runtime.verdict import Reason

STEPS = 50
"""Of each chain; those of the last fifth are looked at."""

FORGOTTEN = 0.7
"""How much of where a chain began may still be seen at its end: the slope of one on the other."""

BLURRED = 0.5
"""A standard error above so much of what would be bad leaves open whether it is: two of them reach it."""

SURE = 4.0
"""Standard errors by which a move must be too far to be certainly so: of a thousand numbers the worst is some
three off.
"""


class Ends(NamedTuple):
    """Where chains began, by site (restart, draw, ...), and where they were at their last steps, (restart,
    draw, step, ...). ``most``: what the log evidence of what they see is at most, (restart,).
    """

    begun: Mapping[str, np.ndarray]
    ended: Mapping[str, np.ndarray]
    most: np.ndarray | None = None


ODDS = 20.0
"""An unbiased estimate is so many times too large once in as many runs at most (Markov)."""


def most_evidence(log_p: np.ndarray, positions: np.ndarray) -> float:
    r"""What the log evidence can be at most of a law whose log density, up to that, is ``log_p`` (draw,) at
    draws of it, positions (draw, D).

    .. math:: \log Z = \operatorname{E} \log \tilde p + H(p) \le \operatorname{E} \log \tilde p +
        \tfrac12 \log\det(2 \pi e \Sigma)

    since of all laws with a covariance :math:`\Sigma` the normal one has the largest entropy. For more than a
    tenth as many dimensions as draws it is taken without correlations, which is larger still.

    >>> x = np.random.default_rng(0).normal(size=(4000, 2))
    >>> round(most_evidence(-0.5 * (x**2).sum(1), x), 1), round(math.log(2 * math.pi), 1)
    (1.8, 1.8)
    """
    num, size = positions.shape
    log_det = np.log(positions.var(0)).sum()
    if size <= num / 10:
        correlations = np.corrcoef(positions.T).reshape(size, size)
        sign, log_det_of_these = np.linalg.slogdet(correlations)
        log_det += log_det_of_these if sign > 0 else 0.0
    return float(log_p.mean() + 0.5 * (size * math.log(2.0 * math.pi * math.e) + log_det))


def reason_of_evidence(most: float, from_prior: float, num_particles: int) -> Reason | None:
    """What the log evidence that particles from the prior find says of draws that are good as far as chains
    from them see; None where it is not clearly more than what is there can have.

    >>> reason_of_evidence(-180.0, -160.0, 200).level, reason_of_evidence(-180.0, -178.0, 200)
    ('bad', None)
    """
    if not (math.isfinite(most) and from_prior > most + math.log(ODDS)):
        return None
    return Reason(
        "bad",
        f"{num_particles} particles from the prior find a log evidence of {from_prior:.1f}, and where the "
        f"draws are there is at most {most:.1f}: nearly all of the posterior is elsewhere; go on with "
        ".refined(rng_key, TemperedSMC(1000)), or start restarts further apart",
    )


class Drift(NamedTuple):
    """How far draws of a site's scalars are off, (scalar,).

    ``shift``: in mean, in the posterior's standard deviations; ``spread``: in standard deviation, as a share
    of it; with the standard errors of both. ``left``: how much of where the chains began is still there.
    """

    shift: np.ndarray
    shift_error: np.ndarray
    spread: np.ndarray
    spread_error: np.ndarray
    left: np.ndarray


def drift(draws: np.ndarray, begun: np.ndarray, ended: np.ndarray) -> Drift:
    r"""How far draws (draw, scalar) are off, by chains from (chain, scalar) to (chain, step, scalar).

    With the slope :math:`\rho` of the end on the beginning, a chain whose mean is linear in where it began
    has gone :math:`1 - \rho` of its way, and its variance :math:`1 - \rho^2`:

    .. math:: \mu = \frac{m_T - \rho m_0}{1 - \rho}, \qquad \sigma^2 = \frac{v_T - \rho^2 v_0}{1 - \rho^2}

    so that what short chains move is a lower bound of what they would move if they ran on. The errors are
    those of as many independent chains.

    >>> rng = np.random.default_rng(0)
    >>> begun = rng.normal(1.0, 0.5, (2000, 1))  # of Normal(0, 1); chains that go half of the way
    >>> ended = 0.5 * begun + rng.normal(0.0, 0.75**0.5, (2000, 1))
    >>> found = drift(begun, begun, ended[:, None])
    >>> [round(float(x), 1) for x in (found.shift[0], found.spread[0], found.left[0])]
    [1.0, 0.5, 0.5]
    """
    num = len(begun)
    last = ended.mean(1)
    v0 = begun.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = ((begun - begun.mean(0)) * (last - last.mean(0))).mean(0) / v0
        rho = np.clip(np.where(np.isfinite(rho), rho, 0.0), 0.0, 0.99)
        mean = (last.mean(0) - rho * begun.mean(0)) / (1.0 - rho)
        within = ended - ended.mean((0, 1))
        variance = (np.square(within).mean((0, 1)) - rho**2 * v0) / (1.0 - rho**2)
        sd = np.sqrt(np.maximum(variance, 1e-3 * v0))
        # of the means of a chain's last steps, and of their squares
        mean_error = last.std(0) / math.sqrt(num) / (1.0 - rho) / sd
        squares = np.square(within).mean(1).std(0) / math.sqrt(num) / (1.0 - rho**2)
        spread_error = 0.5 * squares / sd**2
        spread = draws.std(0) / sd
    return Drift(
        np.abs(draws.mean(0) - mean) / sd, mean_error, np.abs(spread - 1.0), spread_error * spread, rho
    )


def reason_of_ends(values: Mapping[str, np.ndarray], ends: Ends) -> Reason | None:
    """What the ends of chains say of the draws (restart, draw, ...) that some of them began from; None where
    they have not forgotten where that was, or are too few to tell for tails as heavy as theirs.
    """
    worst: tuple[float, str, float, float] | None = None
    sure = open_still = False
    for name, after in ends.ended.items():
        drawn = _flat(values[name], 2)
        begun, ended = _flat(ends.begun[name], 2), _flat(after, 2, 1)
        moving = (np.ptp(begun, 0) > 0.0) & np.isfinite(ended).all((0, 1)) & np.isfinite(begun).all(0)
        if not moving.any():
            continue
        found = drift(*(x[..., moving] for x in (drawn, begun, ended)))
        excess = np.fmax(found.shift / SHIFT, found.spread / SPREAD)
        clear = np.fmax(
            (found.shift - SURE * found.shift_error) / SHIFT,
            (found.spread - SURE * found.spread_error) / SPREAD,
        )
        at = int(np.nanargmax(excess))
        if worst is None or excess[at] > worst[0]:
            worst = float(excess[at]), name, float(found.shift[at]), float(found.spread[at])
        sure = sure or bool((clear > 1.0).any())
        blur = np.fmax(found.shift_error / SHIFT, found.spread_error / SPREAD)
        open_still = open_still or bool((blur > BLURRED).any() or (found.left > FORGOTTEN).any())
    if worst is None:
        return None
    most, site, shift, spread = worst
    num = math.prod(next(iter(ends.begun.values())).shape[:2])
    words = (
        f"{num} short chains from the draws find the mean of '{site}' off by {shift:.2f} standard "
        f"deviations, and its spread by {spread:.0%}"
    )
    if sure:
        return Reason("bad", f"{words}; {REMEDY}")
    if open_still:
        return None
    if most > 1.0:
        return Reason("doubtful", f"{words}; {REMEDY}")
    return Reason("good", f"{words}, and no other by more")


def reasons_of_ends(draws: Draws, ends: Ends) -> list[Reason]:
    """What the ends of chains say of a guide's draws, with what their weights say for sure.

    A weight is that of a whole draw: with many unknowns it degenerates though each alone is right, so that
    where the chains go is believed before the weights. But where a quarter of the draws count, what they move
    is moved, and at a lower error than that of the chains: all restarts together, each for as much.
    """
    moves = reason_of_ends(draws.values, ends)
    if moves is None:
        return []
    log_weights = np.asarray(draws.log_weights, np.float64)
    log_weights = (log_weights - np.logaddexp.reduce(log_weights, axis=1, keepdims=True)).ravel()
    if importance_ess(log_weights) < FEW * len(log_weights):
        return [moves]
    values = {n: x.reshape(-1, *x.shape[2:]) for n, x in draws.values.items()}
    smoothed = psis(log_weights)
    move = moved(values, smoothed.log_weights, float(smoothed.ess))
    if move is None or not move.far:
        return [moves]
    return [moves, reason_of_weights(log_weights, values)]


def _flat(x: np.ndarray, leading: int, kept: int = 0) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x.reshape(-1, *x.shape[leading : leading + kept], math.prod(x.shape[leading + kept :]))
