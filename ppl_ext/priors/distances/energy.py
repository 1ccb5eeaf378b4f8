"""Distances from pairs of draws: energy, and maximum mean discrepancy. Both without bias, and zero only where
the laws are equal.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.distances.distance import Distance, Functions, check_draws
from ppl_ext.runtime.arguments import check_positive


class Energy(Distance):
    r"""Energy distance, by U-statistics.

    .. math:: \frac{1}{\sqrt D} \big( 2 E\|F - G\| - E\|F - F'\| - E\|G - G'\| \big)

    It grows with the first moment only, and so stays calm where functions have heavy tails. Without bias, so
    it may come out negative.

    :raises ArgumentError: when called, for fewer than 2 draws of either law.

    >>> f, g = jax.random.normal(jax.random.key(0), (2, 200, 5))
    >>> bool(abs(Energy()(jax.random.key(1), (), Functions(f), Functions(g))) < 0.05)
    True

    Székely and Rizzo, *Energy statistics*, 2013, eq. 5.
    """

    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        f, g = network.values, target.values
        check_draws("Energy", f, g, at_least=2)

        # the root has no slope at 0, where no pair of different draws is, but each draw with itself
        def norms(d2):
            return jnp.sqrt(jnp.where(d2 > 0.0, d2, 1.0)) * (d2 > 0.0)

        return _u_statistic(f, g, lambda d2: -norms(d2)) / f.shape[1] ** 0.5


class MMD(Distance):
    r"""Squared maximum mean discrepancy, by U-statistics.

    .. math:: E k(F, F') + E k(G, G') - 2 E k(F, G), \qquad
        k(x, y) = \tfrac13 \sum_{a \in \{.2, 1, 5\}} \Big(1 + \frac{\|x - y\|^2}{2 a h^2}\Big)^{-a}

    :param bandwidth: h; by default the median distance between draws of the target, drawn apart from those
        that are compared, so that the estimate stays without bias.
    :raises ArgumentError: for a bandwidth that is not positive; when called, for fewer than 2 draws of either
        law.

    >>> f, g = jax.random.normal(jax.random.key(0), (2, 200, 5))
    >>> bool(abs(MMD()(jax.random.key(1), (), Functions(f), Functions(g))) < 0.02)
    True

    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, eq. 3.
    """

    bandwidth: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.bandwidth is not None:
            check_positive("MMD: bandwidth", self.bandwidth)

    def start(self, rng_key: jax.Array, dim: int) -> Any:
        return jnp.ones(())

    def prepare(self, rng_key: jax.Array, state: Any, draw) -> Any:
        return _median_distance(draw(rng_key)[1].values) if self.bandwidth is None else state

    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        f, g = network.values, target.values
        check_draws("MMD", f, g, at_least=2)
        if self.bandwidth is not None:
            h = jnp.asarray(self.bandwidth, f.dtype)
        else:
            h = jax.lax.stop_gradient(state if isinstance(state, jax.Array) else _median_distance(g))
        return _u_statistic(
            f, g, lambda d2: sum((1.0 + d2 / (2.0 * a * h**2)) ** -a for a in (0.2, 1.0, 5.0)) / 3.0
        )


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """(n, m), none of them negative."""
    d2 = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :] - 2.0 * x @ y.T
    return jnp.maximum(d2, 0.0)


def _u_statistic(f: jax.Array, g: jax.Array, kernel) -> jax.Array:
    """E k(F, F') + E k(G, G') − 2 E k(F, G), each draw paired with others only."""
    centre = jax.lax.stop_gradient(g.mean(0))  # far from 0 the squares would lose what distances are made of
    f, g = f - centre, g - centre

    def within(x):
        n = len(x)
        others = 1.0 - jnp.eye(n, dtype=x.dtype)
        # The diagonal is exactly 0 and not a rounding error whose root would be taken.
        return jnp.sum(kernel(squared_distances(x, x) * others) * others) / (n * (n - 1))

    return within(f) + within(g) - 2.0 * jnp.mean(kernel(squared_distances(f, g)))


def _median_distance(x: jax.Array) -> jax.Array:
    if len(x) < 2:
        raise ArgumentError("MMD needs at least 2 draws of the target.")
    upper = jnp.triu_indices(len(x), 1)
    median = jnp.median(squared_distances(x - x.mean(0), x - x.mean(0))[upper])
    # draws that are all equal have no scale of their own
    return jnp.sqrt(jnp.where(median > 0.0, median, 1.0))
