"""Draws from the weights of a cloud, at the cost of a few gathers."""

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward.kernel import invert, known


def proposals(rng_key: jax.Array, log_weights: jax.Array, num: int) -> jax.Array:
    r"""Indices (num,), each distributed as the weights: :math:`P(J = j) = \omega_j / \sum \omega`.

    For many at once, a systematic sample of N is drawn and each index is a uniform choice from it. That choice is what makes
    them exchangeable: a systematic sample is sorted, ancestors are sorted as well, and a Metropolis chain that starts at
    entry i of the one and is offered entry i of the other does not target B. Conditionally on the sample they are
    independent, so calls that must be independent of each other take different keys.
    """
    log_weights = known(log_weights)
    weights = jnp.exp(log_weights - jnp.maximum(log_weights.max(), jnp.finfo(log_weights.dtype).min))
    # With no weight at all, every index stands for none.
    weights = jnp.where(weights.sum() > 0, weights, 1.0)
    if num < len(weights) // 4:
        return invert(weights, jax.random.uniform(rng_key, (num,)))
    sample_key, choice_key = jax.random.split(rng_key)
    sample = systematic(sample_key, weights)
    return sample[jax.random.randint(choice_key, (num,), 0, len(sample))]


def systematic(rng_key: jax.Array, weights: jax.Array) -> jax.Array:
    num = len(weights)
    sums = jnp.cumsum(weights)
    ends = jnp.clip(jnp.ceil(num * (sums / sums[-1]) - jax.random.uniform(rng_key)), 0, num).astype(jnp.int32)
    # Rounding must not leave a place to a weight of zero at the end.
    ends = jnp.where(sums >= sums[-1], num, ends)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]])
    # A parent without offspring must not mark the start of the next one's.
    marks = jnp.where(ends > starts, starts, num)
    parents = jnp.zeros(num, jnp.int32).at[marks].max(jnp.arange(num, dtype=jnp.int32), mode="drop")
    return jax.lax.cummax(parents)
