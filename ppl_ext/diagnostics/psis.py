"""Pareto-smoothed importance sampling: can draws from q stand in for draws from p, and how many are they
worth?
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, described

MIN_TAIL = 5
"""Fewer exceedances than this carry no shape."""

# Own code, although ArviZ has a psislw: its 0.23 and 1.x take log weights of opposite sign under one name,
# and both read weights that are all equal (q = p, the best there is) as k = inf, the worst.


class PSIS(NamedTuple):
    """What :func:`psis` returns, in float64 on the host.

    ``log_weights``: (..., S), smoothed and normalised: their exponentials sum to one over the draws (to zero
    if every weight is zero).
    ``pareto_k``: (...), the fitted tail shape. NaN and inf are failures.
    ``ess``: (...), the effective number of draws of the smoothed weights.

    >>> smoothed = psis(np.zeros(100))  # all weights alike: no tail, and no draw lost
    >>> float(smoothed.pareto_k), float(smoothed.ess), round(float(np.exp(smoothed.log_weights).sum()), 6)
    (-inf, 100.0, 1.0)
    """

    log_weights: np.ndarray
    pareto_k: np.ndarray
    ess: np.ndarray


def psis(log_weights: Any) -> PSIS:
    r"""Smooth the largest importance weights by a generalised Pareto distribution, and report its shape.

    The M = min(S/5, 3 sqrt(S)) largest of S weights are taken as exceedances of a threshold u with tail
    :math:`\Pr(w > u + x) = (1 + k x/\sigma)^{-1/k}`; they are replaced by the quantiles of the fit, never
    above the largest raw weight. The weights have about 1/k finite moments: up to :func:`pareto_k_threshold`
    importance sampling with S draws is reliable, above 0.7 it is not, above 1 not even the mean exists.

    Everything is float64, because exceedances span hundreds of nats: in float32 a hopeless k of 24 reads as
    0.05.

    :param log_weights: (..., S), log p - log q up to a constant, in nats; the last axis runs over draws. A
        weight of zero (-inf) is allowed.
    :return: :class:`PSIS`. ``pareto_k`` is NaN if a log weight is NaN or +inf; inf if no shape can be fitted
        (fewer than about 21 draws, fewer than 5 positive weights); -inf if the largest weights are all equal,
        so that there is no tail at all.
    :raises ArgumentError: if there is no draw axis or it is empty.
    :raises ArgumentTypeError: if the weights are not real numbers, or are traced by ``jit``.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=4000)
    >>> good, bad = psis(0.1 * x), psis(5.0 * x)
    >>> bool(good.pareto_k < 0.3), bool(bad.pareto_k > 1.0), int(good.ess) > 3900
    (True, True, True)

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto smoothed importance sampling", Algorithm 1.
    """
    weights = _checked(log_weights)
    rows = weights.reshape(-1, weights.shape[-1])
    fitted = [_smooth(row) for row in rows]
    smoothed = np.stack([row for row, _ in fitted]).reshape(weights.shape) if fitted else weights
    shapes = np.array([k for _, k in fitted], dtype=np.float64).reshape(weights.shape[:-1])
    return PSIS(smoothed, shapes, importance_ess(smoothed))


def importance_ess(log_weights: Any) -> np.ndarray:
    r"""How many equally weighted draws the weighted ones are worth, :math:`(\sum_s w_s)^2 / \sum_s w_s^2`.

    :param log_weights: (..., S), in nats, up to a constant.
    :return: (...), float64, between 1 and S; 0 if every weight is zero, NaN if a log weight is NaN or +inf.
    :raises ArgumentError: if there is no draw axis or it is empty.
    :raises ArgumentTypeError: if the weights are not real numbers, or are traced by ``jit``.

    >>> float(importance_ess([0.0, 0.0, -float("inf")]))
    2.0

    Source: Kong, Liu, Wong 1994.
    """
    weights = _checked(log_weights)
    valid = ~(np.isnan(weights) | (weights == np.inf)).any(axis=-1)
    top = np.where(valid, weights.max(axis=-1), 0.0)
    top = np.where(np.isneginf(top), 0.0, top)
    w = np.exp(np.where(valid[..., None], weights, 0.0) - top[..., None])
    total, squares = w.sum(axis=-1), np.square(w).sum(axis=-1)
    ess = np.where(squares > 0.0, total**2 / np.where(squares > 0.0, squares, 1.0), 0.0)
    return np.where(valid, ess, np.nan)


def pareto_k_threshold(num_draws: int) -> float:
    r"""The largest k at which S draws are enough, :math:`\min(1 - 1/\log_{10} S,\ 0.7)`.

    >>> round(pareto_k_threshold(100), 2), pareto_k_threshold(100_000)
    (0.5, 0.7)

    Source: Vehtari et al. 2024: the number of draws that a shape k asks for, :math:`S > 10^{1/(1 - k)}`,
    solved for k.
    """
    check_count("pareto_k_threshold: num_draws", num_draws)
    return min(1.0 - 1.0 / math.log10(num_draws), 0.7) if num_draws > 1 else -math.inf


def _checked(log_weights: Any) -> np.ndarray:
    try:
        weights = np.asarray(log_weights)
    except Exception as error:  # JAX's errors for tracers share no public base
        raise ArgumentTypeError(
            f"log_weights must be an array of concrete numbers, got {described(log_weights)}. PSIS runs on "
            "the host: call it outside jit, vmap and grad."
        ) from error
    if weights.dtype.kind not in "fiu" and not np.can_cast(weights.dtype, np.float64):
        raise ArgumentTypeError(f"log_weights must be real numbers, got dtype {weights.dtype}.")
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ArgumentError(f"log_weights needs a last axis of at least one draw, got shape {weights.shape}.")
    return weights.astype(np.float64)


def _smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """One row: normalised smoothed log weights, and k."""
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        return np.full_like(log_weights, np.nan), math.nan
    top = log_weights.max()
    if top == -np.inf:
        return log_weights, math.inf
    x = log_weights - top
    num_draws = len(x)
    num_tail = math.ceil(min(num_draws / 5.0, 3.0 * math.sqrt(num_draws)))
    order = np.argsort(x, kind="stable")
    cutoff = x[order[max(num_draws - num_tail - 1, 0)]]
    shape = math.inf
    if cutoff == 0.0 and num_tail >= MIN_TAIL:
        shape = -math.inf  # the whole tail is one point
    # Below the smallest float64 an exceedance of zero weight would be indistinguishable from the threshold.
    cutoff = max(cutoff, math.log(np.finfo(np.float64).tiny))
    tail = order[x[order] > cutoff]  # ascending
    if len(tail) >= MIN_TAIL:
        shape, scale = _fit_pareto(np.exp(x[tail]) - math.exp(cutoff))
        if math.isfinite(shape) and scale > 0.0:
            x[tail] = np.minimum(_log_quantiles(len(tail), shape, scale, math.exp(cutoff)), 0.0)
    return x - np.logaddexp.reduce(x), shape


def _fit_pareto(x: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution, from exceedances in ascending order.

    Zhang and Stephens 2009: the posterior mean of theta = -k/sigma under a data-dependent prior, on a grid of
    30 + sqrt(M) points; k by its profile. Then k is drawn towards 0.5 as by ten more exceedances (Vehtari et
    al. 2024).
    """
    n = len(x)
    grid = np.arange(1, 31 + int(math.sqrt(n))) - 0.5
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1.0 / x[-1] + (1.0 - np.sqrt(len(grid) / grid)) / (3.0 * quartile)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        k = np.log1p(-theta[:, None] * x).mean(axis=1)
        profile = n * (np.log(-theta / k) - k - 1.0)
        # theta = 0 is the exponential tail, the limit k -> 0; its profile is -n (log(mean) + 1).
        profile = np.where(theta == 0.0, -n * (math.log(x.mean()) + 1.0), profile)
        weights = np.exp(profile - np.logaddexp.reduce(profile))
        best = float(theta @ weights)
        shape = float(np.log1p(-best * x).mean())
        scale = -shape / best if best != 0.0 else float(x.mean())
    return (n * shape + 5.0) / (n + 10.0), scale


def _log_quantiles(n: int, shape: float, scale: float, threshold: float) -> np.ndarray:
    """Log of threshold plus the (i - 1/2)/n quantiles of the fit."""
    log_survival = np.log1p(-(np.arange(n) + 0.5) / n)
    with np.errstate(over="ignore"):  # an overflowing quantile is capped by the largest raw weight
        excess = -log_survival if abs(shape) < 1e-12 else np.expm1(-shape * log_survival) / shape
        return np.log(threshold + scale * excess)
