"""A few rounds of rejection, then the exact law for whoever is left."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count
from ppl_ext.smoothing.backward.dense import Dense
from ppl_ext.smoothing.backward.kernel import BackwardKernel, Pairs, Tally, known
from ppl_ext.smoothing.backward.proposals import proposals


@dataclass(frozen=True)
class Hybrid(BackwardKernel):
    r"""Exact draws from B under a bound :math:`m \le e^{b}`, for any number of rounds.

    .. math:: j \sim \omega, \quad\text{kept with probability}\quad m(x_j, x'_i) \, e^{-b}

    In a round all lanes are offered an index at once; those still without one after ``num_rounds`` draw from
    their row in full, block by block. Pure rejection would make every lane wait for the slowest: hundreds of
    rounds on average at N = 100 (Dau and Chopin 2022, section 3).

    :param num_rounds: from 1 to 8.
    :param block: lanes whose rows are evaluated together.
    :raises ArgumentError: for options out of range; when it draws, if there is no bound.

    >>> # log_bound=jnp.array(0.0) would do
    >>> cloud = Pairs(jnp.zeros(2), jnp.array([0, 1]), lambda j, i: jnp.zeros(j.shape))
    >>> Hybrid().draw(None, cloud, jnp.arange(2), num_draws=1)
    Traceback (most recent call last):
    ppl_ext.errors.ArgumentError: backward='hybrid' needs a bound on the log transition density, ...
    """

    num_rounds: int = 8
    block: int = 64
    needs_bound = True
    reversible = True

    def __post_init__(self):
        check_count("Hybrid: num_rounds", self.num_rounds)
        check_count("Hybrid: block", self.block)
        if self.num_rounds > 8:
            raise ArgumentError(
                f"Hybrid: num_rounds must be at most 8, got {self.num_rounds}; later rounds cost more than "
                "what is left."
            )

    def draw(self, rng_key, pairs: Pairs, lanes, num_draws: int) -> tuple[jax.Array, Tally]:
        log_bound = pairs.log_bound
        if log_bound is None:
            raise ArgumentError(
                "backward='hybrid' needs a bound on the log transition density, and none is known: pass "
                "log_bound=, or use 'mcmc'."
            )
        lane = jnp.repeat(lanes, num_draws)
        num = len(lane)
        # A multiple of the block, so that the last block of leftovers reads and writes within bounds.
        block = min(self.block, num)
        rejection_key, dense_key = jax.random.split(rng_key)

        def one_round(state, rng_key):
            index, waiting, excess = state
            proposed, log_uniforms = proposals(rng_key, pairs.log_weights, num)
            log_ratio = known(pairs.log_pair(proposed, lane)) - log_bound
            accept = waiting & (log_uniforms < log_ratio)
            return (
                jnp.where(accept, proposed, index),
                waiting & ~accept,
                jnp.maximum(excess, log_ratio.max()),
            ), None

        state = jnp.zeros(num, jnp.int32), jnp.ones(num, bool), jnp.full((), -jnp.inf)
        (index, waiting, excess), _ = jax.lax.scan(
            one_round, state, jax.random.split(rejection_key, self.num_rounds)
        )

        order = jnp.argsort(~waiting, stable=True)  # those who wait come first
        left = waiting.sum()

        def more(state):
            return state[0] < left

        def one_block(state):
            start, index, fallbacks = state
            rows = start + jnp.arange(block)
            inside = rows < left
            who = order[jnp.minimum(rows, num - 1)]
            drawn, empty = Dense().rows(jax.random.fold_in(dense_key, start), pairs, lane[who])
            index = index.at[jnp.where(inside, who, num)].set(drawn, mode="drop")
            return start + block, index, fallbacks + (inside & empty).sum()

        zero = jnp.zeros((), jnp.int32)
        _, index, fallbacks = jax.lax.while_loop(more, one_block, (zero, index, jnp.zeros_like(left)))
        # All draws of a lane without any weight wait, so each was counted.
        return index.reshape(len(lanes), num_draws), Tally(fallbacks // num_draws, excess)
