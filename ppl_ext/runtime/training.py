"""The loop around the steps of a training run: a bar, losses, checkpoints, an end where numbers break down.

What a step is, and how many go in one launch, is the business of whoever trains: :func:`train` asks for
*some* of them until there are no more.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.checkpoint import Checkpoint
from ppl_ext.runtime.sharding import everywhere, is_first_process

CHUNK = 1000
"""Steps between two looks at the losses, at most."""


class Steps(Protocol):
    """The steps of one run, and where they are."""

    state: Any

    def some(self) -> np.ndarray | None:
        """Take some: their losses, (..., steps), NaN from a breakdown on; ``None`` where none is left."""
        ...


def chunk_of(num_steps: int) -> int:
    """Steps between two looks at the losses: a fiftieth of the run, a thousand at most.

    >>> chunk_of(10), chunk_of(500), chunk_of(10**6)
    (1, 10, 1000)
    """
    return min(CHUNK, max(1, -(-num_steps // 50)))


def progress(what: str, num_steps: int | None, done: int, shown: bool) -> tqdm:
    """The bar of a run of which some steps may have been made before."""
    return tqdm(total=num_steps, initial=done, disable=not shown, desc=what, unit="step")


def check_checkpoint(where: str, checkpoint: Any) -> None:
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise ArgumentTypeError(
            f"{where}: checkpoint must be a ppl_ext.infer.Checkpoint, got {described(checkpoint)}."
        )


class Saver:
    """Saves a run after every so many steps, and at its end; without a checkpoint it does nothing.

    :param about: what the run is, for :meth:`ppl_ext.runtime.checkpoint.Checkpoint.load` to compare.
    """

    def __init__(self, checkpoint: Checkpoint | None, about: dict[str, Any]):
        self.checkpoint, self.about, self.saved = checkpoint, about, 0

    def load(self, like: Any) -> tuple[Any, np.ndarray] | None:
        """State and losses of the run so far; ``None`` if there are none."""
        if self.checkpoint is None or (found := self.checkpoint.load(like, self.about)) is None:
            return None
        self.saved = found[1].shape[-1]
        return found

    def due(self, chunk: int) -> float:
        """The step, after whole chunks, at which the run is to be saved next."""
        return (
            np.inf if self.checkpoint is None else -(-(self.saved + self.checkpoint.every) // chunk) * chunk
        )

    def __call__(self, state: Any, losses: np.ndarray, at_end: bool = False) -> None:
        new = losses.shape[-1] - self.saved
        if self.checkpoint is None or new < (1 if at_end else self.checkpoint.every):
            return
        state = everywhere(state)
        if is_first_process():
            self.checkpoint.save(state, losses, self.about)
        self.saved = losses.shape[-1]


def total(losses: np.ndarray) -> str:
    """The mean of a look's losses, summed over what they are made of."""
    return f"loss {losses.reshape(-1, losses.shape[-1]).sum(0).mean():.4g}"


def train(
    steps: Steps, losses: np.ndarray, saver: Saver, bar: tqdm, shown: Callable[[np.ndarray], str] = total
) -> tuple[np.ndarray, int]:
    """Take all steps that there are, or stop where a loss is not finite, and leave the last good file there.

    :param losses: (..., steps) of the steps made before.
    :param shown: what the bar says of the losses of a look.
    :return: all losses, and how many steps the last look at them was after.
    """
    finite, looked = True, losses.shape[-1]
    while finite and (new := steps.some()) is not None:
        looked = losses.shape[-1]
        losses, finite = np.concatenate([losses, new], axis=-1), bool(np.isfinite(new).all())
        bar.set_postfix_str(shown(new), refresh=False)
        bar.update(new.shape[-1])
        if finite:
            saver(steps.state, losses)
    if finite:
        saver(steps.state, losses, at_end=True)
    return losses, looked
