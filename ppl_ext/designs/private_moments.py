"""Moments of a regression, released under differential privacy, and their likelihood."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import log_ndtr

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_flag, check_key, check_number, described

# How far the scaled moments (x x', x y) of two rows of norm at most one can be apart: the norms are at most
# the root of 2, and their product is q² + y y' q with q = x'x, at least -1/4.
SENSITIVITY = math.sqrt(4.5)


class PrivateMoments(eqx.Module):
    """Released moments of n rows, as :func:`private_moments` makes them.

    ``second``: (d, d), of x x'. ``cross``: (d,), of x y. ``num``: n. ``second_noise``: the standard deviation
    of the noise in an element off the diagonal of ``second``; on it it is the root of two times that.
    ``cross_noise``: that of an element of ``cross``. The noise says nothing of the data.

    >>> moments = PrivateMoments(jnp.eye(2), jnp.zeros(2), 10, jnp.array(0.1), jnp.array(0.2))
    >>> law = moments.law(jnp.array([1.0, 0.0]))
    >>> [round(float(v), 4) for v in jnp.diag(law.covariance_matrix)]  # 0.2² + 0.1² (1 + b²)
    [0.06, 0.05]
    """

    second: jax.Array
    cross: jax.Array
    num: int = eqx.field(static=True)
    second_noise: jax.Array
    cross_noise: jax.Array

    def law(self, b: Any, noise: Any = 0.0, second: Any = None) -> dist.MultivariateNormal:
        r"""The law of the released ``cross`` given coefficients, the noise of the release included.

        .. math:: \hat c \mid b \sim \mathcal{N}\big(\hat A b, \; s_c^2 I + s_A^2 (\|b\|^2 I + b b^\top) +
            \tfrac{\sigma^2}{n} \hat A_+\big)

        since :math:`c = A b + \ldots` and :math:`A = \hat A - E`: where A may be any symmetric matrix
        beforehand, this is the likelihood of b exactly. That A has no negative eigenvalues is not used.
        :math:`\hat A_+` is :math:`\hat A` without its negative ones.

        :param b: coefficients (d,).
        :param noise: the standard deviation of y given x.
        :param second: moments (d, d) that are public, if there are: they take the place of the released
            ones, and :math:`s_A` is 0.
        :return: over (d,); observe ``cross`` under it.
        :raises ArgumentError: for b or ``second`` of another shape.
        """
        size = len(self.cross)
        if jnp.shape(b) != (size,):
            raise ArgumentError(f"PrivateMoments.law: b must have shape ({size},), got {described(b)}.")
        if second is not None and jnp.shape(second) != (size, size):
            raise ArgumentError(
                f"PrivateMoments.law: second must have shape ({size}, {size}), got {described(second)}."
            )
        of_rows = self.second if second is None else jnp.asarray(second)
        values, vectors = jnp.linalg.eigh(of_rows)
        positive = (vectors * jnp.maximum(values, 0.0)) @ vectors.T
        unknown = self.second_noise**2 if second is None else 0.0
        covariance = self.cross_noise**2 * jnp.eye(size) + noise**2 / self.num * positive
        covariance += unknown * ((b**2).sum() * jnp.eye(size) + jnp.outer(b, b))
        return dist.MultivariateNormal(of_rows @ b, covariance)


def private_moments(
    rng_key: jax.Array,
    x: Any,
    y: Any,
    epsilon: float,
    *,
    delta: float,
    bounds: tuple[float, float],
    local: bool = True,
) -> PrivateMoments:
    r"""Second moments of a regression with noise that hides each row.

    .. math:: \hat A = \frac{1}{n} X^\top X + E, \qquad \hat c = \frac{1}{n} X^\top y + e

    by the Gaussian mechanism: its noise is the least for which whoever sees the release can tell no row from
    any other, by more than :math:`P(S) \le e^\varepsilon P'(S) + \delta` for every event S. Locally each row
    gets noise of its own before anybody gathers them, so that no one need be trusted, and the mean of n has
    a standard deviation of :math:`1/\sqrt{n}` of one's; centrally one who holds the rows adds noise to the
    mean, and it is :math:`1/n`. What one person sends is this function of her row alone, and means of such
    are the release; the noise of all is drawn here as the one sum that it is.

    A row longer than its bound is shortened, x and y alike, so that it still lies on the regression; then y
    is cut at its own. Bounds must come from elsewhere than the data. The guarantee is that of exact numbers:
    what the last bits of floating point tell of a row is not counted, so that a release that has to withstand
    an adversary wants a library made for it.

    :param x: (n, d).
    :param y: (n,).
    :param epsilon: above 0; any, not only below 1.
    :param delta: in (0, 1), well below 1/n.
    :param bounds: of the norm of x and of abs(y).
    :param local: each row's noise, or the mean's.
    :raises ArgumentTypeError: if something is no number, array or key.
    :raises ArgumentError: for values out of these ranges, arrays that do not fit each other, or rows that are
        not finite, where they are known.

    >>> x = jax.random.normal(jax.random.key(0), (1000, 2)) / 2
    >>> y = x @ jnp.array([1.0, 0.0])
    >>> moments = private_moments(
    ...     jax.random.key(1), x, y, 1.0, delta=1e-6, bounds=(2.0, 2.0), local=False
    ... )
    >>> moments.second.shape, bool(abs(moments.second - x.T @ x / 1000).max() < 0.3)
    ((2, 2), True)

    Source: Balle and Wang 2018, "Improving the Gaussian mechanism for differential privacy: analytical
    calibration and optimal denoising"; Bernstein and Sheldon 2019, "Differentially private Bayesian linear
    regression", for inference that knows of the noise; Zhu, Ding, Aggarwal, Xu, Wang 2024, "Improved analysis
    of sparse linear regression in local differential privacy model", for the local model, where this
    mechanism is not theirs.
    """
    where = "private_moments"
    check_key(f"{where}: rng_key", rng_key)
    for name, value in (("x", x), ("y", y)):
        check_array(f"{where}: {name}", value)
        _check_finite(f"{where}: {name}", value)
    check_flag(f"{where}: local", local)
    _check_numbers(where, epsilon, delta, bounds)
    x, y = jnp.asarray(x, float), jnp.asarray(y, float)
    if x.ndim != 2 or y.shape != x.shape[:1] or not x.size:
        raise ArgumentError(
            f"{where}: x must have shape (rows, features) and y (rows,), got {described(x)} and "
            f"{described(y)}."
        )
    length, height = bounds
    shrunk = jnp.minimum(1.0, length / jnp.maximum(jnp.linalg.norm(x, axis=1), jnp.finfo(x.dtype).tiny))
    x, y = x * shrunk[:, None], jnp.clip(y * shrunk, -height, height)
    num, size = x.shape
    noise = SENSITIVITY * gaussian_noise(epsilon, delta) / (math.sqrt(num) if local else num)
    first, second = jax.random.split(rng_key)
    square = jax.random.normal(first, (size, size))
    # the scaled matrix as a vector, off the diagonal times the root of 2, gets the same noise throughout
    symmetric = length**2 * noise / 2 * (square + square.T)
    of_cross = length * height * noise
    return PrivateMoments(
        x.T @ x / num + symmetric,
        x.T @ y / num + of_cross * jax.random.normal(second, (size,)),
        num,
        jnp.asarray(length**2 * noise / math.sqrt(2.0)),
        jnp.asarray(of_cross),
    )


def gaussian_noise(epsilon: float, delta: float) -> float:
    r"""The least standard deviation that hides a shift by one: the root of

    .. math:: \Phi\Big(\frac{1}{2 \sigma} - \varepsilon \sigma\Big) - e^{\varepsilon}
        \Phi\Big(-\frac{1}{2 \sigma} - \varepsilon \sigma\Big) = \delta

    >>> round(gaussian_noise(1.0, 1e-5), 3)
    3.731
    """

    def shown(sigma: float) -> float:
        half, shift = 0.5 / sigma, epsilon * sigma
        return math.exp(log_ndtr(half - shift)) - math.exp(epsilon + log_ndtr(-half - shift))

    low, high = 0.0, 1.0
    while shown(high) > delta:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle == 0.0 or shown(middle) > delta else (low, middle)
    return high


def _check_finite(where: str, value: Any) -> None:
    """No noise hides a NaN, and one would make the whole release NaN."""
    if isinstance(value, jax.core.Tracer) or np.isfinite(known := np.asarray(value, float)).all():
        return
    raise ArgumentError(
        f"{where} must be finite; row {np.argwhere(~np.isfinite(known))[0, 0] if known.ndim else 0} is not. "
        "Leave it out, or put a number that says nothing of it in its place: a NaN goes through all noise."
    )


def _check_numbers(where: str, epsilon: Any, delta: Any, bounds: Any) -> None:
    check_number(f"{where}: epsilon", epsilon)
    check_number(f"{where}: delta", delta)
    if not 0 < epsilon < math.inf:
        raise ArgumentError(
            f"{where}: epsilon must be above 0 and finite, got {described(epsilon)}: at 0 nothing may be "
            "told of the data. Common values are 0.1 to 10, the smaller the more private."
        )
    if not 0 < delta < 1:
        raise ArgumentError(
            f"{where}: delta must be in (0, 1), got {described(delta)}: normal noise hides nothing at 0. "
            "Take one well below 1/n."
        )
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ArgumentError(
            f"{where}: bounds must be those of the norm of x and of y, got {described(bounds)}."
        )
    for name, bound in zip(("the norm of x", "y"), bounds, strict=True):
        check_number(f"{where}: the bound of {name}", bound)
        if not 0 < bound < math.inf:
            raise ArgumentError(
                f"{where}: the bound of {name} must be above 0 and finite, got {described(bound)}: without "
                "one no noise would hide a row."
            )
