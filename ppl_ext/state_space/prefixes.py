"""Products, and sums, of the first one, the first two, and so on, in parallel."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ppl_ext.state_space.compensated_sum import Sum, two_sum
from ppl_ext.state_space.many_solves import mapped


def prefixes(join: Callable, elements: Any, one: Any, reverse: bool = False, rows: int = 0) -> Any:
    """The products of the first element, the first two, and so on to all n: ``join(earlier, later)`` must be
    associative, with ``one`` as its unit.

    As ``lax.associative_scan``, in twice log n rounds of ``n / log n`` joins each, and as many again all at
    once. But that one writes each round out, and a join that is not tiny took 40 s to compile where n was
    1000; here it is written three times, whatever n is. Source: Blelloch 1990, "Prefix sums and their
    applications", for sums within blocks and over them.

    :param join: of one pair, which is mapped over many.
    :param elements: a tree of arrays (n, ...).
    :param one: a tree of arrays (...).
    :param reverse: the products of the last element, the last two, and so on, the earlier one first.
    :param rows: of the matrices that a join solves with, if any (:mod:`~ppl_ext.state_space.many_solves`).
    :return: a tree as of the elements; with ``reverse`` entry i is the product from i to the last.

    >>> prefixes(jnp.multiply, jnp.arange(1.0, 8.0), jnp.float32(1.0)).tolist()
    [1.0, 2.0, 6.0, 24.0, 120.0, 720.0, 5040.0]
    """
    if reverse:
        turned = jax.tree.map(lambda x: x[::-1], elements)
        found = prefixes(lambda later, earlier: join(earlier, later), turned, one, rows=rows)
        return jax.tree.map(lambda x: x[::-1], found)
    num = len(jax.tree.leaves(elements)[0])
    length = max(1, math.ceil(math.log2(num + 1)))
    blocks = -(-num // length)
    if not num:
        return elements

    def ones(*shape):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), one)

    def filled(x, y):
        return jnp.swapaxes(jnp.concatenate([x, y]).reshape(blocks, length, *x.shape[1:]), 0, 1)

    many, index = mapped(join, rows), jnp.arange(blocks)

    def within(so_far, new):
        so_far = many(so_far, new)
        return so_far, so_far

    def across(so_far, distance):
        def before(x, unit):
            far = (index >= distance).reshape(blocks, *[1] * unit.ndim)
            return jnp.where(far, x[jnp.maximum(index - distance, 0)], unit)

        return many(jax.tree.map(before, so_far, one), so_far), None

    laid = jax.tree.map(filled, elements, ones(blocks * length - num))
    totals, inside = lax.scan(within, ones(blocks), laid)
    totals, _ = lax.scan(across, totals, 2 ** jnp.arange(math.ceil(math.log2(blocks))))
    before = jax.tree.map(lambda x, y: jnp.concatenate([x, y[:-1]]), ones(1), totals)
    before = jax.tree.map(lambda x: jnp.repeat(x, length, 0), before)
    inside = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), inside)
    return jax.tree.map(lambda x: x[:num], many(before, inside))


def tree_sum(terms: jax.Array) -> Sum:
    """The sum of terms (n, ...) over the first axis, of which there is at least one, with compensation.

    >>> float(tree_sum(jnp.array([1e8, 1.0, -1e8], jnp.float32)).value)
    1.0
    """
    nothing = jnp.zeros_like(terms)
    sums = prefixes(two_sum, Sum(terms, nothing), Sum(nothing[0], nothing[0]))
    return Sum(*(x[-1] for x in sums))
