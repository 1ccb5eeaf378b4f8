"""Draws from the weights of a cloud, at the cost of a few gathers."""

import jax

from ppl_ext.runtime.random_bits import random_words, to_unit
from ppl_ext.runtime.random_choices import to_index, to_log_unit
from ppl_ext.state_space.resampling import invert, systematic, weights_of


def proposals(rng_key: jax.Array, log_weights: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    r"""Indices (num,), each distributed as the weights, :math:`P(J = j) = \omega_j / \sum \omega`; and
    the logarithm of a uniform number beside each.

    For many at once, a systematic sample of N is drawn and each index is a uniform choice from it. That
    choice is what makes them exchangeable: a systematic sample is sorted, ancestors are sorted as well, and a
    Metropolis chain that starts at entry i of the one and is offered entry i of the other does not target B.
    Conditionally on the sample they are independent, so calls that must be independent of each other take
    different keys.
    """
    sample_key, choice_key = jax.random.split(rng_key)
    words, other_words = random_words(choice_key, num)
    if num < len(log_weights) // 4:
        return invert(weights_of(log_weights), to_unit(words)), to_log_unit(other_words)
    sample = systematic(sample_key, log_weights, len(log_weights))
    return sample[to_index(words, len(sample))], to_log_unit(other_words)
