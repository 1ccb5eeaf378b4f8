"""Quantiles of weighted particles."""

import jax
import jax.numpy as jnp


def weighted_quantiles(values: jax.Array, weights: jax.Array, levels: jax.Array) -> jax.Array:
    """Quantiles of values (N, d) with weights (N,): (levels, d). The least value whose weight, with those
    below, reaches the level.
    """

    def one(column):
        order = jnp.argsort(column)
        sums = jnp.cumsum(weights[order])
        index = jnp.searchsorted(sums, levels * sums[-1])
        return column[order][jnp.minimum(index, len(column) - 1)]

    return jax.vmap(one, 1, 1)(values)
