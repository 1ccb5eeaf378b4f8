"""Normals over an array whose variances are a product of one factor an axis (He, Joseph 2022)."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.kronecker_algebra import outer
from ppl_ext.runtime.arguments import check_count


class KroneckerARD(eqx.Module):
    r"""Zero-mean normals over an array, whose variances are a product of one factor an axis.

    .. math:: x_{ijk} \sim \mathcal{N}\big(0, \gamma^1_i \gamma^2_j \gamma^3_k\big)

    A factor that vanishes silences a whole slice, so few numbers say where the array is not zero: 8 + 8 + 8
    for 512. With one axis it is plain automatic relevance determination. :func:`type2_em` finds the factors.

    :param shape: of the array, at least one axis.
    :raises ArgumentError: for a shape without axes, or with empty ones.

    >>> prior = KroneckerARD((2, 3))
    >>> law = prior.law([jnp.array([1.0, 4.0]), jnp.array([1.0, 0.25, 0.0])])
    >>> law.event_shape, law.base_dist.scale.tolist()
    ((2, 3), [[1.0, 0.5, 0.0], [2.0, 1.0, 0.0]])

    Source: He and Joseph 2022, "Structure-aware sparse Bayesian learning-based channel estimation for
    intelligent reflecting surface-aided MIMO" (arXiv:2210.11373); He and Joseph 2023, "Bayesian algorithms
    for Kronecker-structured sparse vector recovery with application to IRS-MIMO channel estimation"
    (arXiv:2307.14719).
    """

    shape: tuple[int, ...] = eqx.field(static=True, converter=tuple)

    def __check_init__(self):
        if not self.shape:
            raise ArgumentError("KroneckerARD: shape must have at least one axis, got ().")
        for size in self.shape:
            check_count(f"KroneckerARD: each size of shape {self.shape}", size)

    def law(self, factors: Sequence[Any]) -> dist.Distribution:
        """The distribution of the array, for a site of any model; factors may be sites or params of it.

        A slice that a factor of 0 silences has draws of 0, and no density.

        :raises ArgumentError: for factors of other sizes, or below zero or NaN, where they are known.
        """
        sizes = tuple(jnp.shape(f) for f in factors)
        if sizes != tuple((n,) for n in self.shape):
            raise ArgumentError(
                f"KroneckerARD: factors must have shapes {[(n,) for n in self.shape]}, one an axis, got "
                f"{list(sizes)}."
            )
        for axis, factor in enumerate(factors):
            if not isinstance(factor, jax.core.Tracer) and not (right := np.asarray(factor) >= 0.0).all():
                raise ArgumentError(
                    f"KroneckerARD: the factor of axis {axis} has a variance below zero or NaN at place "
                    f"{right.argmin()}. As a param it wants constraint=positive, as a site a positive law."
                )
        scale = jnp.sqrt(outer([jnp.asarray(f) for f in factors]))
        return dist.Normal(0.0, scale, validate_args=False).to_event(len(self.shape))
