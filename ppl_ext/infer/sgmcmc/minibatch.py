"""Which rows a stochastic gradient sees: fresh indices for subsampled plates, or the model's own arguments
cut along their first axis.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.primitives import Messenger

from ppl_ext.diagnostics.sites import Site, describe
from ppl_ext.errors import ArgumentError, ModelError, PplExtError
from ppl_ext.runtime.arguments import check_count, described
from ppl_ext.runtime.random_bits import random_words


def draw_rows(rng_key: jax.Array, size: int, num: int) -> jax.Array:
    """``num`` different indices below ``size``, every set of them equally likely, in random order: (num,).

    NumPyro's own draw takes a sequential loop on the CPU and a permutation of all rows elsewhere, either
    longer than the gradient of a small network. Here indices are drawn with replacement and the first ``num``
    different ones kept. Should there be fewer, all are drawn again: whether there are depends on which draws
    are equal and not on what they are, so no index is favoured.

    >>> sorted(draw_rows(jax.random.key(0), 3, 3).tolist())
    [0, 1, 2]
    """
    if 2 * num > size:  # most of them: a permutation is no longer than what it gives
        return jax.random.permutation(rng_key, size)[:num]
    repeats = -size * math.log1p(-num / size) - num  # expected among as many as it takes
    tries = math.ceil(num + repeats + 4.0 * math.sqrt(repeats) + 4.0)
    limit = 2**32 // size * size  # a word from here on would favour low indices: it is passed over

    def draw(carry):
        attempt, _, _ = carry
        words = jnp.concatenate(random_words(rng_key, (tries + 1) // 2, attempt))[:tries]
        valid, order = words <= jnp.uint32(limit - 1), jnp.arange(tries)
        found = jnp.where(valid, (words % jnp.uint32(size)).astype(order.dtype), size + order)
        picked, enough = (_by_pairs if tries <= 128 else _by_sorting)(found, valid, num)
        return attempt + 1, picked, enough

    none = jnp.zeros(num, jnp.result_type(int)), jnp.zeros((), bool)
    return jax.lax.while_loop(lambda carry: ~carry[2], draw, (jnp.zeros((), jnp.uint32), *none))[1]


def _by_pairs(found: jax.Array, valid: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """The first ``num`` different ones, and whether there are as many: by comparing all pairs, which for few
    beats sorting.
    """
    order = jnp.arange(len(found))
    earlier = order[None, :] < order[:, None]
    new = valid & ~jnp.any(earlier & (found[None, :] == found[:, None]), axis=1)
    rank = jnp.sum((order[None, :] <= order[:, None]) & new[None, :], axis=1)
    return found[jnp.sum(rank[None, :] <= jnp.arange(num)[:, None], axis=1)], rank[-1] >= num


def _by_sorting(found: jax.Array, valid: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    order = jnp.argsort(found, stable=True)  # equal ones together, the earliest first
    new = valid & jnp.ones(len(found), bool).at[order[1:]].set(jnp.diff(found[order]) != 0)
    position = jnp.where(new, jnp.cumsum(new) - 1, num)
    return jnp.zeros(num, found.dtype).at[position].set(found, mode="drop"), new.sum() >= num


class Rows(NamedTuple):
    """How arguments are cut: every array whose first axis is ``size`` long to ``batch_size`` rows of it, and
    the log densities of the sites ``scaled`` are weighed by the ratio of the two."""

    size: int
    batch_size: int
    scaled: frozenset[str]

    def cut(self, indices: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return cut(self.size, indices, args, kwargs)


class Weighed(Messenger):
    """Multiply the log densities of these sites."""

    def __init__(self, names: frozenset[str], factor: float):
        super().__init__()
        self.names, self.factor = names, factor

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] in self.names:
            msg["scale"] = self.factor if msg["scale"] is None else self.factor * msg["scale"]


def cut(size: int, indices: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """These rows of every array whose first axis is ``size`` long; everything else as it is."""

    def take(x):
        return jnp.asarray(x)[indices] if _rows_of(x) == size else x

    held = {name: x for name, x in kwargs.items() if name == GIBBS_SITES_KWARG}
    return tuple(jax.tree.map(take, list(args))), {
        **jax.tree.map(take, {n: x for n, x in kwargs.items() if n not in held}),
        **held,
    }


def _rows_of(x: Any) -> int | None:
    shape = getattr(x, "shape", None)
    return shape[0] if shape else None


def find_rows(where: str, model: Callable, batch_size: int, args: tuple, kwargs: Mapping[str, Any]) -> Rows:
    """How the arguments of a model without subsampled plates are cut into minibatches.

    The number of rows is read off: it is the length of an axis of an observed site's batch shape and the
    first axis of an argument. The model is then run, abstractly, on cut arguments: each latent site must keep
    its shape, and each observed site must keep its own or have one batch axis cut.

    :raises ArgumentError: if no argument can be cut, or there is no telling which, or ``batch_size`` is more
        than there are rows.
    :raises ModelError: if a site's shape says that rows are not independent given the latent sites.
    """
    check_count(f"{where}: batch_size", batch_size)
    own = {n: x for n, x in kwargs.items() if n != GIBBS_SITES_KWARG}
    lengths = {n for x in jax.tree.leaves((list(args), own)) if (n := _rows_of(x))}
    sites = describe(model, {}, args, kwargs)
    axes = {n for s in sites.values() if s.kind in ("observed", "factor") for n in s.batch_shape}
    sizes = sorted(lengths & axes - {1}, reverse=True)
    remedy = (
        "Write the plate as numpyro.plate(name, size, subsample_size=...) with numpyro.subsample on the "
        "data, and leave batch_size away."
    )
    if not sizes:
        raise ArgumentError(
            f"{where}: batch_size={batch_size} cuts the model's arguments along the first axis of its data, "
            f"but no argument (first axes {sorted(lengths)}) is as long as an axis of an observed site "
            f"{_observed(sites)}. Pass the data as arguments of the model. {remedy}"
        )
    if batch_size > max(sizes):
        raise ArgumentError(
            f"{where}: batch_size={batch_size} is more than the {max(sizes)} rows of the data."
        )
    reasons: list[str] = []
    found = []
    for size in (n for n in sizes if n >= batch_size):
        try:
            found.append(Rows(size, batch_size, _scaled(model, sites, size, batch_size, args, kwargs)))
        except PplExtError as error:
            reasons.append(str(error))
        except (TypeError, ValueError, IndexError) as error:
            reasons.append(
                f"on {batch_size} of {size} rows the model fails ({error}); sizes must come from the "
                "arguments, as in numpyro.plate('rows', x.shape[0])"
            )
    if len(found) == 1:
        return found[0]
    if found:
        raise ArgumentError(
            f"{where}: batch_size={batch_size} could cut arguments of "
            f"{' or of '.join(str(r.size) for r in found)} rows. {remedy}"
        )
    raise ModelError(
        f"{where}: batch_size={batch_size} does not fit the model: {'; '.join(reasons)}. {remedy}"
    )


def _observed(sites: Mapping[str, Site]) -> str:
    return (
        ", ".join(f"'{n}' {s.batch_shape}" for n, s in sites.items() if s.kind == "observed")
        or "(there is none)"
    )


def _scaled(
    model, sites: Mapping[str, Site], size: int, batch_size: int, args: tuple, kwargs: Mapping[str, Any]
) -> frozenset[str]:
    """The observed sites whose rows are cut."""
    part = describe(model, {}, *cut(size, np.arange(batch_size), args, kwargs))
    if set(part) != set(sites):
        raise ModelError(
            f"which sites there are depends on the number of rows ({sorted(set(part) ^ set(sites))})"
        )
    if size == batch_size:
        return frozenset()
    scaled = set()
    for name, site in sites.items():
        now = part[name]
        if (
            site.kind in ("param", "mutable", "deterministic")
            or now.shape == site.shape
            and now.batch_shape == site.batch_shape
        ):
            continue
        if site.kind == "latent":
            raise ModelError(
                f"the latent site '{name}' has shape {site.shape} on {size} rows and {now.shape} on "
                f"{batch_size}: values of rows that are not in the minibatch would be lost"
            )
        if site.in_scan:
            raise ModelError(f"site '{name}' is in a scan, whose steps are no independent rows")
        changed = [(a, b) for a, b in zip(site.batch_shape, now.batch_shape, strict=True) if a != b]
        if changed != [(size, batch_size)]:
            raise ModelError(
                f"the observed site '{name}' has batch shape {site.batch_shape}, event included "
                f"{site.shape}, on {size} rows and {now.batch_shape}, {now.shape}, on {batch_size}: rows "
                "must be an axis of the batch shape, not of the event"
            )
        scaled.add(name)
    if not scaled:
        raise ModelError(f"no observed site changes when the arguments of {described(size)} rows are cut")
    return frozenset(scaled)
