"""Whether a sum of weights is an average of many, or that of a few, by how far their logs spread."""

import math
from typing import Any, NamedTuple

import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import described


class WeightRegime(NamedTuple):
    """What :func:`weight_regime` finds.

    ``regime``: ``"clt"``, ``"heavy_tail"``, ``"condensed"``, or ``"unknown"`` for log weights with NaN or
    +inf, or all −inf.
    ``nats_mean``, ``nats_variance``: how many nats the draws that make up the mean of the weights, and that
    of their squares, are away from the usual ones.
    ``nats_at_hand``: log n, how far n draws reach.
    ``largest``: the largest normalised weight.

    >>> weight_regime([0.0, 0.0]).largest
    0.5
    """

    regime: str
    nats_mean: float
    nats_variance: float
    nats_at_hand: float
    largest: float


def weight_regime(log_weights: Any) -> WeightRegime:
    r"""Which law the sum of weights follows: a normal one, a heavy-tailed one, or that of its largest terms.

    Draws that decide :math:`\mathbb{E} w^\lambda` are :math:`I(\lambda) = \lambda K'(\lambda) - K(\lambda)`
    nats from the usual ones, with K the cumulant generating function of the log weights; n draws reach log n
    nats.

    ============== ============================== =======================================================
    regime         where                          what holds
    ============== ============================== =======================================================
    ``clt``        :math:`I(2) \le \log n`        the mean of the weights is near normal, its error is told
    ``heavy_tail`` :math:`I(1) \le \log n < I(2)` the mean is right, its error is not what its variance says
    ``condensed``  :math:`\log n < I(1)`          a few weights are the sum, which is below its mean
    ============== ============================== =======================================================

    For log-normal weights of log variance t², I(λ) is λ²t²/2, so the thresholds are t² = (log n)/2 and
    t² = 2 log n. K is fitted by mean, variance and skewness of the log weights, as of a shifted Gamma law
    (of either sign), which log weights of Gaussian kernels in many dimensions have; with skewness 0 it is
    the log-normal one.

    :param log_weights: (n,), up to a constant, in nats; −inf for weights of zero.
    :raises ArgumentError: for another shape, or no weight at all.
    :raises ArgumentTypeError: if they are no real numbers, or traced by ``jit``.

    >>> x = np.random.default_rng(0).normal(size=10_000)  # log n is 9.2
    >>> [weight_regime(t * x).regime for t in (1.0, 3.0, 6.0)]
    ['clt', 'heavy_tail', 'condensed']

    The report of a fit has it by chain as the attribute ``weight_regime``, and that of
    :class:`~ppl_ext.infer.SMC2` of the parameters' weights.

    Source: Biroli and Mézard 2024, for kernel estimators; Ben Arous, Bogachev, Molchanov 2005, "Limit
    theorems for sums of random exponentials", for the thresholds.
    """
    try:
        x = np.asarray(log_weights, dtype=np.float64)
    except Exception as error:  # JAX's errors for tracers share no public base
        raise ArgumentTypeError(
            f"weight_regime: log_weights must be an array of concrete numbers, got {described(log_weights)}."
        ) from error
    if x.ndim != 1 or not len(x):
        raise ArgumentError(f"weight_regime: log_weights must have shape (n,), got {x.shape}.")
    reach, top = math.log(len(x)), x.max()
    if not np.isfinite(top) or np.isnan(x).any():
        return WeightRegime("unknown", math.nan, math.nan, reach, math.nan)
    finite = x[np.isfinite(x)]
    lost = math.log(len(x) / len(finite))  # weights of zero are nats away by themselves
    mean, variance = lost + _nats(finite, 1.0), lost + _nats(finite, 2.0)
    regime = "clt" if variance <= reach else "heavy_tail" if mean <= reach else "condensed"
    return WeightRegime(regime, mean, variance, reach, float(1 / np.exp(finite - top).sum()))


def _nats(x: np.ndarray, power: float) -> float:
    """λK'(λ) − K(λ) of the shifted Gamma law with the moments of x; infinite where K is."""
    spread = x.std()
    if spread == 0 or len(x) < 3:
        return 0.0
    skewness = float(np.mean(((x - x.mean()) / spread) ** 3))
    scaled = power * spread * skewness / 2
    if scaled >= 1:
        return math.inf
    if abs(scaled) < 1e-4:
        return 0.5 * (power * spread) ** 2
    return 4 / skewness**2 * (scaled / (1 - scaled) + math.log1p(-scaled))
