"""A design drawn several times over."""

from typing import Any

import jax
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from ppl_ext.designs.projection_dpp import ProjectionDPP
from ppl_ext.errors import ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, described


class Repeated(Distribution):
    """The law of several independent draws of one design, one after the other: see :func:`repeated`.

    >>> design = repeated(ProjectionDPP([[1.0], [1.0], [2.0]]), 2)
    >>> round(float(jax.numpy.exp(design.log_prob(jax.numpy.array([2, 2])))), 4)  # (4/6)²
    0.4444
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("once",)
    pytree_aux_fields = ("times",)

    def __init__(self, once: ProjectionDPP, times: int, *, validate_args=None):
        self.once, self.times = once, times
        super().__init__((), (times * once.event_shape[0],), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return self.once.support

    def weights(self, rows: Any) -> jax.Array:
        """Weights of rows: those of the design that is repeated."""
        return self.once.weights(rows)

    def sample(self, key, sample_shape=()):
        return self.once.sample(key, (*sample_shape, self.times)).reshape(*sample_shape, -1)

    @validate_sample
    def log_prob(self, value):
        return self.once.log_prob(value.reshape(*value.shape[:-1], self.times, -1)).sum(-1)


def repeated(dpp: ProjectionDPP, times: int) -> Repeated:
    r"""``times`` independent draws of a projection DPP, as one design of n = times · m points.

    .. math:: p(x_1, \dots, x_n) = \prod_r \frac{1}{m!} \det(\varphi_{x^r} \varphi_{x^r}^\top)

    With a few repetitions weighted least squares come closer to the best approximation than with as many
    points of volume sampling or of independent ones. A row may be in several of the draws.

    :param dpp: the :class:`~ppl_ext.designs.ProjectionDPP`.
    :param times: how often.
    :return: a NumPyro distribution over row numbers (times · m,), with ``weights``.
    :raises ArgumentTypeError: if ``dpp`` is none.
    :raises ArgumentError: for a number of times below one.

    >>> design = repeated(ProjectionDPP(jax.numpy.eye(4)[:, :2]), 3)
    >>> design.sample(jax.random.key(0), (5,)).shape
    (5, 6)

    Source: Nouy and Michel 2024, "Weighted least-squares approximation with determinantal point processes and
    generalized volume sampling".
    """
    if not isinstance(dpp, ProjectionDPP):
        raise ArgumentTypeError(f"repeated: dpp must be a ProjectionDPP(features), got {described(dpp)}.")
    check_count("repeated: times", times)
    return Repeated(dpp, int(times))
