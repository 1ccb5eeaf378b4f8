"""The filter over a whole series, as one function of arrays that is compiled once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl_ext.densities.distributions import log_prob
from ppl_ext.smoothing.tracking.filtering import Caps, Setting, TrackState, filtered
from ppl_ext.smoothing.tracking.linear_step import OneTarget
from ppl_ext.smoothing.tracking.target_sets import (
    Bernoullis,
    BernoulliTargets,
    Intensity,
    PoissonTargets,
    nowhere,
    slots,
)
from ppl_ext.smoothing.tracking.tracks import Tracks
from ppl_ext.smoothing.tracking.update import Scan

Targets = PoissonTargets | BernoulliTargets


class Given(NamedTuple):
    """What a tracker was given beside its step and its sizes; ``rates``: detection, survival, and the
    existence below which a Bernoulli is recycled.
    """

    births: Targets
    initial: Targets | None
    clutter: Any
    clutter_law: dist.Distribution
    rates: tuple[Any, Any, Any]


def tracked(given: Given, target: OneTarget, values, seen, state: TrackState | None, caps: Caps) -> Tracks:
    """All steps from a state, or from the start."""
    seen, dtype = jnp.asarray(seen, bool), target.motion.slope.dtype
    values = jnp.where(seen[..., None], jnp.asarray(values), 0.0).astype(dtype)
    law, size = given.clutter_law, target.motion.slope.shape[0]
    log_clutter = jnp.where(law.support(values), jnp.log(given.clutter) + log_prob(law, values), -jnp.inf)
    detection, survival, recycle_below = (jnp.asarray(x, dtype) for x in given.rates)
    setting = Setting(
        target,
        _both(given.births, size),
        detection,
        survival,
        jnp.asarray(given.clutter, dtype),
        recycle_below,
    )
    state = _start(given.initial, size, caps) if state is None else state
    last, report = filtered(setting, state, Scan(values, seen, log_clutter.astype(dtype)), caps)
    return _known_so_far(values, state, Tracks(*report.known, *report[1:], last))


def _both(given: Targets | None, size: int) -> tuple[Bernoullis, Intensity]:
    if given is None:
        return slots(0, size), nowhere(0, size)
    if isinstance(given, BernoulliTargets):
        return given.bernoullis(), nowhere(0, size)
    return slots(0, size), given.components()


def _start(initial: Targets | None, size: int, caps: Caps) -> TrackState:
    known, unseen = slots(caps.max_targets, size), nowhere(caps.max_undetected, size)
    there, more = _both(initial, size)
    there = there._replace(label=jnp.arange(len(there.label), dtype=known.label.dtype))

    def put(x, y):
        return x.at[: len(y)].set(y)

    return TrackState(
        jax.tree.map(put, known, there),
        jax.tree.map(put, unseen, more),
        jnp.asarray(len(there.label), known.label.dtype),
    )


def _known_so_far(values: jax.Array, before: TrackState, tracks: Tracks) -> Tracks:
    """NaN from the first measurement on that is no number."""
    wrong = jnp.isnan(before.known.existence).any()
    wrong = wrong | (jnp.cumsum(~jnp.isfinite(values).all((1, 2))) > 0)

    def unknown(x, when):
        return jnp.where(when.reshape(when.shape + (1,) * (x.ndim - when.ndim)), jnp.nan, x)

    known = tracks.last.known
    return tracks._replace(
        existence=unknown(tracks.existence, wrong),
        log_increments=unknown(tracks.log_increments, wrong),
        last=tracks.last._replace(known=known._replace(existence=unknown(known.existence, wrong[-1:].any()))),
    )
