"""Random numbers for N particles that run the same program in one ``vmap``.

A key for each particle costs a hash to make it, another for each site and another for each number, and
hashing is most of what a bootstrap filter does. Here the particles share a key, from which a site's numbers
are made for all of them at once; each takes its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import Distribution

from ppl_ext.runtime.random_bits import normals


class LaneKeys:
    """One key for ``num`` lanes.

    >>> keys = LaneKeys(random.key(0), 3)
    >>> x = keys.each(lambda key, loc: key.draw(dist.Normal(loc, 1.0), 1), jnp.array([0.0, 10.0, 20.0]))
    >>> noise = random.normal(random.fold_in(random.key(0), 1), (3,))
    >>> bool(jnp.allclose(x, jnp.array([0.0, 10.0, 20.0]) + noise))
    True
    """

    def __init__(self, key: jax.Array, num: int):
        self.key, self.num = key, num

    def each(self, fn: Callable, *args: Any) -> Any:
        """``vmap`` of ``fn(lane_key, *args)`` over the lanes, which are the leading axis of ``args``."""
        return jax.vmap(lambda index, *lane: fn(LaneKey(self.key, index, self.num), *lane))(
            jnp.arange(self.num), *args
        )


class LaneKey:
    """The key of lane ``index``; made by :meth:`LaneKeys.each` only, and of use inside it only."""

    def __init__(self, key: jax.Array, index: jax.Array, num: int):
        self.key, self.index, self.num = key, index, num

    def own(self, number: int) -> jax.Array:
        """A key that no other lane has, for what is drawn by other rules than :meth:`draw`'s."""
        return random.fold_in(random.fold_in(self.key, number), self.index)

    def apart(self, number: int) -> "LaneKey":
        """Another key, for another program of this lane."""
        return LaneKey(random.fold_in(self.key, number), self.index, self.num)

    def draw(self, law: Distribution, number: int, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """This lane's value of site ``number``, along the same path through the law's parameters as
        NumPyro's.
        """
        moved = _MOVED.get(type(innermost := _innermost(law)))
        if moved is None:
            return law(rng_key=self.own(number), sample_shape=sample_shape)
        noise = normals(random.fold_in(self.key, number), (self.num, *law.shape(sample_shape)))
        return moved(innermost, _of_lane(noise, self.index))


def _innermost(law: Distribution) -> Distribution:
    while isinstance(law, dist.ExpandedDistribution | dist.Independent):
        law = law.base_dist
    return law


# Laws, by exact type, that move standard normals about, element by element or event by event.
_MOVED: dict[type, Callable[[Any, jax.Array], jax.Array]] = {
    dist.Normal: lambda law, noise: law.loc + noise * law.scale,
    dist.MultivariateNormal: lambda law, noise: (
        law.loc + jnp.matmul(law.scale_tril, noise[..., None])[..., 0]
    ),
}


@jax.custom_batching.custom_vmap
def _of_lane(values: jax.Array, index: jax.Array) -> jax.Array:
    return values[index]


@_of_lane.def_vmap
def _of_all_lanes(
    num: int, batched: list[bool], values: jax.Array, index: jax.Array
) -> tuple[jax.Array, bool]:
    # the lanes of LaneKeys.each, in order: a gather would cost as much as the hash
    if batched == [False, True] and len(values) == num:
        return values, True
    return jax.vmap(lambda v, i: v[i], [0 if b else None for b in batched])(values, index), True
