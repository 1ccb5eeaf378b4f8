"""A few Metropolis steps from the ancestor: fixed cost, no bound, gathers only."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_ext.arguments import check_count
from ppl_ext.smoothing.backward.kernel import BackwardKernel, Pairs, Tally, known, no_bound_needed
from ppl_ext.smoothing.backward.proposals import proposals


@dataclass(frozen=True)
class Metropolis(BackwardKernel):
    r"""Independence Metropolis on the index, which leaves B invariant.

    .. math:: j \leftarrow j^* \sim \omega \quad\text{with probability}\quad
        \min\Bigl(1, \frac{m(x_{j^*}, x'_i)}{m(x_j, x'_i)}\Bigr)

    started at the ancestor, which is itself a draw from B as far as the weights of the new particles tell. Several draws are
    successive states of one chain. One step a draw already makes the variance of a sum over T steps grow as T (Dau and Chopin
    2022, theorem 2 and section 4.1).

    :param num_steps: Metropolis steps before each draw.
    """

    num_steps: int = 1

    def __post_init__(self):
        check_count("Metropolis: num_steps", self.num_steps)

    def draw(self, rng_key, pairs: Pairs, lanes, num_draws: int) -> tuple[jax.Array, Tally]:
        start = pairs.ancestors[lanes]
        chain = start, known(pairs.log_pair(start, lanes))

        def step(chain, rng_key):
            index, score = chain
            proposal_key, choice_key = jax.random.split(rng_key)
            proposed = proposals(proposal_key, pairs.log_weights, len(lanes)).astype(index.dtype)
            proposed_score = known(pairs.log_pair(proposed, lanes))
            accept = jax.random.uniform(choice_key, lanes.shape) < acceptance(score, proposed_score)
            chain = jnp.where(accept, proposed, index), jnp.where(accept, proposed_score, score)
            return chain, chain

        keys = jax.random.split(rng_key, num_draws * self.num_steps)
        _, (indices, scores) = jax.lax.scan(step, chain, keys)
        indices, scores = indices[self.num_steps - 1 :: self.num_steps].T, scores[self.num_steps - 1 :: self.num_steps].T
        lost = jnp.isneginf(scores)
        return jnp.where(lost, start[:, None], indices), no_bound_needed(lost.all(1).sum())


def acceptance(score: jax.Array, proposed_score: jax.Array) -> jax.Array:
    """Probability of moving, from log m of the present and of the proposed index; between two impossible ones the chain stays."""
    return jnp.where(jnp.isneginf(proposed_score), 0.0, jnp.exp(jnp.minimum(proposed_score - score, 0.0)))
