r"""What a backward kernel is: a way to choose, for particles of one step, the particle of the step before
that they came from.

.. math:: B(i, j) \propto \omega_j \, m(x_j, x'_i)

with the weights ω and particles x of the step before, and the transition density m of the model whatever the
proposal was (Olsson and Westerborn 2017, eq. 6). Where the emission depends on the state before, it belongs
to m.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 1 << 18
"""Entries of the matrix of pairs that are held at a time."""


class Pairs(NamedTuple):
    """Two neighbouring clouds, as a backward kernel sees them.

    :param log_weights: (N,) of the particles before, unnormalised.
    :param ancestors: (M,) the particle before that each new one was moved from.
    :param log_pair: ``(j, i)``, two integer arrays of one shape, to log m(x_j, x'_i) of that shape.
    :param log_bound: a number that log m does not exceed for any of these pairs; only ``hybrid`` reads it.

    >>> weights = jnp.log(jnp.array([0.2, 0.8]))  # of two particles; either could have led to either new one
    >>> pairs = Pairs(weights, jnp.array([0, 1]), lambda j, i: jnp.zeros(j.shape))
    >>> row = probabilities(log_rows(pairs, jnp.array([1])))[0]  # of B, for the second of the new ones
    >>> [round(float(p), 3) for p in row[0]]
    [0.2, 0.8]
    """

    log_weights: jax.Array
    ancestors: jax.Array
    log_pair: Callable[[jax.Array, jax.Array], jax.Array]
    log_bound: jax.Array | None = None


class Tally(NamedTuple):
    """What went wrong in drawing.

    :param fallbacks: rows of B that were zero throughout and fell back to the ancestor.
    :param excess: by how many nats a pair exceeded the bound it should have kept; at most 0 where all did.

    >>> tally = no_bound_needed(jnp.array(0))  # of a kernel that reads no bound
    >>> int(tally.fallbacks), float(tally.excess)
    (0, -inf)
    """

    fallbacks: jax.Array
    excess: jax.Array


class BackwardKernel(ABC):
    """How to draw from B, and how to average under it.

    >>> class Likeliest(BackwardKernel):  # for a look at the data: the mode of each row, no draw from it
    ...     def draw(self, rng_key, pairs, lanes, num_draws):
    ...         best = log_rows(pairs, lanes).argmax(1)
    ...         return jnp.repeat(best[:, None], num_draws, 1), no_bound_needed(jnp.array(0))
    >>> # near ones are likely
    >>> pairs = Pairs(jnp.zeros(3), jnp.array([0, 0]), lambda j, i: -1.0 * (j - i) ** 2)
    >>> mean, _ = Likeliest().average(None, pairs, lambda j, i: 10.0 * j, num_draws=2)
    >>> mean.tolist()
    [0.0, 10.0]
    """

    needs_bound = False
    """Whether :attr:`Pairs.log_bound` is read."""
    reversible = False
    """Whether sweeps that draw a path by it are: draws are from B itself, or are the ancestors."""
    needs_markov = True
    """Whether a state has to say all of what comes later, as it does not where steps read further back."""

    @abstractmethod
    def draw(self, rng_key: jax.Array, pairs: Pairs, lanes: Any, num_draws: int) -> tuple[jax.Array, Tally]:
        """Indices (L, num_draws) of particles before, for the new particles ``lanes`` (L,), an array of JAX
        or NumPy.
        """

    def average(self, rng_key: jax.Array, pairs: Pairs, value: Callable, num_draws: int) -> tuple[Any, Tally]:
        """The mean of ``value(j, i)`` over j from B, for every new particle i: leaves (M, ...).

        :param value: two integer arrays of one shape to a pytree whose leaves begin with that shape.
        """
        lanes = np.arange(len(pairs.ancestors))  # not of JAX, so that `rows` sees that these are all of them
        drawn, tally = self.draw(rng_key, pairs, lanes, num_draws)
        values = jax.vmap(lambda j: value(j, lanes), 1)(drawn)
        # Written out: XLA's CPU reduction of a short axis takes ten times as long.
        return jax.tree.map(
            lambda x: (sum(x[1:], start=x[0]) if num_draws <= 8 else x.sum(0)) / num_draws, values
        ), tally


def rows(tree: Any, index: Any) -> Any:
    """Rows ``index`` of every leaf. Known to be all of them in order, they are taken as they are: a gather
    costs as much for these.
    """
    if isinstance(index, np.ndarray) and np.array_equal(index, np.arange(len(jax.tree.leaves(tree)[0]))):
        return tree
    return jax.tree.map(lambda x: x[index], tree)


def no_bound_needed(fallbacks: jax.Array) -> Tally:
    return Tally(fallbacks, jnp.full((), -jnp.inf))


def log_rows(pairs: Pairs, lanes: jax.Array) -> jax.Array:
    """Rows (L, N) of log ω + log m; NaN, the density of a state that a model cannot score, is a zero
    weight.
    """
    earlier = jnp.arange(len(pairs.log_weights))
    j, i = jnp.broadcast_arrays(earlier[None, :], lanes[:, None])
    return known(pairs.log_weights[None, :] + pairs.log_pair(j, i))


def known(log_density: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)


def probabilities(log_rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows normalised (zero throughout where no entry is finite), and which rows those are."""
    top = log_rows.max(-1, keepdims=True)
    weights = jnp.where(jnp.isneginf(top), 0.0, jnp.exp(log_rows - jnp.where(jnp.isneginf(top), 0.0, top)))
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0), jnp.isneginf(top[..., 0])


def in_blocks(fn: Callable, lanes: Any, width: int) -> Any:
    """``fn`` of one lane, for all along the leading axis of ``lanes``; ``width`` numbers a lane, and few
    lanes, are held at a time.
    """
    size = max(1, BLOCK // max(width, 1))
    short = len(jax.tree.leaves(lanes)[0]) <= size
    return jax.vmap(fn)(lanes) if short else jax.lax.map(fn, lanes, batch_size=size)
