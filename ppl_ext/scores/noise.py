"""Kinds of noise whose posterior means are functions of the score of what is observed."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, described


@dataclass(frozen=True)
class GaussianNoise:
    r"""Observations :math:`y = a x + \sigma \varepsilon`, with the mean by Tweedie's formula.

    .. math:: \mathbb{E}[x \mid y] = \tfrac1a \big(y + \sigma^2 s(y)\big), \qquad
        \mathrm{Cov}[x \mid y] = \tfrac{\sigma^2}{a^2} \big(I + \sigma^2 \nabla s(y)\big)

    :param scale: σ.
    :param gain: a.
    :raises ArgumentError: if the scale is not positive, or the gain zero.

    >>> float(GaussianNoise(1.0).mean(jnp.array(2.0), jnp.array(-1.0)))  # y ~ N(0, 2): half of y is noise
    1.0
    """

    scale: float | jax.Array
    gain: float | jax.Array = 1.0

    def __post_init__(self):
        _positive("GaussianNoise: scale", self.scale)
        check_array("GaussianNoise: gain", self.gain)
        if not isinstance(self.gain, jax.core.Tracer) and self.gain == 0:
            raise ArgumentError("GaussianNoise: gain must not be zero: y would say nothing of x.")

    def mean(self, y, score) -> jax.Array:
        """The posterior mean at y, from the score there."""
        return (y + self.scale**2 * score) / self.gain

    def covariance(self, slope) -> jax.Array:
        """From the Jacobian of the score, (..., d, d)."""
        return (self.scale / self.gain) ** 2 * (jnp.eye(slope.shape[-1]) + self.scale**2 * slope)


@dataclass(frozen=True)
class PoissonNoise:
    r"""Counts in units of ζ, :math:`y = \zeta k` with :math:`k \sim \mathrm{Poisson}(x / \zeta)`.

    .. math:: \mathbb{E}[x \mid y] = (y + \zeta) \, \frac{p(y + \zeta)}{p(y)} \approx
        (y + \zeta) \exp\big(\zeta \, s(y + \tfrac{\zeta}{2})\big)

    The first is exact (Robbins 1956); the second takes the ratio from the score of a smooth p, in the middle.
    Kim and Ye have :math:`(y + \tfrac\zeta2) \exp(\zeta s(y))`, which is lower by about ζ/2 times the slope
    of the mean in y.

    :param unit: ζ.
    :raises ArgumentError: if it is not positive.

    >>> from ppl_ext.scores import tweedie
    >>> # x ~ Gamma(3, 1): the posterior mean of y = 4 is 7/2
    >>> score = lambda y: jax.scipy.special.digamma(y + 3) - jax.scipy.special.digamma(y + 1) - jnp.log(2.0)
    >>> round(float(tweedie(score, PoissonNoise())(jnp.array(4.0))), 2)
    3.5
    """

    unit: float | jax.Array = 1.0

    def __post_init__(self):
        _positive("PoissonNoise: unit", self.unit)

    @property
    def shift(self) -> float | jax.Array:
        """Where the score is wanted, as seen from y."""
        return 0.5 * self.unit

    def mean(self, y, score) -> jax.Array:
        return (y + self.unit) * jnp.exp(self.unit * score)


@dataclass(frozen=True)
class GammaNoise:
    r"""Speckle, :math:`y = x n` with :math:`n \sim \mathrm{Gamma}(\alpha, \beta)`, β a rate.

    .. math:: \frac{1}{\mathbb{E}[1/x \mid y]} = \frac{\beta y}{\alpha - 1 - y \, s(y)}

    This is the harmonic mean of x given y and no more than its mean, to which the score at one y does not
    lead.

    :param shape: α.
    :param rate: β; by default α, for noise of mean one.
    :raises ArgumentError: if one is not positive.

    >>> from ppl_ext.scores import tweedie
    >>> # 1/x ~ Gamma(3, 1), one look: s(y) = -4/(1 + y), and 1/x given y is Gamma(4, 1 + y)
    >>> float(tweedie(lambda y: -4 / (1 + y), GammaNoise(1.0))(jnp.array(3.0)))
    1.0
    """

    shape: float | jax.Array
    rate: float | jax.Array | None = None

    def __post_init__(self):
        _positive("GammaNoise: shape", self.shape)
        if self.rate is not None:
            _positive("GammaNoise: rate", self.rate)

    def mean(self, y, score) -> jax.Array:
        rate = self.shape if self.rate is None else self.rate
        return rate * y / (self.shape - 1 - y * score)


def _positive(where: str, value) -> None:
    """A positive number; of one that is traced, only that it is a number."""
    check_array(where, value)
    if jnp.ndim(value) or not isinstance(value, jax.core.Tracer) and not 0.0 < value < math.inf:
        raise ArgumentError(f"{where} must be positive and finite, got {described(value)}.")
