r"""The Poisson multi-Bernoulli filter, on slots: predict, update, and bring all back into the slots.

A Bernoulli that is less likely than ``recycle_below``, or finds no slot, becomes a part of the Poisson
process of unseen targets, whose intensity rises by r p(x) there: the expected number of targets stays what
it was (Williams 2012, "Hybrid Poisson and multi-Bernoulli filters"). Of the process the heaviest components
are kept. What has no place is counted: ``crowded`` Bernoullis, and ``lost`` targets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.tracking.linear_step import OneTarget
from ppl_ext.smoothing.tracking.target_sets import Bernoullis, Intensity, concatenated, moved
from ppl_ext.smoothing.tracking.update import Scan, updated


class Caps(NamedTuple):
    """Numbers that a compiled filter is made for."""

    max_targets: int
    max_undetected: int
    num_rounds: int


class Setting(NamedTuple):
    """Everything that a step of the filter reads, as arrays."""

    target: OneTarget
    births: tuple[Bernoullis, Intensity]
    detection: jax.Array
    survival: jax.Array
    clutter: jax.Array
    recycle_below: jax.Array


class TrackState(NamedTuple):
    """The targets after some steps: those with a slot, the unseen ones, and how many labels were given.

    >>> from ppl_ext.smoothing.tracking.target_sets import nowhere, slots
    >>> TrackState(slots(3, 2), nowhere(5, 2), jnp.array(0)).known.mean.shape
    (3, 2)
    """

    known: Bernoullis
    undetected: Intensity
    num_labels: jax.Array


class StepReport(NamedTuple):
    """The targets with a slot after a step, and what is to be told of it."""

    known: Bernoullis
    undetected: jax.Array
    log_increment: jax.Array
    residual: jax.Array
    crowded: jax.Array
    crowded_most: jax.Array
    lost: jax.Array


def filtered(setting: Setting, state: TrackState, scans: Scan, caps: Caps) -> tuple[TrackState, StepReport]:
    """All steps; reports have a leading time axis."""
    return jax.lax.scan(lambda state, scan: advance(setting, state, scan, caps), state, scans)


def advance(setting: Setting, state: TrackState, scan: Scan, caps: Caps) -> tuple[TrackState, StepReport]:
    """One step: survive and move, be born, be measured."""
    (born, unseen_births), motion = setting.births, setting.target.motion
    known, unseen = state.known, state.undetected
    known = Bernoullis(
        setting.survival * known.existence, *moved(known.mean, known.covariance, motion), known.label
    )
    unseen = Intensity(setting.survival * unseen.weight, *moved(unseen.mean, unseen.covariance, motion))
    known, unseen = concatenated(known, born), concatenated(unseen, unseen_births)
    found = updated(known, unseen, setting.target.measurement, setting.detection, scan, caps.num_rounds)
    increment = found.log_evidence - setting.clutter - setting.detection * unseen.weight.sum()
    known, out, over = _placed(concatenated(found.known, found.new), setting.recycle_below, caps.max_targets)
    pool = concatenated(unseen._replace(weight=(1.0 - setting.detection) * unseen.weight), out)
    unseen, lost = _heaviest(pool, caps.max_undetected)
    fresh = (known.existence > 0.0) & (known.label < 0)
    label = jnp.where(fresh, state.num_labels + jnp.cumsum(fresh) - 1, known.label)
    known = known._replace(label=label.astype(known.label.dtype))
    report = StepReport(
        known, unseen.weight.sum(), increment, found.residual, (over > 0.0).sum(), over.max(), lost
    )
    return TrackState(known, unseen, state.num_labels + fresh.sum()), report


def _placed(
    targets: Bernoullis, recycle_below: jax.Array, num: int
) -> tuple[Bernoullis, Intensity, jax.Array]:
    """The likely targets in slots, what is left as an intensity, and the existence of those among them that
    were likely enough and had no slot.
    """
    best, at = jax.lax.top_k(targets.existence, num)
    stays = best >= recycle_below
    known = jax.tree.map(lambda x: x[at], targets)
    known = known._replace(existence=jnp.where(stays, best, 0.0), label=jnp.where(stays, known.label, -1))
    placed = jnp.zeros(len(targets.existence), bool).at[at].set(stays)
    out = jnp.where(placed, 0.0, targets.existence)
    over = jnp.where(out >= recycle_below, out, 0.0)
    return known, Intensity(out, targets.mean, targets.covariance), over


def _heaviest(pool: Intensity, num: int) -> tuple[Intensity, jax.Array]:
    """The heaviest components, and the weight of the others."""
    _, at = jax.lax.top_k(pool.weight, num)
    others = jnp.ones(len(pool.weight), bool).at[at].set(False)
    return jax.tree.map(lambda x: x[at], pool), jnp.where(others, pool.weight, 0.0).sum()
