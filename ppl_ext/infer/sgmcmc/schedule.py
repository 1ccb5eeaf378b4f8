"""Step sizes that change along a run, as values: a function of the number of the step, and where the noise is
left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, check_number, described


@dataclass(frozen=True)
class Cyclical:
    r"""Warm restarts: the step size falls along a cosine and starts anew every ``cycle_length`` steps.

    .. math:: \eta_k = \frac{\eta_0}{2} \Bigl[\cos\Bigl(\pi \frac{k \bmod L}{L}\Bigr) + 1\Bigr], \qquad k = 0,
        1, \dots

    The first part of each cycle, ``exploration`` of it, runs without noise, to find a mode; the rest samples
    there. Draws of the exploration are no posterior draws: ``extra_fields=("sampling",)`` tells which is
    which, or let ``thinning`` be the length of a cycle, so that each keeps its last draw only.

    :param step_size: :math:`\eta_0`, at the start of a cycle.
    :param cycle_length: L, in steps, those of the warm-up counted too.
    :param exploration: part of a cycle without noise, in [0, 1).

    Source: Zhang, Li, Zhang, Chen, Wilson 2020, "Cyclical stochastic gradient MCMC for Bayesian deep
    learning", eq. 1 and section 3.

    >>> cycle = Cyclical(0.1, cycle_length=4, exploration=0.5)
    >>> [round(float(cycle(k)), 3) for k in range(5)], [bool(cycle.sampling(k)) for k in range(5)]
    ([0.1, 0.085, 0.05, 0.015, 0.1], [False, False, True, True, False])
    """

    step_size: float
    cycle_length: int
    exploration: float = 0.5

    def __post_init__(self):
        check_step_size("Cyclical: step_size", self.step_size)
        check_count("Cyclical: cycle_length", self.cycle_length)
        check_number("Cyclical: exploration", self.exploration, at_least=0.0)
        if self.exploration >= 1.0:
            raise ArgumentError(
                "Cyclical: exploration must be below 1, or nothing is ever sampled; got "
                f"{described(self.exploration)}."
            )

    def _part(self, k: Any) -> jax.Array:
        return jnp.mod(k, self.cycle_length) / self.cycle_length

    def __call__(self, k: Any) -> jax.Array:
        return 0.5 * self.step_size * (jnp.cos(math.pi * self._part(k)) + 1.0)

    def sampling(self, k: Any) -> jax.Array:
        return self._part(k) >= self.exploration


@dataclass(frozen=True)
class Decay:
    r"""A step size that falls so slowly that the run still goes everywhere, and so fast that its bias goes to
    zero.

    .. math:: \eta_k = \eta_0 \, (1 + k / \text{delay})^{-\text{power}}

    Then the chain's averages, weighed by the step sizes, have no bias in the limit. Draws taken at small
    steps count less.

    :param step_size: :math:`\eta_0`.
    :param delay: steps, more than 0.
    :param power: in (1/2, 1].

    Source: Welling and Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics", section 3.

    >>> round(float(Decay(0.1, delay=10.0, power=1.0)(30)), 4)
    0.025
    """

    step_size: float
    delay: float = 1000.0
    power: float = 0.55

    def __post_init__(self):
        check_step_size("Decay: step_size", self.step_size)
        check_step_size("Decay: delay", self.delay)
        check_number("Decay: power", self.power)
        if not 0.5 < self.power <= 1.0:
            raise ArgumentError(f"Decay: power must be in (1/2, 1], got {described(self.power)}.")

    def __call__(self, k: Any) -> jax.Array:
        return self.step_size * (1.0 + k / self.delay) ** -self.power


def check_step_size(where: str, value: Any) -> None:
    check_number(where, value)
    if not 0.0 < value < math.inf:
        raise ArgumentError(f"{where} must be a positive number, got {described(value)}.")


def schedule_of(where: str, step_size: Any) -> Callable[[Any], Any]:
    """A number, or a function from the number of the step to one, such as those of optax."""
    if callable(step_size) and not isinstance(step_size, type):
        try:
            shape = jax.eval_shape(step_size, jax.ShapeDtypeStruct((), jnp.int32)).shape
            first = float(step_size(0)) if shape == () else math.nan
        except (TypeError, ValueError, AttributeError) as error:
            raise ArgumentTypeError(
                f"{where} must map the number of a step to a step size, but {described(step_size)} fails: "
                f"{error}."
            ) from error
        if shape != () or not 0.0 < first < math.inf:
            raise ArgumentError(
                f"{where} must map the number of a step to a positive number; at step 0 it gives "
                f"{step_size(0)}."
            )
        return step_size
    check_step_size(where, step_size)
    return lambda k: float(step_size)
