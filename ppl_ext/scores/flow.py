"""The probability flow: how points move, without noise, as the noise in their law grows or shrinks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_function


def probability_flow(score: Callable, x, sigmas) -> jax.Array:
    r"""Carry points through levels of noise along the probability flow, by Heun's method.

    .. math:: \frac{dx}{d\sigma} = -\sigma \, \nabla_x \log p_\sigma(x)

    If x has the law of :math:`X + \sigma_0 \varepsilon`, what comes out has that of
    :math:`X + \sigma_n \varepsilon`, up to the error of the steps, second order in their size. Descending
    levels make a sampler of it. A last step to σ = 0 is one of Euler.

    :param score: ``score(x, sigma)`` of one point (d,) and one level, as
        :class:`~ppl_ext.scores.GaussianScore` is.
    :param x: (..., d), at the first level.
    :param sigmas: the levels, at least two, none negative, all the way down or all the way up.
    :return: (..., d), at the last level.
    :raises ArgumentError: for fewer than two levels, a negative one, or levels that are not monotone.

    >>> from ppl_ext.scores import GaussianScore
    >>> x = probability_flow(GaussianScore(jnp.zeros(1), jnp.eye(1)), jnp.array([4.0]), jnp.linspace(7**0.5,
    ...     1.0, 50))
    >>> round(float(x[0]), 3)  # teleport has 2.0
    2.0

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
    eq. 13; Karras, Aittala, Aila, Laine 2022, algorithm 1.
    """
    check_function("probability_flow: score", score)
    check_array("probability_flow: sigmas", sigmas)
    sigmas = jnp.asarray(sigmas, float)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ArgumentError(f"probability_flow: at least two levels are wanted, got {sigmas.shape}.")
    if not isinstance(sigmas, jax.core.Tracer):
        levels = np.asarray(sigmas)
        if not (levels >= 0).all():
            raise ArgumentError("probability_flow: levels of noise are not negative.")
        steps = np.diff(levels)
        if (steps > 0).any() and (steps < 0).any():
            turn = np.argmax(steps * steps[np.flatnonzero(steps)[0]] < 0)
            raise ArgumentError(
                f"probability_flow: sigmas must fall or rise all the way, and turn at {levels[turn]:g}. Sort "
                "them; to go and come back, call it twice."
            )
    slope = over_points(lambda x, sigma: -sigma * score(x, sigma), jnp.ndim(x) - 1)

    def step(x, levels):
        here, there = levels
        first = slope(x, here)
        ahead = x + (there - here) * first
        second = jnp.where(there > 0, slope(ahead, jnp.where(there > 0, there, here)), first)
        return x + 0.5 * (there - here) * (first + second), None

    return jax.lax.scan(step, jnp.asarray(x, float), (sigmas[:-1], sigmas[1:]))[0]


def over_points(fn: Callable, axes: int) -> Callable:
    """``fn(x, sigma)`` of one point for arrays of points (..., d) with so many leading axes, one level for
    all.
    """
    for _ in range(axes):
        fn = jax.vmap(fn, in_axes=(0, None))
    return fn
