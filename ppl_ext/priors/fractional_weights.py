r"""Fractional Brownian motion from processes without memory: weights and transitions, in double precision.

On the host, with NumPy and SciPy: the equations of the weights are ill-conditioned, 1e4 to 1e7. States are
not the processes :math:`Y_k` themselves, which are nearly alike and whose covariance is a Cauchy matrix, but
the outputs of a cascade of all-pass filters,

.. math:: dV_k = -\gamma_k V_k\, dt + \sqrt{2 \gamma_k}\, du_k, \qquad du_{k+1} = du_k - \sqrt{2\gamma_k}\,
    V_k\, dt, \qquad du_1 = dW,

which span the same and are uncorrelated with variance one. :math:`Y = L V` with the Cauchy matrix's Cholesky
factor L, known in closed form.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import linalg, special

Kind = Literal["I", "II"]

LEAST, MOST = 0.02, 0.98
"""Between these Hurst indices a traced one is served."""
NODES = 40
LEAST_NOISE = 1e-15
"""Variance of the noise of a coordinate, of a variance of one, where there is none."""


def generator(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F (K, K) and g (K,) of dV = F V dt + g dW, with F + F' + g g' = 0.

    >>> F, g = generator(np.array([1.0, 2.0]))
    >>> bool(abs(F + F.T + np.outer(g, g)).max() < 1e-15)
    True
    """
    gain = np.sqrt(2.0 * rates)
    return -np.tril(np.outer(gain, gain), -1) - np.diag(rates), gain


def mixing(rates: np.ndarray) -> np.ndarray:
    """L (K, K), lower triangular with Y = L V: L L' is the Cauchy matrix 1 / (γi + γj).

    >>> L, sums = mixing(np.array([1.0, 2.0, 5.0])), np.add.outer([1.0, 2.0, 5.0], [1.0, 2.0, 5.0])
    >>> bool(abs(L @ L.T - 1 / sums).max() < 1e-15)
    True
    """
    sums = rates[:, None] + rates
    passed = np.cumprod((rates[:, None] - rates) / sums, 1)
    passed = np.concatenate([np.ones((len(rates), 1)), passed[:, :-1]], 1)
    return np.sqrt(2.0 * rates) / sums * passed


def unit_variance(hurst: float, kind: Kind) -> float:
    r"""The variance at t = 1 of :math:`\int (t - s)_+^{H - 1/2} dW / \Gamma(H + \frac12)`, with what was
    before 0 (I) or without (II).

    >>> unit_variance(0.5, "I"), unit_variance(0.5, "II")
    (1.0, 1.0)
    """
    if kind == "I":  # Γ(1 − 2H) cos(πH) / (πH), without the hole at ½
        return float(1.0 / (special.gamma(2.0 * hurst + 1.0) * np.sin(np.pi * hurst)))
    return float(1.0 / (2.0 * hurst * special.gamma(hurst + 0.5) ** 2))


def normal_equations(
    hurst: float, horizon: float, rates: np.ndarray, kind: Kind
) -> tuple[np.ndarray, np.ndarray]:
    """A (K, K) and b (K,): the integrated squared error of weights w is w'Aw − 2 b'w + a constant.

    Source: Daems, Opper, Crevecoeur, Birdal 2024; written so that nothing cancels where γT is small.
    """
    a, x, sums = hurst + 0.5, rates * horizon, rates[:, None] + rates
    if kind == "II":
        left = _beyond_linear(sums * horizon) / sums**2
        right = x * special.gammainc(a, x) - a * special.gammainc(a + 1.0, x)
        return left, right * rates ** (-a - 1.0)
    each = _beyond_linear(x) / rates
    n = np.arange(1.0, 40.0)
    small = np.minimum(x, 1.0)[:, None]
    series = (small ** (a + n) / special.gamma(a + 1.0 + n)).sum(1)
    odd = 2.0 * np.arange(1.0, 12.0) + 1.0
    series -= 2.0 * (small**odd / special.factorial(odd)).sum(1)
    large = np.maximum(x, 1.0)
    # Q(a, x) e^x by Tricomi's function, as e^x alone overflows
    tail = special.hyperu(1.0 - a, 1.0 - a, large) / special.gamma(a)
    direct = 2.0 * large - large**a / special.gamma(a + 1.0) + np.exp(-large) - tail
    return (each[:, None] + each) / sums, np.where(x < 1.0, series, direct) * rates ** (-a - 1.0)


def _beyond_linear(x: np.ndarray) -> np.ndarray:
    """x − 1 + e^{−x}."""
    small = np.minimum(x, 0.5)
    n = np.arange(2.0, 18.0)
    series = -((-small[..., None]) ** n / special.factorial(n)).sum(-1)
    return np.where(x < 0.5, -series, x + np.expm1(-x))


def readout(hurst: float, horizon: float, rates: np.ndarray, kind: Kind) -> tuple[np.ndarray, float]:
    """h (K,) with B(t) ≈ h'(V(t) − V(0)), for a B of variance t^{2H}; and the share of the integrated
    variance that is missed.
    """
    left, right = normal_equations(hurst, horizon, rates, kind)
    # Scaled, and without what is nearly singular, which is the same for every H: so h is smooth in H.
    scale = 1.0 / np.sqrt(np.diag(left))
    weights = scale * (linalg.pinvh(left * scale[:, None] * scale, rtol=1e-13) @ (scale * right))
    unit = unit_variance(hurst, kind)
    whole = unit * horizon ** (2.0 * hurst + 1.0) / (2.0 * hurst + 1.0)
    missed = (weights @ left @ weights - 2.0 * right @ weights + whole) / whole
    return mixing(rates).T @ weights / np.sqrt(unit), float(missed)


@lru_cache(maxsize=32)
def readout_series(horizon: float, rates: tuple[float, ...], kind: Kind) -> np.ndarray:
    """Coefficients (NODES, K) of Chebyshev polynomials on [LEAST, MOST] for h as a function of H."""
    angles = np.pi * (np.arange(NODES) + 0.5) / NODES
    nodes = 0.5 * (LEAST + MOST) + 0.5 * (MOST - LEAST) * np.cos(angles)
    table = np.stack([readout(h, horizon, np.array(rates), kind)[0] for h in nodes])
    degrees = np.cos(np.outer(np.arange(NODES), angles)) * (2.0 / NODES)
    degrees[0] *= 0.5
    return degrees @ table


def transitions(horizon: float, rates: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, ...]:
    """Steps of Z(t) = V(t) − e^{Ft} V(0) from 0 to the first of n times and on, in coordinates X with
    independent noise: X's slope (n, K, K), the noise's deviation (n, K), Z from X (n, K, K), e^{Ft} − I
    (n, K, K), what X gains from a drift of one in W (n, K), and the steps' lengths (n,).
    """
    rate, gain = generator(rates)
    lengths = np.diff(at, prepend=0.0)
    some, which = np.unique(lengths, return_inverse=True)
    moved, eye = linalg.expm(rate * some[:, None, None]), np.eye(len(rates))
    # Z in units that are uncorrelated at the horizon, or B would be a small difference of large numbers
    whole = linalg.expm(rate * horizon)
    basis = np.linalg.cholesky(eye - whole @ whole.T + 1e-9 * eye)
    noise = np.linalg.solve(basis, eye - moved @ np.swapaxes(moved, 1, 2))
    noise = np.linalg.solve(basis, np.swapaxes(noise, 1, 2))
    variance, turn = np.linalg.eigh(0.5 * (noise + np.swapaxes(noise, 1, 2)))
    back = np.swapaxes(turn, 1, 2)
    before = np.concatenate([eye[None], turn[which][:-1]])
    slope = back[which] @ np.linalg.solve(basis, moved @ basis)[which] @ before
    pull = back @ np.linalg.solve(basis, np.linalg.solve(rate, (moved - eye) @ gain[:, None]))
    scale = np.sqrt(np.maximum(variance, LEAST_NOISE))[which]
    lost = linalg.expm(rate * at[:, None, None]) - eye
    return slope, scale, basis @ turn[which], lost, pull[which, :, 0], lengths


def exact_covariance(hurst: float, times: np.ndarray, kind: Kind) -> np.ndarray:
    """The covariance (n, n) of fractional Brownian motion of variance t^{2H}.

    >>> exact_covariance(0.5, np.array([1.0, 2.0]), "II").tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    """
    early, late = np.minimum(times[:, None], times), np.maximum(times[:, None], times)
    if kind == "I":
        return 0.5 * (early ** (2 * hurst) + late ** (2 * hurst) - (late - early) ** (2 * hurst))
    ratio = early / np.where(late > 0.0, late, 1.0)
    scale = hurst / (0.5 * hurst + 0.25)
    whole = special.hyp2f1(0.5 - hurst, 1.0, hurst + 1.5, ratio)
    return scale * np.where(late > 0.0, late, 1.0) ** (hurst - 0.5) * early ** (hurst + 0.5) * whole


def covariance(hurst: float, horizon: float, times: np.ndarray, rates: np.ndarray, kind: Kind) -> np.ndarray:
    """The covariance (n, n) of h'(V(t) − V(0)), with V(0) of its stationary law (I) or zero (II)."""
    (rate, _), (h, _) = generator(rates), readout(hurst, horizon, rates, kind)

    def passed(lengths):
        """e^{F τ} − I, one for each τ, and where each is."""
        some, which = np.unique(lengths, return_inverse=True)
        return linalg.expm(rate * some[:, None, None]) - np.eye(len(rates)), which

    lag, early = np.abs(times[:, None] - times), np.minimum(times[:, None], times)
    change, which = passed(lag.ravel())
    if kind == "I":
        squared = (-2.0 * (h @ change) @ h)[which].reshape(lag.shape)  # E (B(s) − B(t))²
        own, places = passed(times)
        own = (-2.0 * (h @ own) @ h)[places]
        return 0.5 * (own[:, None] + own - squared)
    # the early one's covariance, I − e^{F s} e^{F' s}, carried on
    then, places = passed(early.ravel())
    spread = -(then + np.swapaxes(then, 1, 2) + then @ np.swapaxes(then, 1, 2)) @ h
    return ((h + h @ change)[which] * spread[places]).sum(1).reshape(lag.shape)
