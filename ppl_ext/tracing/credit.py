r"""Which elements of a cost does one element of a random site touch?

A score-function gradient charges a draw with the costs it can influence, and only with those: an element of a
plate with its own slice, a time step with the steps to come. This module reads that off the data flow of the
traced program, so it is sound whatever the model says about its plates, and works without plates too.

For every random site and every array in the program we keep one relation per axis of the site:

- ``("at", a)``: element i of the site touches only position i on axis a of the array;
- ``("upto", a)``: element i touches only positions i, i+1, ... on axis a (a scan's later steps);
- ``("before", a)`` and ``("step", a)``: it touches only position i+1, or only i and i+1 (a chain, one link at
  a time);
- ``("now", l)``, ``("prev", l)``, ``("link", l)`` and ``("past", l)``: inside the body of loop l, only this
  iteration's element, only that of the iteration before, only these two, or also earlier ones;
- ``None``: no such guarantee; the site may touch everything along this axis.

A site that is absent does not touch the array. Rules per JAX primitive (:mod:`ppl_ext.tracing.dataflow`) move
relations from inputs to outputs; a primitive without a rule loses them, which costs variance and never
correctness.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from ppl_ext.tracing.dataflow import site_p, start, through
from ppl_ext.tracing.jaxprs import body
from ppl_ext.tracing.relations import Deps, Relation


def mark(value: jax.Array, site: str, batch_ndim: int) -> jax.Array:
    """Mark a site's value, whose first ``batch_ndim`` axes are its elements, for :func:`trace_credit`."""
    return site_p.bind(jnp.asarray(value), site=site, batch_ndim=batch_ndim)


def trace_credit(fn: Callable[[], list[jax.Array]], links: bool = False) -> tuple[list[Deps], set[str]]:
    """Trace ``fn`` (never running it) and relate every marked site to each array it returns.

    Loops around a mark become leading axes of the site, outermost first, as ``scan`` stacks them. The second
    result names the marks that were met, each of them; one that is not there sits inside a primitive this
    module cannot open, and may touch everything (:func:`distrust`).

    :param links: tell ``("before", a)`` and ``("step", a)`` from ``("upto", a)``, which says less.
    """
    closed = jax.make_jaxpr(fn)()
    loops = start()
    out = through(body(closed), [], loops)
    for what in loops.unread.values():
        warnings.warn(
            f"ppl_ext cannot read a program of jax {jax.__version__} in full: {what}. What it computes "
            "stays right, but gradients may be noisier than they need be, and finite sites may be refused "
            "that could be summed out. A newer ppl_ext may know it.",
            stacklevel=2,
        )
    met = loops.met - loops.lost
    return (
        out
        if links
        else [{site: tuple(map(_later, relation)) for site, relation in deps.items()} for deps in out]
    ), met


def distrust(credit: Sequence[Deps], met: set[str], ranks: Mapping[str, int]) -> None:
    """Relate sites that were not met to everything, with as many axes as ``ranks`` says."""
    for site, ndim in ranks.items():
        if site not in met:
            for deps in credit:
                deps[site] = (None,) * ndim


def _later(r: Relation) -> Relation:
    return ("upto", r[1]) if r is not None and r[0] in ("before", "step") else r


def spread(x: jax.Array, relation: tuple[Relation, ...], ndim: int, times: bool = False) -> jax.Array:
    """Bring elements of a site to the positions of a cost that they touch, adding up (or multiplying) where
    several touch one.
    """
    reduce, accumulate = (jnp.prod, jnp.cumprod) if times else (jnp.sum, jnp.cumsum)
    kept = []
    for axis in reversed(range(x.ndim)):
        match relation[axis]:
            case ("at", a):
                kept.append((a, axis))
            case ("upto", a):
                x = accumulate(x, axis=axis)
                kept.append((a, axis))
    x = reduce(x, axis=tuple(set(range(x.ndim)) - {axis for _, axis in kept}), keepdims=True)
    kept.sort()
    x = jnp.transpose(
        x, [axis for _, axis in kept] + [a for a in range(x.ndim) if a not in {axis for _, axis in kept}]
    )
    shape = [1] * ndim
    for (a, _), size in zip(kept, x.shape, strict=False):
        shape[a] = size
    return x.reshape(shape)


def collect(cost: jax.Array, relation: tuple[Relation, ...], shape: tuple[int, ...]) -> jax.Array:
    """For each element of a site of the given shape, the sum of the cost's positions that it touches."""
    axes = []
    for rel in relation:
        match rel:
            case ("at", a):
                axes.append(a)
            case ("upto", a):
                cost = jnp.flip(jnp.cumsum(jnp.flip(cost, a), axis=a), a)
                axes.append(a)
    cost = jnp.sum(cost, axis=tuple(set(range(cost.ndim)) - set(axes)), keepdims=True)
    cost = jnp.transpose(cost, axes + [a for a in range(cost.ndim) if a not in axes])
    sizes = iter(cost.shape)
    return jnp.broadcast_to(cost.reshape([1 if rel is None else next(sizes) for rel in relation]), shape)


def shared_sums(wanted: Sequence[frozenset[tuple]], make: Callable[..., jax.Array]) -> list[jax.Array | None]:
    """The sums of ``make(*key)`` over each set of keys, one built on another where sets hold one another;
    ``None`` for an empty set.

    In a chain of S sites the costs feel 1, 2, ..., S of them: S additions and not S²/2.
    """
    sums: dict[frozenset, jax.Array] = {}
    for keys in sorted(set(wanted), key=len):
        inner = next((known for known in reversed(sums) if known < keys), frozenset())
        total = sums.get(inner)
        for key in sorted(keys - inner, key=str):  # in an order that does not change from process to process
            total = make(*key) if total is None else total + make(*key)
        if total is not None:
            sums[keys] = total
    return [sums.get(keys) for keys in wanted]
