"""A few Metropolis steps from the ancestor: fixed cost, no bound, gathers only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.runtime.arguments import check_count
from ppl_ext.smoothing.backward.kernel import BackwardKernel, Pairs, Tally, known, no_bound_needed, rows
from ppl_ext.smoothing.backward.proposals import proposals

_WRITTEN_OUT = 4  # so many steps are traced one by one, more in a loop


@dataclass(frozen=True)
class Metropolis(BackwardKernel):
    r"""Independence Metropolis on the index, which leaves B invariant.

    .. math:: j \leftarrow j^* \sim \omega \quad\text{with probability}\quad
        \min\Bigl(1, \frac{m(x_{j^*}, x'_i)}{m(x_j, x'_i)}\Bigr)

    started at the ancestor, which is itself a draw from B as far as the weights of the new particles tell.
    Several draws are successive states of one chain. One step a draw already makes the variance of a sum over
    T steps grow as T (Dau and Chopin 2022, theorem 2 and section 4.1).

    :param num_steps: Metropolis steps before each draw.
    :raises ArgumentError: for a number of steps below 1.

    >>> import jax
    >>> weights = jnp.log(jnp.array([0.2, 0.8]))  # of two particles; either could have led to either new one
    >>> pairs = Pairs(weights, jnp.array([0, 1]), lambda j, i: jnp.zeros(j.shape))
    >>> kernel, key = Metropolis(num_steps=1), jax.random.key(0)
    >>> mean, _ = kernel.average(key, pairs, lambda j, i: 1.0 * j, num_draws=2000)
    >>> [round(float(x), 1) for x in mean]
    [0.8, 0.8]
    """

    num_steps: int = 1

    def __post_init__(self):
        check_count("Metropolis: num_steps", self.num_steps)

    def draw(self, rng_key, pairs: Pairs, lanes, num_draws: int) -> tuple[jax.Array, Tally]:
        drawn, tally = self._chain(rng_key, pairs, lanes, num_draws)
        return jnp.stack(drawn, 1), tally

    def average(self, rng_key, pairs: Pairs, value: Callable, num_draws: int) -> tuple[Any, Tally]:
        if num_draws > _WRITTEN_OUT:
            return super().average(rng_key, pairs, value, num_draws)
        lanes = np.arange(len(pairs.ancestors))  # see `rows`
        drawn, tally = self._chain(rng_key, pairs, lanes, num_draws)
        return jax.tree.map(
            lambda *each: sum(each[1:], start=each[0]) / num_draws, *(value(j, lanes) for j in drawn)
        ), tally

    def _chain(self, rng_key, pairs: Pairs, lanes, num_draws: int) -> tuple[list[jax.Array], Tally]:
        """The draws (L,) one after another."""
        start = rows(pairs.ancestors, lanes)
        chain = start, known(pairs.log_pair(start, lanes))

        def step(chain, rng_key):
            index, score = chain
            proposed, log_uniforms = proposals(rng_key, pairs.log_weights, len(lanes))
            proposed = proposed.astype(index.dtype)
            proposed_score = known(pairs.log_pair(proposed, lanes))
            accept = log_uniforms < log_acceptance(score, proposed_score)
            chain = jnp.where(accept, proposed, index), jnp.where(accept, proposed_score, score)
            return chain, chain

        keys = jax.random.split(rng_key, num_draws * self.num_steps)
        if len(keys) <= _WRITTEN_OUT:  # then the steps share what they make of the weights
            chains = [chain := step(chain, key)[0] for key in keys]
        else:
            stacked = jax.lax.scan(step, chain, keys)[1]
            chains = [jax.tree.map(lambda x, k=k: x[k], stacked) for k in range(len(keys))]
        chains = chains[self.num_steps - 1 :: self.num_steps]
        lost = [jnp.isneginf(score) for _, score in chains]
        drawn = [jnp.where(gone, start, index) for gone, (index, _) in zip(lost, chains, strict=True)]
        return drawn, no_bound_needed(jnp.stack(lost).all(0).sum())


def log_acceptance(score: jax.Array, proposed_score: jax.Array) -> jax.Array:
    """Log probability of moving, from log m of the present and of the proposed index; between two impossible
    ones the chain stays.
    """
    return jnp.where(jnp.isneginf(proposed_score), -jnp.inf, jnp.minimum(proposed_score - score, 0.0))
