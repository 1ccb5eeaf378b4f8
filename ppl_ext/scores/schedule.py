"""Schedules of noise, as diffusion models are trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_function, check_number, check_positive, described


@dataclass(frozen=True)
class VariancePreserving:
    r"""Noise that drowns data of mean zero and variance about one, at a rate that grows linearly with time.

    .. math:: x_t = \alpha_t x + \sigma_t \varepsilon, \qquad \alpha_t^2 = e^{-B(t)}, \quad \sigma_t^2 = 1 -
        \alpha_t^2, \qquad B(t) = \int_0^t \beta_s \, ds, \quad \beta_s = \beta_{\min} + s (\beta_{\max} -
        \beta_{\min})

    Here all is told in units of the data: :math:`x_t / \alpha_t = x + u \varepsilon` with the ratio
    :math:`u = \sigma_t / \alpha_t`, the level of noise that a score is asked for.

    :param beta_min: β at time 0.
    :param beta_max: β at time 1.
    :param start: the least time, where integrals over the noise begin.
    :raises ArgumentError: if one is not positive, ``beta_max`` is below ``beta_min``, or ``start`` not below
        one.

    >>> schedule = VariancePreserving()
    >>> round(float(schedule.ratio(1.0))), round(float(schedule.time(schedule.ratio(0.3))), 3)
    (152, 0.3)

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
    eq. 32 and appendix C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1e-5

    def __post_init__(self):
        for name in ("beta_min", "beta_max", "start"):
            check_positive(f"VariancePreserving: {name}", getattr(self, name))
        check_number("VariancePreserving: beta_max", self.beta_max, at_least=self.beta_min)
        if self.start >= 1:
            raise ArgumentError(f"VariancePreserving: start must be below 1, got {self.start}.")

    def _integral(self, t) -> jax.Array:
        t = jnp.asarray(t, float)
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def beta(self, t) -> jax.Array:
        """β at time t."""
        return self.beta_min + (self.beta_max - self.beta_min) * jnp.asarray(t, float)

    def alpha(self, t) -> jax.Array:
        """How much of the data is left."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t) -> jax.Array:
        """How much noise there is."""
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def ratio(self, t) -> jax.Array:
        """The level of noise in units of the data, σ/α."""
        return jnp.sqrt(jnp.expm1(self._integral(t)))

    def time(self, ratio) -> jax.Array:
        """The time at which σ/α is this."""
        target = jnp.log1p(jnp.square(jnp.asarray(ratio, float)))
        slope = self.beta_max - self.beta_min
        return 2 * target / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * target))

    def score_of(self, network: Callable) -> Callable:
        r"""A network's score ``network(x_t, t)`` of x_t, as a score ``score(x, sigma)`` of the data with
        noise.

        .. math:: s(x, u) = \alpha_t \, s_{\text{network}}(\alpha_t x, t)
        """
        check_function("VariancePreserving.score_of: network", network)

        def score(x, sigma):
            t = self.time(sigma)
            return self.alpha(t) * network(self.alpha(t) * x, t)

        return score


def check_schedule(where: str, schedule: Any) -> None:
    """A schedule whose noise grows with time, as that of a subclass may not.

    :raises ArgumentTypeError: for what is no schedule.
    :raises ArgumentError: for one that is not monotone.
    """
    if not isinstance(schedule, VariancePreserving):
        raise ArgumentTypeError(
            f"{where}: schedule must be a VariancePreserving(), got {described(schedule)}."
        )
    if type(schedule) is VariancePreserving:
        return
    with jax.ensure_compile_time_eval():
        t = np.linspace(schedule.start, 1.0, 65)
        ratios = np.asarray(schedule.ratio(jnp.asarray(t, float)))
    if not (falls := ~(np.diff(ratios) > 0)).any():
        return
    raise ArgumentError(
        f"{where}: the noise of schedule must grow with time, and ratio(t) does not from t = "
        f"{t[np.argmax(falls)]:.3g} on. Make its rate beta(t) positive."
    )
