"""Nothing drawn: each particle keeps the path it came along."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward.kernel import BackwardKernel, Pairs, Tally, no_bound_needed


@dataclass(frozen=True)
class Path(BackwardKernel):
    """The ancestor itself, :math:`\\tau_i = \\tau_{A_i} + \\tilde h(x_{A_i}, x'_i)`.

    All paths soon share their beginning, so the variance of a sum over T steps grows as T², where the others'
    grows as T. It is here for comparison, and for models whose step depends on more of the past than the
    sites of the step before.

    >>> import jax
    >>> weights = jnp.log(jnp.array([0.2, 0.8]))  # of two particles; either could have led to either new one
    >>> pairs = Pairs(weights, jnp.array([0, 1]), lambda j, i: jnp.zeros(j.shape))
    >>> Path().draw(jax.random.key(0), pairs, jnp.arange(2), num_draws=3)[0].tolist()
    [[0, 0, 0], [1, 1, 1]]
    """

    reversible = True
    needs_markov = False

    def draw(self, rng_key, pairs: Pairs, lanes, num_draws: int) -> tuple[jax.Array, Tally]:
        drawn = jnp.broadcast_to(pairs.ancestors[lanes][:, None], (len(lanes), num_draws))
        return drawn, no_bound_needed(jnp.zeros((), jnp.int32))

    def average(self, rng_key, pairs: Pairs, value: Callable, num_draws: int) -> tuple[Any, Tally]:
        return value(pairs.ancestors, jnp.arange(len(pairs.ancestors))), no_bound_needed(
            jnp.zeros((), jnp.int32)
        )
