"""A projection DPP with more points than features."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from ppl_ext.designs.projection_dpp import ProjectionDPP
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, described


class VolumeRescaled(Distribution):
    """The law of n points by volume-rescaled sampling: see :func:`volume_rescaled`.

    >>> design = volume_rescaled(ProjectionDPP([[1.0], [1.0], [2.0]]), 2)
    >>> round(float(jnp.exp(design.log_prob(jnp.array([2, 0])))), 4)  # one feature: independent, 4/6 · 1/6
    0.1111
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("dpp",)

    def __init__(self, dpp: ProjectionDPP, size: int, *, validate_args=None):
        self.dpp = dpp
        super().__init__((), (size,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return self.dpp.support

    def weights(self, rows: Any) -> jax.Array:
        """Weights of rows: those of the DPP."""
        return self.dpp.weights(rows)

    def sample(self, key, sample_shape=()):
        (size,), (m,) = self.event_shape, self.dpp.event_shape
        of_dpp, of_others, of_order = jax.random.split(key, 3)
        others = jax.random.categorical(
            of_others, jnp.log(self.dpp.inclusion), shape=(*sample_shape, size - m)
        )
        rows = jnp.concatenate([self.dpp.sample(of_dpp, sample_shape), others], -1)
        return jax.random.permutation(of_order, rows, axis=-1, independent=True)

    @validate_sample
    def log_prob(self, value):
        (size,), (m,) = self.event_shape, self.dpp.event_shape
        basis, inclusion = self.dpp.basis[value], self.dpp.inclusion[value]
        scaled = basis * jnp.sqrt(m / inclusion)[..., None]
        volume = jnp.linalg.slogdet(jnp.swapaxes(scaled, -1, -2) @ scaled)[1]
        others = jnp.log(inclusion / m).sum(-1)
        total = gammaln(size - m + 1.0) - gammaln(size + 1.0) + volume + others
        return jnp.where((inclusion > 0).all(-1) & self.support(value), total, -jnp.inf)


def volume_rescaled(dpp: ProjectionDPP, size: int) -> VolumeRescaled:
    r"""n points of which m repel each other: independent draws by leverage, rescaled by their volume.

    .. math:: p(x_1, \dots, x_n) = \frac{(n - m)!}{n!} \det\Big(\sum_i w(x_i) \varphi(x_i)
        \varphi(x_i)^\top\Big) \prod_i \nu(x_i), \qquad \nu = \mu / w, \quad w = m / \|\varphi\|^2

    They are the m of a projection DPP and n - m independent draws of :math:`\nu`, in random order. Weighted
    least squares on them are unbiased for the best approximation in the span of the features. A row may be
    drawn more than once.

    :param dpp: the :class:`~ppl_ext.designs.ProjectionDPP`.
    :param size: n, at least m.
    :return: a NumPyro distribution over row numbers (n,), with ``weights``.
    :raises ArgumentTypeError: if ``dpp`` is none.
    :raises ArgumentError: for a size below m.

    >>> design = volume_rescaled(ProjectionDPP(jnp.eye(4)[:, :2]), 5)
    >>> design.sample(jax.random.key(0), (3,)).shape
    (3, 5)

    Source: Derezinski, Warmuth, Hsu 2018, "Leveraged volume sampling for linear regression"; Nouy and Michel
    2024, "Weighted least-squares approximation with determinantal point processes and generalized volume
    sampling".
    """
    if not isinstance(dpp, ProjectionDPP):
        raise ArgumentTypeError(
            f"volume_rescaled: dpp must be a ProjectionDPP(features), got {described(dpp)}."
        )
    check_count("volume_rescaled: size", size)
    if size < dpp.event_shape[0]:
        raise ArgumentError(
            f"volume_rescaled: size must be at least {dpp.event_shape[0]}, the number of features, got "
            f"{size}. Ask for more points, or give fewer features."
        )
    return VolumeRescaled(dpp, int(size))
