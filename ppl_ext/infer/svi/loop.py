"""The steps of a run: many in one launch, what looks at their losses at fixed steps, and the same bits
however many went at once.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from ppl_ext.infer.svi.runner import AT_ONCE, Runner
from ppl_ext.runtime.sharding import agreed, everywhere
from ppl_ext.runtime.training import Saver, chunk_of

REFRESH = 0.1  # seconds that a launch aims to take, since the bar moves after each


class Progress(NamedTuple):
    """What a callback sees: ``losses`` (chain, step) so far, and ``params()``, the parameters now, with a
    leading chain axis.

    >>> import numpy as np
    >>> now = Progress(np.array([[3.0, 2.0, 1.0]]), lambda: {"scale": np.ones(1)})
    >>> # fit(..., callback=low_enough) stops there
    >>> low_enough = lambda progress: progress.losses[:, -1].mean() < 1.5
    >>> bool(low_enough(now))
    True
    """

    losses: np.ndarray
    params: Callable[[], dict[str, Any]]


class Taken(NamedTuple):
    """Where the steps of a run ended: the states, the losses (chain, step), which chains are alive, and why
    it stopped early.
    """

    states: Any
    losses: np.ndarray
    alive: np.ndarray
    stop_reason: str | None


def take_steps(
    runner: Runner,
    states: Any,
    data: list,
    constants: tuple,
    losses: np.ndarray,
    num_steps: int,
    bar: tqdm,
    early_stopping: Callable[[np.ndarray], str | None] | None,
    callback: Callable[[Progress], Any] | None,
    saver: Saver,
    stable: bool = False,
) -> Taken:
    """Go on from ``losses`` until there are ``num_steps`` of them, something stops the run, or numbers break
    down.

    The losses are looked at after every multiple of ``chunk`` steps, wherever the run was resumed. A launch
    and the wait for it cost as much as many steps of a small model, so one launch is as many chunks as fit in
    :data:`REFRESH` seconds. That number depends on the clock and the result does not: what needs the state of
    a step (a callback, a checkpoint) ends the launch there; an early stop in the middle of one, or a
    breakdown, takes the same steps again up to there.

    :param stable: steps that are not finite are left out; an early stop sees the loss before them in their
        place.
    """
    steps = runner.stably if stable else runner.freely
    chunk = chunk_of(num_steps)
    size, most = chunk, AT_ONCE if callback is None else chunk
    done = losses.shape[1]
    alive, stop_reason = np.ones(len(losses), bool), None
    while done < num_steps and stop_reason is None:
        started = done // chunk * chunk
        end = int(min(started + size, num_steps, saver.due(chunk)))
        began = time.perf_counter()
        new, more, finite = steps(states, data, constants, end - done)
        more, finite = jax.device_get(everywhere((more, finite)))
        if not finite.all():
            # chunk by chunk, so that the careful steps begin where they always would
            if end > started + chunk:
                size = most = chunk
                continue
            new, more, alive = runner.carefully(states, data, constants, end - done)
            more, alive = jax.device_get(everywhere((more, alive)))
        seconds = agreed(time.perf_counter() - began)
        losses = np.concatenate([losses, more[:, : end - done]], axis=1)
        if early_stopping is not None and alive.all():
            for look in (*range(started + chunk, end, chunk), end):
                if (
                    stop_reason := early_stopping(filled(losses[:, :look]) if stable else losses[:, :look])
                ) is not None:
                    if look < end:
                        new, losses = steps(states, data, constants, look - done)[0], losses[:, :look].copy()
                        end = look
                    break
        bar.set_postfix_str(_postfix(losses, chunk), refresh=False)
        bar.update(end - done)
        states, taken, done = new, end - done, end
        if not alive.all():
            break
        if (
            stop_reason is None
            and callback is not None
            and callback(Progress(losses, partial(_params, runner, states)))
        ):
            stop_reason = "stopped by the callback"
        saver(states, losses)
        size = max(chunk, min(8 * size, most, int(taken * REFRESH / seconds)) // chunk * chunk)
    saver(states, losses, at_end=True)
    return Taken(states, losses, alive, stop_reason)


def filled(losses: np.ndarray) -> np.ndarray:
    """Losses with those of steps that were left out (NaN) replaced by the last one before them, or the first
    that there is.

    >>> filled(np.array([[np.nan, 2.0, np.nan, 1.0]]))
    array([[2., 2., 2., 1.]])
    """
    known = np.isfinite(losses)
    last = np.maximum.accumulate(np.where(known, np.arange(losses.shape[1]), -1), axis=1)
    return np.take_along_axis(losses, np.where(last < 0, known.argmax(1)[:, None], last), axis=1)


def _params(runner: Runner, states: Any) -> dict[str, Any]:
    return everywhere(runner.params(states))


def _postfix(losses: np.ndarray, chunk: int) -> str:
    """The loss, averaged over chains and the last chunk of steps, and its change from the chunk before."""
    losses = losses if np.isfinite(losses).all() else filled(losses)
    now = losses[:, -chunk:].mean()
    before = losses[:, -2 * chunk : -chunk]
    return f"loss {now:.4g}" + (f" ({now - before.mean():+.2g})" if before.size else "")
