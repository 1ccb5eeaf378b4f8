"""Optimal transport between function draws with an entropy penalty, by ott-jax."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ppl_ext.errors import MissingExtraError
from ppl_ext.priors.distances.distance import Distance, Functions, check_draws
from ppl_ext.runtime.arguments import check_count, check_positive


class Sinkhorn(Distance):
    r"""Entropic transport cost of :math:`\|x - y\|^2/D`, less what it is between draws of one law.

    .. math:: \tfrac12 \big( T(f_1, g_1) + T(f_2, g_2) - T(f_1, f_2) - T(g_1, g_2) \big), \qquad
        T(x, y) = \min_{\pi} \langle \pi, c \rangle + \epsilon\, \mathrm{KL}(\pi \| \tfrac1n \otimes \tfrac1n)

    Each set of draws is halved, so that both laws are compared from as many different draws: the mean is 0
    where they are equal, which the divergence with full self-terms, on few draws of many values, has not.

    :param epsilon: the penalty, over the mean cost between draws of the target.
    :param max_iterations: of Sinkhorn's algorithm.
    :raises MissingExtraError: without ott-jax.

    >>> f, g = jax.random.normal(jax.random.key(0), (2, 64, 3))
    >>> bool(Sinkhorn()(jax.random.key(1), (), Functions(f), Functions(3 * g)) > 1.0)
    True

    Feydy et al., *Interpolating between Optimal Transport and MMD using Sinkhorn Divergences*, 2019, eq. 3,
    with other self-terms.
    """

    epsilon: float = eqx.field(static=True, default=0.05)
    max_iterations: int = eqx.field(static=True, default=200)

    def __check_init__(self):
        check_positive("Sinkhorn: epsilon", self.epsilon)
        check_count("Sinkhorn: max_iterations", self.max_iterations)
        _ott()

    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        pointcloud, linear = _ott()
        f, g = network.values, target.values
        check_draws("Sinkhorn", f, g, at_least=4, even=True, equal=True)
        scale = f.shape[1] ** -0.5
        (f1, f2), (g1, g2) = jnp.split(f * scale, 2), jnp.split(g * scale, 2)
        cost = 2.0 * jnp.mean(jnp.sum((g * scale - jnp.mean(g * scale, 0)) ** 2, axis=1))
        epsilon = jax.lax.stop_gradient(self.epsilon * cost)

        def transport(x, y):
            geometry = pointcloud.PointCloud(x, y, epsilon=epsilon)
            return linear.solve(geometry, max_iterations=self.max_iterations).reg_ot_cost

        pairs = jnp.stack([f1, f2, f1, g1]), jnp.stack([g1, g2, f2, g2])
        costs = jax.vmap(transport)(*pairs)
        return 0.5 * (costs[0] + costs[1] - costs[2] - costs[3])


def _ott():
    try:
        from ott.geometry import pointcloud
        from ott.solvers import linear
    except ImportError as error:
        raise MissingExtraError(
            "Sinkhorn needs ott-jax, which is not installed: pip install 'ppl_ext[priors]'."
        ) from error
    return pointcloud, linear
