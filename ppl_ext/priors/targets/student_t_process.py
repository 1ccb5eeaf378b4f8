"""Student-t processes as targets: Gaussian targets whose scale is drawn once for every function."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.priors.targets.gaussian_process import GaussianTarget
from ppl_ext.runtime.arguments import check_positive, described


class StudentTProcess(eqx.Module):
    r"""A Gaussian process or network limit with a random variance: functions with heavy tails.

    .. math:: v \sim \text{InvGamma}(a, b), \qquad f \mid v \sim \mathrm{GP}(m, v\, k)

    The functions are Student-t with 2a degrees of freedom and scale matrix (b/a) k; this is the limit of a
    wide network whose last layer's variance is inverse-gamma.

    :param base: a Gaussian target: :class:`~ppl_ext.priors.GaussianProcess` without ``hyper``,
        :class:`~ppl_ext.priors.NNGP`, or one of these conditioned on something.
    :param shape: a; a covariance exists for a > 1.
    :param scale: b.
    :raises ArgumentTypeError: for a base without a mean and a covariance.
    :raises ArgumentError: for a shape or scale that is not positive.

    >>> from ppl_ext.priors import NNGP
    >>> StudentTProcess(NNGP(depth=1), shape=2.0, scale=1.0).sample(random.key(0), jnp.ones((4, 3)), 5).shape
    (5, 4)

    Lee, Ayaz, ... Caron, *Scale Mixtures of Neural Network Gaussian Processes*, ICLR 2022, thm. 3.1 and cor.
    3.2.
    """

    base: GaussianTarget
    shape: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, base: GaussianTarget, shape: float, scale: float):
        if not isinstance(base, GaussianTarget) or getattr(base, "hyper", None) is not None:
            raise ArgumentTypeError(
                "StudentTProcess: base must be a Gaussian target, as GaussianProcess(kernel) and "
                "NNGP(depth=2) are, got "
                f"{described(base)}{' with hyper' if isinstance(base, GaussianTarget) else ''}."
            )
        check_positive("StudentTProcess: shape", shape)
        check_positive("StudentTProcess: scale", scale)
        self.base, self.shape, self.scale = base, shape, scale

    def mean(self, inputs: jax.Array) -> jax.Array | None:
        """The mean, as of the base; None where there is none, for a of at most 1/2."""
        return self.base.mean(inputs) if self.shape > 0.5 else None

    def cov(self, inputs: jax.Array) -> jax.Array | None:
        """b/(a − 1) times the base's; None where there is none, for a of at most 1."""
        return self.scale / (self.shape - 1.0) * self.base.cov(inputs) if self.shape > 1.0 else None

    def sample(self, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        of_scale, of_base = random.split(rng_key)
        draws, mean = self.base.sample(of_base, inputs, num_draws), self.base.mean(inputs)
        # The logarithm of the gamma draw: with a small shape the draw itself may be 0.
        log_precision = random.loggamma(of_scale, self.shape, (num_draws,), draws.dtype) - jnp.log(self.scale)
        return mean + jnp.exp(-0.5 * log_precision).reshape(-1, *(1,) * mean.ndim) * (draws - mean)
