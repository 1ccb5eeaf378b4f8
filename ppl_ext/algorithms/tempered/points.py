r"""A path of densities on unconstrained positions, from a law that is drawn from to the target.

.. math:: \log \pi_\tau(u) = b(u) + \sum_k \omega_k(\tau)\, \ell_k(u), \qquad 0 \le \tau \le 1

b is the log density of the law at :math:`\tau = 0` with the Jacobian of the map from u to the sites' values;
:math:`\ell` are the parts of the log density that come on the way, one for tempering, one for each block of
rows for data that come in order. :math:`\omega_k(\tau) = \min(1, \max(0, \tau K - k))`, so that one part is
:math:`\tau` itself, and of several one after the other is let in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


class Points(NamedTuple):
    """Positions (N, D) with the two parts of their density, ``base`` (N,) and ``parts`` (N, K)."""

    position: jax.Array
    base: jax.Array
    parts: jax.Array


class Path(NamedTuple):
    """What the engine needs to know of a target, all of it at one position (D,).

    ``draw``: key to a position from the law at 0. ``density``: position to base and parts (K,). ``values``:
    position to the sites' values.
    """

    size: int
    num_parts: int
    draw: Callable[[jax.Array], jax.Array]
    density: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    values: Callable[[jax.Array], dict[str, jax.Array]]


def held_fixed(path: Path) -> Path:
    """The path with no derivative by what the program reads from around it: moves and weights have none."""

    def held(fn: Callable, example: Any) -> Callable:
        closed, around = jax.closure_convert(fn, example)
        around = stop_gradient(around)
        return lambda x: closed(x, *around)

    at = jnp.zeros(path.size)
    return path._replace(draw=held(path.draw, jax.random.key(0)), density=held(path.density, at))


def shares_of_parts(path: Path, tau: jax.Array) -> jax.Array:
    """(K,) how much of each part counts at ``tau``."""
    return jnp.clip(tau * path.num_parts - jnp.arange(path.num_parts), 0.0, 1.0)


def weighed(parts: jax.Array, shares: jax.Array) -> jax.Array:
    """Parts (N, K) summed with shares (K,), of which a share of nothing counts for nothing."""
    return jnp.where(shares > 0, shares * parts, 0.0).sum(-1)


def log_density_at(path: Path, points: Points, tau: jax.Array) -> jax.Array:
    """(N,) log density at ``tau``, up to its constant."""
    return points.base + weighed(points.parts, shares_of_parts(path, tau))


def log_gain(path: Path, points: Points, before: jax.Array, after: jax.Array) -> jax.Array:
    """(N,) log weights of points at one ``tau`` for another, later one."""
    return weighed(points.parts, shares_of_parts(path, after) - shares_of_parts(path, before))


def points_at(path: Path, position: jax.Array) -> tuple[Points, jax.Array]:
    """Positions (N, D) with their densities, and how many of these were NaN, which count as zero."""
    base, parts = jax.vmap(path.density)(position)
    broken = jnp.isnan(base) | jnp.isnan(parts).any(-1)
    parts = jnp.where(broken[:, None], -jnp.inf, parts)
    return Points(position, jnp.where(broken, -jnp.inf, base), parts), broken.sum(dtype=jnp.int32)


def chosen(is_new: jax.Array, new: Points, old: Points) -> Points:
    """One or the other, by point."""
    return Points(
        jnp.where(is_new[:, None], new.position, old.position),
        jnp.where(is_new, new.base, old.base),
        jnp.where(is_new[:, None], new.parts, old.parts),
    )
