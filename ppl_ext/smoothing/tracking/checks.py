"""What a tracker is given, checked at the edge: numbers that are known, and measurements as they come."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.runtime.arguments import check_function, described
from ppl_ext.smoothing.tracking.linear_step import OneTarget
from ppl_ext.smoothing.tracking.target_sets import BernoulliTargets, PoissonTargets
from ppl_ext.smoothing.tracking.tracks import Tracks

LIKELY = 0.5
"""A target that is more likely than this and has no slot is one too many."""


def is_known(x: Any) -> bool:
    """Whether these are numbers, and not tracers of them."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))


def check_tracker(tracker: Any) -> None:
    """The fields of a :class:`Tracker`, as far as they are known."""
    if not isinstance(tracker.births, PoissonTargets | BernoulliTargets):
        raise ArgumentTypeError(
            "Tracker: births must be PoissonTargets or BernoulliTargets, got "
            f"{described(tracker.births)}. For none, PoissonTargets with rate 0."
        )
    check_function("Tracker: step", tracker.step)
    law = tracker.clutter_law
    if not isinstance(law, dist.Distribution) or law.batch_shape or len(law.event_shape) != 1:
        raise ArgumentTypeError(
            "Tracker: clutter_law must be the law of one measurement, a vector, such as "
            f"dist.Uniform(low, high).to_event(1); got {described(law)}."
        )
    for name in ("detection", "survival"):
        p = getattr(tracker, name)
        if _is_wrong(f"Tracker: {name}", p, lambda p: not 0.0 < p <= 1.0):
            raise ArgumentError(f"Tracker: {name} is a probability in (0, 1], got {float(p):g}.")
    if _is_wrong("Tracker: recycle_below", tracker.recycle_below, lambda r: not 0.0 < r < LIKELY):
        raise ArgumentError(
            f"Tracker: recycle_below must be in (0, {LIKELY}), got {float(tracker.recycle_below):g}."
        )
    if _is_wrong("Tracker: clutter", tracker.clutter, lambda c: not 0.0 <= c < np.inf):
        raise ArgumentError(
            "Tracker: clutter is a number of measurements a step, zero or more and finite, got "
            f"{float(tracker.clutter):g}."
        )
    explained = isinstance(tracker.births, PoissonTargets) and (
        not is_known(tracker.births.rate) or float(np.min(tracker.births.rate)) > 0.0
    )
    if is_known(tracker.clutter) and float(tracker.clutter) == 0.0 and not explained:
        raise ArgumentError(
            "Tracker: clutter must be positive with these births: a measurement that no known target "
            "explains would be impossible. Give a small number, or PoissonTargets with a positive rate."
        )
    if tracker.initial is not None:
        check_initial(tracker)


def check_initial(tracker: Any) -> None:
    """Whether the targets of the start are of the kind and fit the slots."""
    given = tracker.initial
    if not isinstance(given, PoissonTargets | BernoulliTargets):
        raise ArgumentTypeError(
            f"Tracker: initial must be PoissonTargets, BernoulliTargets or None, got {described(given)}."
        )
    if given.law.event_shape != tracker.births.law.event_shape:
        raise ArgumentError(
            f"Tracker: initial has states of shape {given.law.event_shape}, births of "
            f"{tracker.births.law.event_shape}; make them alike."
        )
    if isinstance(given, PoissonTargets):
        which, num = "max_undetected", len(given.components().weight)
    else:
        which, num = "max_targets", len(given.bernoullis().existence)
    if num > getattr(tracker, which):
        raise ArgumentError(
            f"Tracker: initial has {num} targets or components, more than {which} = "
            f"{getattr(tracker, which)}; raise that."
        )


def check_read(target: OneTarget) -> None:
    """Whether the step's laws are normal laws, and are all that the step says."""
    if not is_known(target):
        return
    for name, law in (("state", target.motion), ("measurement", target.measurement)):
        if not all(np.isfinite(x).all() for x in law):
            raise ModelError(
                f"Tracker: the covariance of the {name} in the step is not positive definite, or one of its "
                "numbers is not finite. Give every coordinate some noise."
            )
    size = max(float(np.abs(law.covariance).max()) for law in target[:2])
    if not np.abs(target.excess).max() < 1e-3 * max(1.0, 1.0 / size):
        raise ModelError(
            "Tracker: the step's density is not that of its state and its measurement alone. Leave factors, "
            "masks and scales out of it."
        )


def series(measurements: Any, measured: int) -> list[np.ndarray]:
    """One array (n, m) a step."""
    if isinstance(measurements, dict | str) or not isinstance(
        measurements, Sequence | np.ndarray | jax.Array
    ):
        raise ArgumentTypeError(
            "Tracker.run: measurements must be a list with one array (n, dimension) a step, got "
            f"{described(measurements)}."
        )
    if not len(measurements):
        raise ArgumentError("Tracker.run: there are no steps; give at least one, which may be empty.")
    found = []
    for t, now in enumerate(measurements):
        try:
            array = np.asarray(now, float)
        except (TypeError, ValueError):
            raise ArgumentTypeError(
                f"Tracker.run: the measurements of step {t} must be an array of numbers (n, {measured})."
            ) from None
        array = array.reshape(0, measured) if array.size == 0 else array
        if array.ndim != 2 or array.shape[1] != measured:
            raise ArgumentError(
                f"Tracker.run: the measurements of step {t} have shape {array.shape}; they must be (n, "
                f"{measured}), as clutter_law says. One measurement is one row."
            )
        if not np.isfinite(array).all():
            raise ArgumentError(
                f"Tracker.run: a measurement of step {t} is NaN or infinite. What was not measured is left "
                "out of the list; in Tracker.filter it is hidden by seen=False."
            )
        found.append(array)
    return found


def padded(found: list[np.ndarray], num: int, measured: int) -> tuple[np.ndarray, np.ndarray]:
    """All steps as one array with a mask."""
    values, seen = np.zeros((len(found), num, measured)), np.zeros((len(found), num), bool)
    for t, now in enumerate(found):
        if len(now) > num:
            raise ArgumentError(
                f"Tracker.run: step {t} has {len(now)} measurements, more than max_measurements = {num}. "
                f"Give the tracker max_measurements={max(map(len, found))} or more."
            )
        values[t, : len(now)], seen[t, : len(now)] = now, True
    return values, seen


def check_fits(tracks: Tracks, max_targets: int) -> None:
    """Whether every likely target had a slot."""
    most = np.asarray(tracks.crowded_most)
    if (most > LIKELY).any():
        t = int(np.argmax(most > LIKELY))
        raise ArgumentError(
            f"Tracker.run: at step {t} there are more targets than max_targets = {max_targets}: one of "
            f"probability {most[t]:.2f} found no slot. Give the tracker more, max_targets={2 * max_targets}."
        )


def _is_wrong(where: str, x: Any, wrong: Any) -> bool:
    if not is_known(x):
        return False
    if isinstance(x, bool) or np.ndim(x) != 0 or not np.issubdtype(np.asarray(x).dtype, np.number):
        raise ArgumentTypeError(f"{where} must be one number, got {described(x)}.")
    return bool(wrong(float(x)))
