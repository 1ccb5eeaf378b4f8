"""Episodes of one length run together, without padding: for models that see more of their rows than a plate
over them does.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.meta.checks import bad_episode
from ppl_ext.meta.distributions.low_rank import Factored, LowRank
from ppl_ext.meta.hierarchy import Hierarchy
from ppl_ext.meta.solvers.local import Gaussian, Quadratic
from ppl_ext.meta.streams.stream import Batch


class Part(NamedTuple):
    """Episodes of a batch that are run together: their places in it (k,), and they themselves."""

    places: np.ndarray
    batch: Batch


def parts(hierarchy: Hierarchy, stream: Any, batch: Batch) -> list[Part]:
    """A batch of a stream as it is to be run: whole where nothing is padded or the padding is not seen, else
    by length, unpadded.
    """
    lengths = np.asarray(batch.lengths)
    if hierarchy.pads or not any(stream.ragged):
        return [Part(np.arange(len(lengths)), batch)]
    return list(_by_length(stream.ragged, batch, lengths))


def _by_length(ragged: Sequence[bool], batch: Batch, lengths: np.ndarray) -> Iterator[Part]:
    leaves, structure = jax.tree.flatten(batch.args)
    leaves = [np.asarray(x) for x in leaves]
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        rows = max(int(length), 1)  # an episode without rows keeps one, of which nothing is learnt
        chosen = [x[places][:, :rows] if r else x[places] for x, r in zip(leaves, ragged, strict=True)]
        args = jax.tree.unflatten(structure, [jnp.asarray(x) for x in chosen])
        yield Part(places, Batch(args, batch.lengths[places], batch.numbers[places]))


def together(found: Sequence[Any], order: Sequence[np.ndarray]) -> Any:
    """What parts of a batch gave, episode by episode, as the batch has them.

    Factors of low rank have as many rows as an episode has outputs, and are filled with zeros to the most of
    them.
    """
    if len(found) == 1:
        return found[0]
    back = np.argsort(np.concatenate(order))
    found = _filled(found)
    return jax.tree.map(lambda *x: jnp.concatenate(x)[back], *found)


def _filled(found: Sequence[Any]) -> Sequence[Any]:
    factors = [_factor(x) for x in found]
    if factors[0] is None:
        return found
    most = max(f.shape[1] for f in factors)
    return [
        _with_factor(x, jnp.pad(f, ((0, 0), (0, most - f.shape[1]), (0, 0))))
        for x, f in zip(found, factors, strict=True)
    ]


def _factor(x: Any) -> Any:
    inner = x.precision if isinstance(x, Quadratic) else x.covariance if isinstance(x, Gaussian) else None
    return inner.factor if isinstance(inner, Factored | LowRank) else None


def _with_factor(x: Any, factor: jax.Array) -> Any:
    if isinstance(x, Quadratic):
        return x._replace(precision=Factored(factor))
    return x._replace(covariance=LowRank(x.covariance.scales, factor))


def each(hierarchy: Hierarchy, stream: Any, batch: Batch, run: Any, keys: jax.Array | None = None) -> Any:
    """``run(batch, keys)`` of every part of a batch, put together again."""
    found = parts(hierarchy, stream, batch)
    return together(
        [run(p.batch, None if keys is None else keys[p.places]) for p in found], [p.places for p in found]
    )


def bad_of_stream(
    hierarchy: Hierarchy, shared: Mapping[str, Any], stream: Any, batch: Batch, theta: jax.Array
) -> str | None:
    """The first episode of a stream's batch with a density that is not finite at θ, and why."""
    found = (
        bad_episode(partial(hierarchy.loss, shared), part.batch, theta)
        for part in parts(hierarchy, stream, batch)
    )
    return next((why for why in found if why), None)
