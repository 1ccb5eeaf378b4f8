"""Evaluate a function at many draws in chunks that fit in memory."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from ppl_ext.runtime.one_off import OneOff

CHUNK_ELEMENTS = 2**22
"""How many numbers a chunk of draws may hold at its widest site (16 MB in float32)."""


def over_draws(fn: Callable) -> OneOff:
    """``fn(shared, draw)`` for a chunk of draws, compiled; what :func:`map_draws` takes."""
    # The index gives vmap its axis even where there is nothing to draw.
    return OneOff(jax.vmap(lambda shared, draw, index: fn(shared, draw), in_axes=(None, 0, 0)))


def map_draws(step: OneOff, draws: Any, shared: Any, num_chains: int, num_draws: int, chunk_size: int) -> Any:
    """``fn(shared[chain], draws[chain, draw])`` for every draw, on the host, at most ``chunk_size`` draws at
    once.

    ``step`` is ``over_draws(fn)``; ``shared`` and ``draws`` are pytrees whose leaves start with a chain axis,
    and (chain, draw) axes. All chunks have the same shape, so one compilation serves them all; only one
    chunk's results live on the device.
    """
    chunk_size = max(1, min(chunk_size, num_draws))
    calls = num_chains * math.ceil(num_draws / chunk_size)
    chains = []
    for c in range(num_chains):
        here = jax.tree.map(lambda x, c=c: x[c], shared)
        pieces = []
        for start in range(0, num_draws, chunk_size):
            # The last chunk reaches back instead of being shorter; what it computes twice is dropped.
            first = min(start, num_draws - chunk_size)
            chunk = jax.tree.map(lambda x, c=c, i=first: x[c, i : i + chunk_size], draws)
            out = jax.device_get(step(here, chunk, np.arange(chunk_size), calls=calls))
            pieces.append(jax.tree.map(lambda x, k=start - first: x[k:], out))
        chains.append(jax.tree.map(lambda *xs: np.concatenate(xs), *pieces))
    return jax.tree.map(lambda *xs: np.stack(xs), *chains)


def default_chunk(shapes: Iterable[tuple[int, ...]]) -> int:
    """Draws per chunk so that arrays of these shapes together hold about :data:`CHUNK_ELEMENTS` numbers."""
    return max(1, CHUNK_ELEMENTS // max(1, sum(math.prod(shape) for shape in shapes)))
