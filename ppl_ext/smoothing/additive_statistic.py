r"""Additive functionals, carried along with the particles: τ, one value each.

.. math:: \tau_t^i = \int B_t(i, dj) \, (\tau_{t-1}^j + \tilde h_t(x_{t-1}^j, x_t^i)), \qquad
    \mathbb{E}[h_T \mid y_{1:T}] \approx \sum_i \bar\omega_T^i \tau_T^i

How the integral is taken is the backward kernel's business (Olsson and Westerborn 2017, algorithm 2, for
draws).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward import BackwardKernel, Pairs, Tally
from ppl_ext.state_space.compensated_sum import Sum, plus
from ppl_ext.state_space.resampling import shares


class Statistic(NamedTuple):
    """Values of the particles, less a part that all of them share.

    The values of a sum over T steps grow as T while their spread stays; kept together they would lose the
    spread, and then the increments, to rounding. So their weighted mean moves into ``shared``, which is
    summed with compensation.

    :param values: leaves (N, ...).
    :param shared: leaves (...).
    :param rest: leaves (...), what rounding left out of ``shared``.
    """

    values: Any
    shared: Any
    rest: Any


def start(values: Any) -> Statistic:
    """From the values of the first particles, leaves (N, ...)."""
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), values)
    return Statistic(values, zero, zero)


def advance(
    rng_key: jax.Array,
    statistic: Statistic,
    kernel: BackwardKernel,
    pairs: Pairs,
    increment: Callable,
    num_draws: int,
) -> tuple[Statistic, Tally]:
    """One step: ``increment(j, i)`` is the functional's new term, leaves beginning with the shape of the two
    index arrays.
    """

    def value(j, i):
        return jax.tree.map(lambda tau, term: tau[j] + term, statistic.values, increment(j, i))

    values, tally = kernel.average(rng_key, pairs, value, num_draws)
    return statistic._replace(values=values), tally


def centre(statistic: Statistic, log_weights: jax.Array) -> Statistic:
    """Move the weighted mean of the values into the part that all share."""
    mean = average(statistic.values, log_weights)
    sums = [
        plus(Sum(total, rest), x)
        for total, rest, x in zip(
            jax.tree.leaves(statistic.shared),
            jax.tree.leaves(statistic.rest),
            jax.tree.leaves(mean),
            strict=True,
        )
    ]
    values = jax.tree.map(jnp.subtract, statistic.values, mean)
    tree = jax.tree.structure(mean)
    shared, rest = (jax.tree.unflatten(tree, [getattr(s, part) for s in sums]) for part in ("high", "low"))
    return Statistic(values, shared, rest)


def estimate(statistic: Statistic, log_weights: jax.Array) -> Any:
    """The expectation under the weights, leaves (...)."""
    mean = average(statistic.values, log_weights)
    return jax.tree.map(lambda total, rest, m: total + (m + rest), statistic.shared, statistic.rest, mean)


def average(values: Any, log_weights: jax.Array) -> Any:
    """Weighted mean over particles; NaN where no weight is left."""
    weights = shares(log_weights)

    def mean(x):
        beside = weights.reshape(weights.shape + (1,) * (x.ndim - 1))
        return jnp.where(beside == 0, 0, beside * x).sum(0)

    return jax.tree.map(mean, values)
