"""Episodes in batches: ragged ones padded, whether they come as a list, as groups of a table, as arrays, or
from a simulator.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.streams.static_arguments import held
from ppl_ext.runtime.arguments import check_count, check_function, check_key, described
from ppl_ext.runtime.explain import explained


class Batch(NamedTuple):
    """Episodes side by side, of these numbers (B,): ``args`` has a leading episode axis, rows beyond
    ``lengths`` (B,) are padding.
    """

    args: tuple
    lengths: jax.Array
    numbers: jax.Array


class EpisodeStream:
    """A finite set of episodes, each the positional arguments of the episode model.

    Arrays whose leading axis differs between episodes are rows: they are padded to a common length with
    copies of a row, which a plate over the rows masks. A model that sees them nevertheless is run on the
    episodes of each length by themselves. All else must agree between episodes: the shapes of other arrays,
    and what is no array (a setting, a string, None), which the model is given as it is.

    :param episodes: a sequence of tuples (or of single arrays). An episode may have no rows, but not all of
        them.
    :raises ArgumentError: if there is no episode, none has rows, or they do not agree in structure.
    :raises ArgumentTypeError: for an array of anything but numbers.

    >>> import numpy as np
    >>> stream = EpisodeStream([(np.zeros(3), np.ones(3)), (np.zeros(1), np.ones(1))])
    >>> len(stream), stream.batch([0, 1]).args[0].shape, stream.batch([0, 1]).lengths.tolist()
    (2, (2, 3), [3, 1])
    """

    def __init__(self, episodes: Sequence[Any]):
        if not isinstance(episodes, Sequence) or isinstance(episodes, str | bytes):
            raise ArgumentTypeError(
                "EpisodeStream: episodes must be a sequence of tuples of arguments, got "
                f"{described(episodes)}."
            )
        if len(episodes) == 0:
            raise ArgumentError("EpisodeStream: there is no episode.")
        self.episodes = [as_episode(e, i) for i, e in enumerate(episodes)]
        structures = {jax.tree.structure(e) for e in self.episodes}
        if len(structures) > 1:
            raise ArgumentError(
                f"EpisodeStream: episodes differ in structure: {' and '.join(map(str, structures))}. What "
                "is no array must be the same in all."
            )
        columns = list(zip(*(jax.tree.leaves(e) for e in self.episodes), strict=True))
        self.ragged = [len({x.shape for x in c}) > 1 for c in columns]
        for i, (column, ragged) in enumerate(zip(columns, self.ragged, strict=True)):
            if ragged and len({x.shape[1:] if x.ndim else None for x in column}) > 1:
                raise ArgumentError(
                    f"EpisodeStream: array {i} differs between episodes beyond its first axis: "
                    f"{column[0].shape} and others."
                )
        rows = [[x.shape[0] for x in c] for c, r in zip(columns, self.ragged, strict=True) if r]
        for other in rows[1:]:
            if other != rows[0]:
                at = next(i for i, (a, b) in enumerate(zip(rows[0], other, strict=True)) if a != b)
                raise ArgumentError(
                    "EpisodeStream: two ragged arrays of an episode have different numbers of rows: "
                    f"{rows[0][at]} and {other[at]} in episode {at}."
                )
        self.fillers = [next((x[-1:] for x in c if x.ndim and x.shape[0]), c[0]) for c in columns]
        self.lengths = np.asarray(rows[0] if rows else [self._rows(e) for e in self.episodes])
        if not self.lengths.any():
            raise ArgumentError(
                "EpisodeStream: every episode is empty. One at least must have rows, to say what they look "
                "like."
            )

    @staticmethod
    def _rows(episode) -> int:
        return max((x.shape[0] for x in jax.tree.leaves(episode) if x.ndim), default=1)

    @classmethod
    def from_groups(cls, group: Any, *columns: Any) -> "EpisodeStream":
        """The rows of a table, an episode for each value of ``group``, in sorted order; ``columns`` are the
        model's arguments.

        >>> EpisodeStream.from_groups(["b", "a", "b"], [1.0, 2.0, 3.0]).lengths.tolist()
        [1, 2]
        """
        group = np.asarray(group)
        if group.ndim != 1 or not columns:
            raise ArgumentError(
                "EpisodeStream.from_groups: group must have shape (rows,), with at least one column after "
                f"it; got {described(group)} and {len(columns)} columns."
            )
        arrays = [_numbers(c, f"EpisodeStream.from_groups: column {i}") for i, c in enumerate(columns)]
        for i, c in enumerate(arrays):
            if c.shape[:1] != group.shape:
                raise ArgumentError(
                    f"EpisodeStream.from_groups: column {i} has {c.shape[:1] or 'no'} rows, group has "
                    f"{group.shape[0]}."
                )
        _, inverse = np.unique(group, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        cuts = np.cumsum(np.bincount(inverse))[:-1]
        return cls(list(zip(*(np.split(c[order], cuts) for c in arrays), strict=True)))

    @classmethod
    def from_arrays(cls, *arrays: Any) -> "EpisodeStream":
        """Arrays with a leading episode axis each; they are the model's arguments.

        >>> len(EpisodeStream.from_arrays(np.zeros((7, 5)), np.ones((7, 5))))
        7
        """
        numbers = [_numbers(x, f"EpisodeStream.from_arrays: array {i}") for i, x in enumerate(arrays)]
        lengths = {x.shape[:1] for x in numbers}
        if len(lengths) != 1 or () in lengths:
            raise ArgumentError(
                "EpisodeStream.from_arrays: every array needs the same leading axis, over episodes; got "
                f"shapes {', '.join(str(x.shape) for x in numbers) or 'of no array'}."
            )
        return cls(list(zip(*numbers, strict=True)))

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, i: int) -> tuple:
        return self.episodes[i]

    def batch(self, index: Sequence[int] | np.ndarray, pad_to: int | None = None) -> Batch:
        """Some episodes, padded to the longest of them or to ``pad_to`` rows.

        :raises ArgumentError: for an index of no episode, or fewer rows than the longest has.
        """
        index = np.asarray(index)
        if (
            index.ndim != 1
            or not index.size
            or index.dtype.kind not in "iu"
            or index.min() < 0
            or index.max() >= len(self)
        ):
            raise ArgumentError(
                f"EpisodeStream.batch: index must list episodes from 0 to {len(self) - 1}, got "
                f"{index.tolist()}."
            )
        if pad_to is not None:
            check_count("EpisodeStream.batch: pad_to", pad_to)
        chosen = [jax.tree.leaves(self.episodes[i]) for i in index]
        longest = int(max(self.lengths[index].max(), 1))
        if pad_to is not None and pad_to < longest and any(self.ragged):
            raise ArgumentError(
                f"EpisodeStream.batch: pad_to is {pad_to}, but an episode has {longest} rows."
            )
        longest = longest if pad_to is None else pad_to
        stacked = []
        for i, (ragged, filler) in enumerate(zip(self.ragged, self.fillers, strict=True)):
            column = [e[i] for e in chosen]
            stacked.append(np.stack([_padded(x, longest, filler) for x in column] if ragged else column))
        args = jax.tree.unflatten(jax.tree.structure(self.episodes[0]), [jnp.asarray(x) for x in stacked])
        return Batch(args, jnp.asarray(self.lengths[index]), jnp.asarray(index))

    def batches(self, rng_key: jax.Array, batch_size: int | None, first_step: int = 0) -> Iterator[Batch]:
        """Batches without end, in a new random order each epoch; the same from ``first_step`` on, wherever
        one starts.
        """
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
            yield self.batch(index, pad_to=few_lengths(self.lengths[index]) if any(self.ragged) else None)
            step += 1


class SimulatedStream:
    """Episodes without end from a simulator.

    :param simulate: ``simulate(rng_key)`` returns the arguments of one episode, always of the same shapes; it
        is compiled.

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
        with explained(self._one):
            return jax.jit(self._tuple)(jax.random.fold_in(jax.random.key(0), i))

    def batches(self, rng_key: jax.Array, batch_size: int | None, first_step: int = 0) -> Iterator[Batch]:
        check_batch_size("SimulatedStream:", self, batch_size)
        check_key("SimulatedStream: rng_key", rng_key)
        assert batch_size is not None
        step = first_step
        while True:
            with explained(self._one):
                args = self._many(jax.random.split(jax.random.fold_in(rng_key, step), batch_size))
            rows = max((x.shape[1] for x in jax.tree.leaves(args) if x.ndim > 1), default=1)
            yield Batch(
                args, jnp.full(batch_size, rows), jnp.arange(step * batch_size, (step + 1) * batch_size)
            )
            step += 1


def check_batch_size(where: str, stream: Any, batch_size: Any) -> None:
    """Check the batch size of a stream that does not hold all of its episodes."""
    if batch_size is None:
        raise ArgumentError(
            f"{where} the {type(stream).__name__} does not hold all of its episodes, so say how many a step "
            "takes: batch_size=32, say."
        )
    check_count(f"{where} batch_size", batch_size)


def as_episode(episode: Any, i: int) -> tuple:
    """The arguments of one episode as NumPy arrays; what is none is held.

    :raises ArgumentTypeError: for an array of anything but numbers, naming episode and argument.
    """
    if isinstance(episode, str | bytes | list) and (not isinstance(episode, list) or not _is_array(episode)):
        raise ArgumentTypeError(
            f"Episode {i} is {described(episode)}; it must be a tuple of the model's arguments, arrays of "
            "numbers."
        )
    args = (
        episode
        if isinstance(episode, tuple)
        else (np.asarray(episode),)
        if isinstance(episode, list)
        else (episode,)
    )
    done = []
    for j, arg in enumerate(args):
        done.append(jax.tree.map(lambda x, j=j: _numbers(x, f"Episode {i}: argument {j}"), held(arg)))
    return tuple(done)


def _is_array(x: list) -> bool:
    """Whether a list is an array of numbers; one of arrays may well be meant for the model's arguments."""
    return all(isinstance(v, bool | int | float | np.number) for v in x)


def _numbers(x: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(x)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{where} must be an array of numbers, got {described(x)}.") from None
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        hint = (
            " Give its categories numbers, for instance by np.unique(..., return_inverse=True)."
            if array.dtype.kind in "OUS"
            else ""
        )
        raise ArgumentTypeError(
            f"{where} must be an array of numbers, got {described(x if x is None else array)}.{hint}"
        )
    return array


def few_lengths(lengths: np.ndarray) -> int:
    """The next power of two: few lengths, few compilations."""
    return 2 ** math.ceil(math.log2(max(int(lengths.max()), 1)))


def _padded(x: np.ndarray, length: int, filler: np.ndarray) -> np.ndarray:
    # Copies of a row lie in the support of the data; zeros may not, and a masked density outside it would
    # still spoil gradients.
    return np.concatenate([x, np.repeat(x[-1:] if x.shape[0] else filler, length - x.shape[0], axis=0)])
