"""Episodes that arrive one after the other, and are seen once."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.streams.stream import (
    Batch,
    EpisodeStream,
    SimulatedStream,
    as_episode,
    check_batch_size,
    few_lengths,
)
from ppl_ext.runtime.arguments import check_count, described


class ArrivingStream:
    """Episodes from a generator, in its order, one pass, made as they are needed: memory does not grow with
    their number.

    Training ends with the last whole batch. Which arrays are rows (their leading axis differs) is told from
    the first ``peek`` episodes; one that differs otherwise later is refused.

    :param episodes: an iterator, or better a function without arguments that makes one: then a run can be
        resumed, and made again.
    :param peek: how many episodes are looked at ahead.
    :raises ArgumentTypeError: if there is nothing to iterate over.
    :raises ArgumentError: if there is no episode.

    >>> import jax, numpy as np
    >>> stream = ArrivingStream(lambda: ((np.zeros(n),) for n in (3, 1, 2, 4)))
    >>> [b.args[0].shape for b in stream.batches(jax.random.key(0), 2)]
    [(2, 4), (2, 4)]
    """

    def __init__(self, episodes: Iterable[Any] | Callable[[], Iterable[Any]], peek: int = 64):
        check_count("ArrivingStream: peek", peek)
        self._make = episodes if callable(episodes) else None
        self._passing = self._started(episodes)
        head = list(itertools.islice(self._passing, peek))
        if not head:
            raise ArgumentError("ArrivingStream: there is no episode.")
        self._head = EpisodeStream(head)
        if self._make is None:
            self._passing = itertools.chain(head, self._passing)
        self.ragged, self.lengths = self._head.ragged, self._head.lengths

    @staticmethod
    def _started(episodes) -> Iterator[Any]:
        found = episodes() if callable(episodes) else episodes
        if isinstance(found, str | bytes | dict) or not isinstance(found, Iterable):
            raise ArgumentTypeError(
                "ArrivingStream: episodes must be an iterator or a function that makes one, got "
                f"{described(found)}."
            )
        return iter(found)

    def __getitem__(self, i: int) -> tuple:
        return self._head[i]

    def batch(self, index, pad_to: int | None = None) -> Batch:
        """Some of the first episodes, as of :class:`EpisodeStream`."""
        return self._head.batch(index, pad_to)

    def batches(self, rng_key: jax.Array, batch_size: int | None, first_step: int = 0) -> Iterator[Batch]:
        """Batches in the order of arrival, from that of ``first_step`` on if the episodes come from a
        function.
        """
        check_batch_size("ArrivingStream:", self, batch_size)
        assert batch_size is not None
        passing, count = self._passing, 0
        if self._make is not None:
            count = first_step * batch_size
            passing = itertools.islice(self._started(self._make), count, None)
        while True:
            group = [self._checked(e, count + i) for i, e in enumerate(itertools.islice(passing, batch_size))]
            if len(group) < batch_size:
                return
            lengths = np.asarray([self._rows(e) for e in group])
            together = EpisodeStream.__new__(EpisodeStream)
            together.episodes, together.ragged, together.fillers, together.lengths = (
                group,
                self.ragged,
                self._head.fillers,
                lengths,
            )
            batch = together.batch(np.arange(batch_size), few_lengths(lengths) if any(self.ragged) else None)
            yield batch._replace(numbers=batch.numbers + count)
            count += batch_size

    def _rows(self, episode: tuple) -> int:
        rows = [x.shape[0] for x, r in zip(jax.tree.leaves(episode), self.ragged, strict=True) if r]
        return rows[0] if rows else EpisodeStream._rows(episode)

    def _checked(self, episode: Any, i: int) -> tuple:
        episode, first = as_episode(episode, i), self._head[0]
        if {jax.tree.structure(episode)} != {jax.tree.structure(first)}:
            raise ArgumentError(
                f"ArrivingStream: episode {i} differs in structure from the first: "
                f"{jax.tree.structure(episode)}."
            )
        leaves = jax.tree.leaves(episode)
        for j, (x, y, ragged) in enumerate(zip(leaves, jax.tree.leaves(first), self.ragged, strict=True)):
            if x.ndim != y.ndim or x.shape[ragged:] != y.shape[ragged:]:
                raise ArgumentError(
                    f"ArrivingStream: array {j} of episode {i} has shape {x.shape}, the first "
                    f"{len(self._head)} had {y.shape}. If it may differ in length, a larger peek= will show "
                    "it."
                )
        if len({x.shape[0] for x, r in zip(leaves, self.ragged, strict=True) if r}) > 1:
            raise ArgumentError(f"ArrivingStream: arrays of episode {i} have different numbers of rows.")
        return episode


Stream = EpisodeStream | SimulatedStream | ArrivingStream


def finite_stream(where: str, episodes: Any) -> EpisodeStream:
    """A stream, as :func:`as_stream`, where all episodes are needed at once."""
    stream = as_stream(where, episodes)
    if not isinstance(stream, EpisodeStream):
        raise ArgumentTypeError(
            f"{where}: needs all episodes at once, an EpisodeStream or a list of them, got "
            f"{described(stream)}."
        )
    return stream


def as_stream(where: str, episodes: Any) -> Stream:
    """A stream; a sequence of episodes makes an :class:`EpisodeStream`, an iterator an
    :class:`ArrivingStream`.

    :raises ArgumentTypeError: for anything else.
    """
    if isinstance(episodes, EpisodeStream | SimulatedStream | ArrivingStream):
        return episodes
    if isinstance(episodes, list | tuple):
        return EpisodeStream(episodes)
    if isinstance(episodes, Iterator):
        return ArrivingStream(episodes)
    raise ArgumentTypeError(
        f"{where}: episodes must be a list of tuples of arguments, an iterator over such, or an "
        f"EpisodeStream, ArrivingStream or SimulatedStream; got {described(episodes)}. Arrays with a leading "
        "episode axis: EpisodeStream.from_arrays(x, y)."
    )


def example(stream: Stream) -> tuple:
    """The longest episode of a stream, of those that are known: what a hierarchy is laid out from."""
    return stream[0 if isinstance(stream, SimulatedStream) else int(np.argmax(stream.lengths))]
