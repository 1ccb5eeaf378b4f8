"""How long a stationary Gaussian process stays above its mean, or below it (Bengtsson, Podgórski 2024)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.targets.gaussian_process import GaussianProcess, GaussianTarget
from ppl_ext.runtime.arguments import check_array, described

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)
CELLS = 2000
"""Of the grid on which the survival is found."""


class Excursions(eqx.Module):
    """What :func:`excursion_times` found."""

    mean: float
    """The mean length, exact."""
    exponent: float
    """θ: staying longer than t has a probability that falls as e^{−θt}; 0 where it falls slower than any."""
    times: np.ndarray
    """Where ``clipped`` was taken, (m,)."""
    clipped: np.ndarray
    """E(t), the expected sign of the process a time t after it crossed its mean upwards, (m,)."""

    def survival(self, times: Any) -> np.ndarray:
        r"""The probability S that an excursion is longer than each of the times, by the trapezium rule on

        .. math:: S(t) = E(t) + \tfrac12 \int_0^t S(t - u)\, |E'(u)|\, du

        :param times: of any shape, from 0 to ``self.times[-1]``.
        :raises ArgumentError: for other times.
        """
        check_array("survival: times", times)
        at = np.asarray(times, float)
        if at.size and not (at.min() >= 0.0 and at.max() <= self.times[-1]):
            raise ArgumentError(
                f"survival: times must be between 0 and {self.times[-1]:g}, got {at.max():g}."
            )
        grid = np.linspace(0.0, at.max(initial=self.mean), CELLS + 1)
        known = np.interp(grid, self.times, self.clipped)
        falls, found, middles = -np.diff(known), np.ones(CELLS + 1), np.ones(CELLS)
        for i in range(1, CELLS + 1):
            before = middles[: i - 1][::-1] @ falls[1:i] + 0.5 * falls[0] * found[i - 1]
            found[i] = (known[i] + 0.5 * before) / (1.0 - 0.25 * falls[0])
            middles[i - 1] = 0.5 * (found[i - 1] + found[i])
        return np.interp(at, grid, found)


def excursion_times(kernel: Any) -> Excursions:
    r"""How long a stationary Gaussian process over time stays on one side of its mean.

    .. math:: \text{mean} = \frac{\pi}{\sqrt{\lambda_2}}, \qquad
        E(t) = \frac{-r'(t)}{\sqrt{\lambda_2 (1 - r(t)^2)}}, \qquad
        \mathbb{E}\, e^{-sT} = \frac{1 - s L(s)}{1 + s L(s)}

    with r the correlation, :math:`\lambda_2 = -r''(0)`, E the expected sign of the process a time t after it
    crossed its mean upwards (its law is then a Slepian model), and L the Laplace transform of E. The mean is
    Rice's and exact. The law of the length T takes successive lengths for independent: it is that of a sum of
    lengths with survival E, whose number is geometric with mean 2. Its exponent is the pole,
    :math:`1 = \theta L(-\theta)`, within some percent of that of the process: 0.1862 for sech(t/2), which
    has 0.1875.

    On the host, in double precision.

    :param kernel: a kernel of tinygp, a function of two sets of inputs, or a Gaussian target over one input;
        stationary, differentiable (λ₂ finite) and with an E that falls.
    :raises ArgumentError: for a kernel that is none of these; the message says which, and the mean where
        there is one.

    >>> import tinygp
    >>> found = excursion_times(tinygp.kernels.ExpSquared(scale=2.0))
    >>> round(found.mean / np.pi, 4), round(found.exponent, 4)
    (2.0, 0.2057)
    >>> found.survival([0.0, 5.0]).round(3).tolist()
    [1.0, 0.481]

    Source: Bengtsson, Podgórski 2024, "The Slepian model based independent interval approximation of
    persistency and zero-level excursion distributions".
    """
    where = f"excursion_times: {described(kernel)}"
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(kernel)):
        raise ArgumentError(
            f"{where} has a traced parameter, and lengths of excursions are found on the host, without "
            "derivatives. Call it outside of jit, grad and models, with numbers."
        )
    target = kernel if isinstance(kernel, GaussianTarget) else GaussianProcess(kernel)
    with jax.enable_x64(True):
        wide = jax.tree.map(_wide, target)

        def between(s, t):
            return wide.cov_between(jnp.reshape(s, (1, 1)), jnp.reshape(t, (-1, 1)))[0]

        variance = float(between(0.0, jnp.zeros(1))[0])

        @jax.jit
        def both(t):
            one = jax.value_and_grad(lambda t: between(0.0, t)[0] / variance)
            return jax.vmap(one)(t)

        def correlation(t):
            return tuple(np.asarray(x) for x in both(jnp.asarray(t)))

        powers = 2.0 ** np.arange(-40.0, 41.0)
        values, _ = correlation(powers)
        if not (variance > 0.0 and np.isfinite(values).all() and values[0] > 0.5 > values.min()):
            raise ArgumentError(
                f"{where} has a covariance that is not finite, or does not fall from a positive variance to "
                "below its half: no process that crosses its mean again and again. Check its parameters."
            )
        unit = float(powers[np.argmax(values < 0.5)])  # about where the correlation has fallen to a half
        _stationary(where, between, unit, variance)
        mean = float(np.pi / np.sqrt(_second_moment(where, correlation, unit)))
        ends = unit * 2.0 ** np.arange(0.0, 11.0)
        tail = np.abs(correlation(ends)[0])
        heavy = tail[-1] > 1e-12
        end = float(
            ends[-1] if heavy else ends[np.argmax(tail < 1e-30)] if (tail < 1e-30).any() else ends[-1]
        )
        edges = np.concatenate([[0.0], np.geomspace(0.05 * unit, end, 400)])
        half = 0.5 * np.diff(edges)
        t = (0.5 * (edges[1:] + edges[:-1]) + half * NODES[:, None]).T.ravel()
        r, slope = correlation(t)
    clipped = -slope * mean / np.pi / np.sqrt(-np.expm1(2.0 * np.log(np.clip(r, 1e-300, None))))
    if not (np.diff(clipped) < 1e-6).all() or not (r > 0.0).all() or not (clipped <= 1.0 + 1e-6).all():
        raise ArgumentError(
            f"{where} has no monotonous E: after a crossing its sign does not fade steadily, as of processes "
            f"that oscillate, and the approximation is no law. The mean excursion is {mean:.6g} all the same."
        )
    weights = (half[:, None] * WEIGHTS).ravel()

    def beyond(exponent: float) -> float:
        return float(exponent * weights @ (clipped * np.exp(exponent * t)) - 1.0)

    exponent = 0.0
    if not heavy:
        most = 1.0 / mean
        while beyond(most) < 0.0:
            most *= 2.0
        exponent = float(brentq(beyond, 0.0, most, xtol=1e-14 / mean))
    return Excursions(mean, exponent, np.append(0.0, t), np.append(1.0, np.minimum(clipped, 1.0)))


def _wide(x: Any) -> Any:
    return jnp.asarray(x, jnp.float64) if eqx.is_inexact_array_like(x) else x


def _stationary(where: str, between: Any, unit: float, variance: float) -> None:
    lags = unit * np.array([0.0, 0.3, 1.0])
    here, there = between(0.0, jnp.asarray(lags)), between(1.7 * unit, jnp.asarray(1.7 * unit + lags))
    if not np.abs(np.asarray(here - there)).max() < 1e-6 * variance:
        raise ArgumentError(
            f"{where} is not stationary: its covariance depends on more than the lag, so that excursions "
            "have no one law."
        )


def _second_moment(where: str, correlation: Any, unit: float) -> float:
    """λ₂, from the slope near 0, extrapolated."""
    at = unit * np.array([1e-5, 2e-5, 1e-3])
    near, twice, far = -correlation(at)[1] / at
    if not 0.0 < near < 1.5 * far:
        raise ArgumentError(
            f"{where} is of a process without derivative (its λ₂ is infinite): it crosses its mean "
            "infinitely often in any time after a crossing. Take a smoother kernel, as Matérn 3/2 or "
            "ExpSquared."
        )
    return float(2.0 * near - twice)
