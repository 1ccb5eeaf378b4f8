"""Are ranks uniform? An exact test of their empirical distribution function, and the band that makes it a
picture.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr, bdtrc, gammaln, xlogy

from ppl_ext.errors import ArgumentError


class Band(NamedTuple):
    """Where the empirical distribution function of uniform ranks lies, all of it at once, with probability
    ``level`` or more.

    ``points``: (L,), the probabilities (1, ..., L)/(L + 1) of a rank below 1, ..., L. ``lower``, ``upper``:
    (L,), fractions of the ranks.
    """

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def uniformity_p_value(ranks: Any, num_draws: int) -> float:
    r"""The probability that uniform ranks stray from the diagonal as far as these do, somewhere.

    With :math:`c_l` the number of the N ranks at most l, each :math:`c_l` is Binomial(N, (l + 1)/(L + 1)) if
    the ranks are uniform on 0, ..., L. The statistic is the smallest two-sided tail probability over l,

    .. math:: t = \min_{l < L} 2 \min\{\Pr(C_l \le c_l),\ \Pr(C_l \ge c_l)\} ,

    and its null distribution is computed, not simulated: the counts of the L + 1 values are independent
    Poisson given their sum, so the probability that the path :math:`c_0, c_1, \dots` stays where no pointwise
    tail is as small as t is a product of L + 1 truncated convolutions. It is exact for discrete ranks; with
    :func:`uniformity_band` it makes one and the same test.

    :param ranks: (N,), integers between 0 and L.
    :param num_draws: L, the number of draws that the truth was ranked among.
    :return: between 0 and 1; numbers below about 1e-12 are rounding.
    :raises ArgumentError: if a rank is not a whole number between 0 and L, or there is none.

    >>> uniformity_p_value([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], num_draws=9)
    1.0
    >>> uniformity_p_value([0, 0, 0, 0, 0, 9, 9, 9, 9, 9], num_draws=9) < 0.05
    True

    Source: Säilynoja, Bürkner, Vehtari 2022, "Graphical test for discrete uniformity", section 2 (the
    statistic and the band; they find its level by simulation or optimisation).
    """
    ranks = _checked(ranks, num_draws)
    counts = np.bincount(ranks, minlength=num_draws + 1).cumsum()[:-1]
    tails = _tails(len(ranks), num_draws)
    statistic = float(tails[np.arange(num_draws), counts].min())
    # One rank in the middle of nowhere: a statistic that rounds to 1 leaves no path at all inside.
    return 1.0 if statistic >= 1.0 else max(_crossing(len(ranks), num_draws, statistic), statistic)


@lru_cache(maxsize=64)
def uniformity_band(num_ranks: int, num_draws: int, level: float = 0.95) -> Band:
    """The simultaneous band of :func:`uniformity_p_value`: ranks leave it somewhere if and only if their
    p-value is at most 1 - level.

    :param num_ranks: N, the number of ranks.
    :param num_draws: L, the largest rank.
    :param level: between 0 and 1.
    :return: :class:`Band`.
    :raises ArgumentError: if a number is out of range.

    >>> band = uniformity_band(100, 9, level=0.95)
    >>> band.points.shape, float(band.lower[4]) < 0.5 < float(band.upper[4])
    ((9,), True)

    Source: as :func:`uniformity_p_value`.
    """
    if num_ranks < 1 or num_draws < 1 or not 0.0 < level < 1.0:
        raise ArgumentError(
            f"A band needs ranks, draws and a level between 0 and 1, got {num_ranks}, {num_draws} and "
            f"{level}."
        )
    # The coverage jumps where a count falls out of the band; bisection ends on the wide side of the jump.
    low, high = (1.0 - level) / (2.0 * num_draws), 1.0
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (
            (middle, high) if _crossing(num_ranks, num_draws, middle) <= 1.0 - level else (low, middle)
        )
    inside = _tails(num_ranks, num_draws) > low
    counts = np.arange(num_ranks + 1)
    lower = np.where(inside, counts, num_ranks).min(axis=1)
    upper = np.where(inside, counts, 0).max(axis=1)
    return Band(_points(num_draws), lower / num_ranks, upper / num_ranks)


def _checked(ranks: Any, num_draws: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or ranks.size == 0:
        raise ArgumentError(f"ranks must be a list of at least one rank, got shape {ranks.shape}.")
    if not np.equal(np.mod(ranks, 1), 0).all() or ranks.min() < 0 or ranks.max() > num_draws:
        raise ArgumentError(
            f"ranks must be whole numbers between 0 and num_draws={num_draws}, got {ranks.min()} to "
            f"{ranks.max()}."
        )
    return ranks.astype(np.int64)


def _points(num_draws: int) -> np.ndarray:
    return np.arange(1, num_draws + 1) / (num_draws + 1)


@lru_cache(maxsize=8)
def _tails(num_ranks: int, num_draws: int) -> np.ndarray:
    """(L, N + 1): the two-sided tail probability of each count at each point."""
    counts, points = np.arange(num_ranks + 1), _points(num_draws)[:, None]
    return np.minimum(
        2.0 * np.minimum(bdtr(counts, num_ranks, points), bdtrc(counts - 1, num_ranks, points)), 1.0
    )


def _crossing(num_ranks: int, num_draws: int, threshold: float) -> float:
    """The probability that some tail is at most ``threshold``."""
    # What is exactly as far out as the observed counts as out, whatever rounding says.
    inside = _tails(num_ranks, num_draws) > threshold * (1.0 + 1e-9)
    mean = num_ranks / (num_draws + 1)
    steps = np.arange(min(num_ranks, int(mean + 12.0 * np.sqrt(mean) + 40.0)) + 1)
    step = np.exp(xlogy(steps, mean) - mean - gammaln(steps + 1.0))
    path = np.zeros(num_ranks + 1)
    path[0] = 1.0
    for here in inside:
        path = np.convolve(path, step)[: num_ranks + 1] * here
    last = num_ranks - np.arange(num_ranks + 1)
    end = float(path @ np.where(last < len(step), step[np.minimum(last, len(step) - 1)], 0.0))
    total = np.exp(xlogy(num_ranks, num_ranks) - num_ranks - gammaln(num_ranks + 1.0))
    return float(np.clip(1.0 - end / total, 0.0, 1.0))
