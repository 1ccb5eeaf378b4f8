"""Posterior means, and covariances, from the score of what was observed: Tweedie's formula and its kin."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_function, described
from ppl_ext.scores.noise import GammaNoise, GaussianNoise, PoissonNoise


class PosteriorMoments(NamedTuple):
    """The mean (..., d) and covariance (..., d, d) of what is hidden given what is observed.

    >>> PosteriorMoments(mean=jnp.zeros(1), covariance=jnp.eye(1)).covariance.shape
    (1, 1)
    """

    mean: jax.Array
    covariance: jax.Array


def tweedie(
    score: Callable, family: GaussianNoise | PoissonNoise | GammaNoise, order: int = 1
) -> Callable[[Any], Any]:
    r"""The posterior mean of what is hidden under noise, from the score of the noisy marginal alone.

    No prior is asked for: the score :math:`s(y) = \nabla \log p(y)` of the observations holds all there is to
    know of it, and can be learned without a single clean x. The formula is that of ``family``.

    :param score: s, from y to an array shaped as it; of :class:`~ppl_ext.scores.MixtureScore`, say,
        ``lambda y: mixture(y, sigma)``.
    :param family: :class:`GaussianNoise`, :class:`PoissonNoise`, or :class:`GammaNoise`.
    :param order: 2 for the covariance as well, which Gaussian noise has: one Jacobian of the score.
    :return: a function of y: the mean, shaped as y; with ``order=2``, of y (..., d), a
        :class:`PosteriorMoments`.
    :raises ArgumentError: for another order, or ``order=2`` with other noise than Gaussian.
    :raises ArgumentTypeError: if ``score`` is no function, or ``family`` none of the three.

    >>> denoise = tweedie(lambda y: -y / 2.0, GaussianNoise(1.0), order=2)  # x ~ N(0, 1)
    >>> moments = denoise(jnp.array([3.0]))
    >>> float(moments.mean[0]), float(moments.covariance[0, 0])
    (1.5, 0.5)

    Source: Efron 2011, "Tweedie's formula and selection bias", for Gaussian noise; Kim and Ye 2021, table 1,
    for the three; Rout et al. 2024 for the second order.
    """
    check_function("tweedie: score", score)
    if not isinstance(family, GaussianNoise | PoissonNoise | GammaNoise):
        raise ArgumentTypeError(
            "tweedie: family must be GaussianNoise(scale), PoissonNoise(unit) or GammaNoise(shape), got "
            f"{described(family)}."
        )
    if order not in (1, 2):
        raise ArgumentError(f"tweedie: order must be 1 or 2, got {described(order)}.")
    if order == 1:
        return lambda y: family.mean(jnp.asarray(y), score(jnp.asarray(y) + getattr(family, "shift", 0.0)))
    if not isinstance(family, GaussianNoise):
        raise ArgumentError(
            "tweedie: order=2 has a formula for GaussianNoise alone; use order=1 for "
            f"{type(family).__name__}."
        )

    def one(y):
        return PosteriorMoments(family.mean(y, score(y)), family.covariance(jax.jacfwd(score)(y)))

    def moments(y):
        y = jnp.asarray(y)
        if not y.ndim:
            raise ArgumentError("tweedie: order=2 takes y of shape (..., d), got a number.")
        fn: Callable = one
        for _ in range(y.ndim - 1):
            fn = jax.vmap(fn)
        return fn(y)

    return moments
