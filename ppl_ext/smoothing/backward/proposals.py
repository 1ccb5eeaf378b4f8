"""Draws from the weights of a cloud, at the cost of a few gathers."""

import jax

from ppl_ext.algorithms.resampling import systematic, weights_of
from ppl_ext.smoothing.backward.kernel import invert


def proposals(rng_key: jax.Array, log_weights: jax.Array, num: int) -> jax.Array:
    r"""Indices (num,), each distributed as the weights: :math:`P(J = j) = \omega_j / \sum \omega`.

    For many at once, a systematic sample of N is drawn and each index is a uniform choice from it. That choice is what makes
    them exchangeable: a systematic sample is sorted, ancestors are sorted as well, and a Metropolis chain that starts at
    entry i of the one and is offered entry i of the other does not target B. Conditionally on the sample they are
    independent, so calls that must be independent of each other take different keys.
    """
    if num < len(log_weights) // 4:
        return invert(weights_of(log_weights), jax.random.uniform(rng_key, (num,)))
    sample_key, choice_key = jax.random.split(rng_key)
    sample = systematic(sample_key, log_weights, len(log_weights))
    return sample[jax.random.randint(choice_key, (num,), 0, len(sample))]
