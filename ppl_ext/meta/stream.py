"""Episodes in batches: ragged ones padded, whether they come as a list, as groups of a table, as arrays, or from a simulator."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.arguments import check_count, check_function, told
from ppl_ext.errors import ArgumentError, ArgumentTypeError


class Batch(NamedTuple):
    """Episodes side by side: ``args`` has a leading episode axis, and rows beyond ``lengths`` (B,) are padding."""

    args: tuple
    lengths: jax.Array


class EpisodeStream:
    """A finite set of episodes, each the positional arguments of the episode model.

    Arrays whose leading axis differs between episodes are rows: they are padded to a common length with copies of a row, and the model must
    have them in a plate, by which the padding is masked. All else must agree between episodes.

    :param episodes: a sequence of tuples (or of single arrays). An episode may have no rows.
    :raises ArgumentError: if there is no episode, or episodes do not agree in structure.

    >>> import numpy as np
    >>> stream = EpisodeStream([(np.zeros(3), np.ones(3)), (np.zeros(1), np.ones(1))])
    >>> len(stream), stream.batch([0, 1]).args[0].shape, stream.batch([0, 1]).lengths.tolist()
    (2, (2, 3), [3, 1])
    """

    def __init__(self, episodes: Sequence[Any]):
        if not isinstance(episodes, Sequence) or isinstance(episodes, str | bytes):
            raise ArgumentTypeError(f"EpisodeStream: episodes must be a sequence of tuples of arguments, got {told(episodes)}.")
        if len(episodes) == 0:
            raise ArgumentError("EpisodeStream: there is no episode.")
        self.episodes = [jax.tree.map(np.asarray, e if isinstance(e, tuple) else (e,)) for e in episodes]
        structures = {jax.tree.structure(e) for e in self.episodes}
        if len(structures) > 1:
            raise ArgumentError(f"EpisodeStream: episodes differ in structure: {' and '.join(map(str, structures))}.")
        columns = list(zip(*(jax.tree.leaves(e) for e in self.episodes), strict=True))
        self.ragged = [len({x.shape for x in c}) > 1 for c in columns]
        for i, (column, ragged) in enumerate(zip(columns, self.ragged, strict=True)):
            if ragged and len({x.shape[1:] if x.ndim else None for x in column}) > 1:
                raise ArgumentError(
                    f"EpisodeStream: array {i} differs between episodes beyond its first axis: {column[0].shape} and others."
                )
        rows = [[x.shape[0] for x in c] for c, r in zip(columns, self.ragged, strict=True) if r]
        if any(r != rows[0] for r in rows):
            raise ArgumentError("EpisodeStream: two ragged arrays of an episode have different numbers of rows.")
        self.fillers = [next((x[-1:] for x in c if x.ndim and x.shape[0]), c[0]) for c in columns]
        self.lengths = np.asarray(rows[0] if rows else [self._rows(e) for e in self.episodes])

    @staticmethod
    def _rows(episode) -> int:
        return max((x.shape[0] for x in jax.tree.leaves(episode) if x.ndim), default=1)

    @classmethod
    def from_groups(cls, group: Any, *columns: Any) -> "EpisodeStream":
        """The rows of a table, an episode for each value of ``group``, in sorted order; ``columns`` are the model's arguments.

        >>> EpisodeStream.from_groups(["b", "a", "b"], [1.0, 2.0, 3.0]).lengths.tolist()
        [1, 2]
        """
        group = np.asarray(group)
        arrays = [np.asarray(c) for c in columns]
        for i, c in enumerate(arrays):
            if c.shape[:1] != group.shape:
                raise ArgumentError(f"EpisodeStream.from_groups: column {i} has {c.shape[:1] or 'no'} rows, group has {group.shape[0]}.")
        _, inverse = np.unique(group, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        cuts = np.cumsum(np.bincount(inverse))[:-1]
        return cls(list(zip(*(np.split(c[order], cuts) for c in arrays), strict=True)))

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, i: int) -> tuple:
        return self.episodes[i]

    def batch(self, index: Sequence[int] | np.ndarray, pad_to: int | None = None) -> Batch:
        """Some episodes, padded to the longest of them or to ``pad_to`` rows."""
        index = np.asarray(index)
        chosen = [jax.tree.leaves(self.episodes[i]) for i in index]
        longest = int(max(self.lengths[index].max(), 1)) if pad_to is None else pad_to
        stacked = []
        for i, (ragged, filler) in enumerate(zip(self.ragged, self.fillers, strict=True)):
            column = [e[i] for e in chosen]
            stacked.append(np.stack([_padded(x, longest, filler) for x in column] if ragged else column))
        args = jax.tree.unflatten(jax.tree.structure(self.episodes[0]), [jnp.asarray(x) for x in stacked])
        return Batch(args, jnp.asarray(self.lengths[index]))

    def batches(self, rng_key: jax.Array, batch_size: int | None, first_step: int = 0) -> Iterator[Batch]:
        """Batches without end, in a new random order each epoch; the same from ``first_step`` on, wherever one starts."""
        num = len(self)
        if batch_size is None or batch_size >= num:
            whole = self.batch(np.arange(num))
            while True:
                yield whole
        per_epoch = num // batch_size
        step = first_step
        while True:
            order = np.asarray(jax.random.permutation(jax.random.fold_in(rng_key, step // per_epoch), num))
            i = step % per_epoch
            index = order[i * batch_size : (i + 1) * batch_size]
            # Few lengths, few compilations.
            yield self.batch(index, pad_to=2 ** math.ceil(math.log2(max(int(self.lengths[index].max()), 1))) if any(self.ragged) else None)
            step += 1


class SimulatedStream:
    """Episodes without end from a simulator.

    :param simulate: ``simulate(rng_key)`` returns the arguments of one episode, always of the same shapes; it is compiled.

    >>> import jax
    >>> stream = SimulatedStream(lambda key: (jax.random.normal(key, (5,)),))
    >>> next(stream.batches(jax.random.key(0), 4)).args[0].shape
    (4, 5)
    """

    ragged: tuple = ()

    def __init__(self, simulate: Callable[[jax.Array], Any]):
        check_function("SimulatedStream: simulate", simulate)
        self._one = simulate
        self._many = jax.jit(jax.vmap(self._tuple))

    def _tuple(self, key):
        episode = self._one(key)
        return episode if isinstance(episode, tuple) else (episode,)

    def __getitem__(self, i: int) -> tuple:
        return jax.jit(self._tuple)(jax.random.fold_in(jax.random.key(0), i))

    def batches(self, rng_key: jax.Array, batch_size: int | None, first_step: int = 0) -> Iterator[Batch]:
        check_count("SimulatedStream: batch_size", batch_size)
        assert batch_size is not None
        step = first_step
        while True:
            args = self._many(jax.random.split(jax.random.fold_in(rng_key, step), batch_size))
            rows = max((x.shape[1] for x in jax.tree.leaves(args) if x.ndim > 1), default=1)
            yield Batch(args, jnp.full(batch_size, rows))
            step += 1


def _padded(x: np.ndarray, length: int, filler: np.ndarray) -> np.ndarray:
    # Copies of a row lie in the support of the data; zeros may not, and a masked density outside it would still spoil gradients.
    return np.concatenate([x, np.repeat(x[-1:] if x.shape[0] else filler, length - x.shape[0], axis=0)])
