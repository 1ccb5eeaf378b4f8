r"""Which target a measurement is of: marginal probabilities by loopy belief propagation.

Each of N targets has at most one of M measurements, and each measurement at most one target. With weights
:math:`w_{i0}` for a target that has none, :math:`w_{ij}` for one that has measurement j, and 1 for a
measurement that nobody has,

.. math:: \mu_{ij} = \frac{w_{ij}}{w_{i0} + \sum_{j' \ne j} w_{ij'} \nu_{ij'}}, \qquad
          \nu_{ij} = \frac{1}{1 + \sum_{i' \ne i} \mu_{i'j}}, \qquad
          P(i \text{ has } j) = \frac{w_{ij} \nu_{ij}}{w_{i0} + \sum_{j'} w_{ij'} \nu_{ij'}}

The messages settle whatever the weights. They are exact where no circle of pairs is possible (one target, or
one measurement, or targets that do not share any), and close elsewhere. Source: Williams and Lau 2014,
"Approximate evaluation of marginal association probabilities with belief propagation".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_count, described

NUM_ROUNDS = 30


class Associations(NamedTuple):
    """Probabilities that target i has no measurement, ``missed`` (N,), that it has measurement j,
    ``detected`` (N, M), and that nobody has j, ``unclaimed`` (M,).

    ``log_normalizer``: of the sum of the weights' products over all associations, by Bethe's formula.
    ``residual``: by how much a probability changed in the last round.

    >>> Associations(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones(1), 0.0, 0.0).detected.shape
    (1, 1)
    """

    missed: jax.Array
    detected: jax.Array
    unclaimed: jax.Array
    log_normalizer: jax.Array
    residual: jax.Array


def association_marginals(
    log_missed: jax.Array, log_detected: jax.Array, num_rounds: int = NUM_ROUNDS
) -> Associations:
    r"""Marginal probabilities of who has which measurement, from log weights, in O(N M) a round.

    Rounds are a fixed number, so that there are derivatives of both kinds; ``residual`` tells whether they
    were enough.

    :param log_missed: (N,), :math:`\log w_{i0}`.
    :param log_detected: (N, M), :math:`\log w_{ij}`; −inf for a pair that cannot be.
    :param num_rounds: of messages there and back.
    :return: :class:`Associations`. A target all of whose weights are zero is told as missed, and the log
        normalizer is −inf.
    :raises ArgumentError: for shapes that do not fit.

    >>> weights = jnp.log(jnp.array([[2.0, 1.0], [1.0, 3.0]]))  # two targets, two measurements
    >>> found = association_marginals(jnp.log(jnp.ones(2)), weights)
    >>> [round(float(x), 3) for x in found.detected.ravel()]  # by counting all 7, 0.533, 0.133, 0.133, 0.6
    [0.535, 0.112, 0.112, 0.606]
    """
    for name, x in (("log_missed", log_missed), ("log_detected", log_detected)):
        check_array(f"association_marginals: {name}", x)
    check_count("association_marginals: num_rounds", num_rounds)
    log_missed, log_detected = jnp.asarray(log_missed), jnp.asarray(log_detected)
    if log_missed.ndim != 1 or log_detected.ndim != 2 or len(log_missed) != len(log_detected):
        raise ArgumentError(
            "association_marginals: log_missed must be (N,) and log_detected (N, M), got "
            f"{described(log_missed)} and {described(log_detected)}."
        )
    n, m = log_detected.shape
    dtype = jnp.promote_types(jnp.result_type(log_missed, log_detected), jnp.float32)
    log_missed, log_detected = log_missed.astype(dtype), log_detected.astype(dtype)
    if not n or not m:
        return Associations(
            jnp.ones(n, dtype),
            jnp.zeros((n, m), dtype),
            jnp.ones(m, dtype),
            log_missed.sum(),
            jnp.zeros((), dtype),
        )
    missed, detected, free, log_scale = _scaled(log_missed, log_detected)
    # Beyond these a message decides all the same, and the product of two is still a number.
    least = float(jnp.finfo(dtype).tiny) ** 0.47
    others, rest = 1.0 - jnp.eye(n, dtype=dtype), 1.0 - jnp.eye(m, dtype=dtype)

    def forth(nu):
        return detected / jnp.maximum(missed[:, None] + (detected * nu) @ rest, least)

    def back(mu):  # sums without one of them as products: no difference of large numbers
        return 1.0 / jnp.maximum(free + others @ mu, least)

    def probabilities(nu):
        share = jnp.concatenate([missed[:, None], detected * nu], 1)
        whole = share.sum(1, keepdims=True)
        return share / jnp.where(whole > 0.0, whole, 1.0), whole[:, 0]

    nu = jnp.broadcast_to(1.0 / jnp.maximum(free, least), (n, m))
    nu = jax.lax.fori_loop(0, num_rounds - 1, lambda _, nu: back(forth(nu)), nu)
    before, _ = probabilities(nu)
    nu = back(forth(nu))
    mu = forth(nu)
    found, whole = probabilities(nu)
    claimed = free + mu.sum(0)
    bethe = log_of(whole).sum() + jnp.log(claimed).sum() - jnp.log1p(mu * nu).sum()
    return Associations(
        jnp.where(whole > 0.0, found[:, 0], 1.0),
        found[:, 1:],
        free / claimed,
        bethe + log_scale,
        jnp.abs(found - before).max(),
    )


def log_of(x: jax.Array) -> jax.Array:
    """The logarithm, −inf at zero, where it has the derivative zero."""
    return jnp.where(x == 0.0, -jnp.inf, jnp.log(jnp.where(x == 0.0, 1.0, x)))


def _scaled(log_missed: jax.Array, log_detected: jax.Array):
    """Weights of at most one, with that of a free measurement, and the log of what was taken out.

    Weights are divided by numbers of a target and numbers of a measurement, which changes no probability: so
    none overflows, and none that counts is lost.
    """
    of_column = jnp.maximum(log_detected.max(0), 0.0)
    log_detected = log_detected - of_column
    of_row = jnp.maximum(log_missed, log_detected.max(1))
    of_row = jnp.where(jnp.isneginf(of_row), 0.0, of_row)
    weights = jnp.exp(log_missed - of_row), jnp.exp(log_detected - of_row[:, None]), jnp.exp(-of_column)
    return *weights, of_row.sum() + of_column.sum()
