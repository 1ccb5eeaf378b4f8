"""Scenes drawn from a tracker's own model: targets, and what is measured of them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_ext.runtime.arguments import check_count, check_key
from ppl_ext.smoothing.tracking.target_sets import PoissonTargets


class Scene(NamedTuple):
    """``truth``: the states (n, d) at each step, ``labels`` (n,) whose they are, and ``measurements`` (n, m),
    in no order. Lists over steps.

    >>> Scene([np.zeros((0, 2))], [np.zeros(0, int)], [np.zeros((3, 1))]).measurements[0].shape
    (3, 1)
    """

    truth: list[np.ndarray]
    labels: list[np.ndarray]
    measurements: list[np.ndarray]


def draw_scene(rng_key: jax.Array, tracker: Any, num_steps: int) -> Scene:
    """Draw targets and measurements from the model of a :class:`Tracker`: those there at the start, births,
    moves, deaths, what is missed, and clutter. The same key gives the same targets whatever the clutter.

    :param rng_key: of either kind.
    :param num_steps: T.
    :raises ArgumentError: for a number of steps below one.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.smoothing.tracking import PoissonTargets, Tracker
    >>> def step(x, z):
    ...     x = numpyro.sample("x", dist.Normal(x, 0.1).to_event(1))
    ...     numpyro.sample("z", dist.Normal(x, 0.1).to_event(1), obs=z)
    ...     return x, None
    >>> wide = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    >>> scene = draw_scene(jax.random.key(0), Tracker(step, PoissonTargets(3.0, wide), 2.0, wide), 5)
    >>> len(scene.truth), scene.measurements[4].shape[1]
    (5, 2)
    """
    check_key("draw_scene: rng_key", rng_key)
    check_count("draw_scene: num_steps", num_steps)
    of_targets, of_number, of_clutter = jax.random.split(rng_key, 3)
    rng, of_scans = (
        np.random.default_rng(np.asarray(jax.random.bits(key, (4,))).tolist())
        for key in (of_targets, of_number)
    )
    target = tracker.one_target()
    motion, measurement = ([np.asarray(x, float) for x in law] for law in target[:2])
    num_clutter = of_scans.poisson(float(tracker.clutter), num_steps)
    false = tracker.clutter_law.sample(of_clutter, (max(1, int(num_clutter.max())), num_steps))
    states, labels, next_label = np.zeros((0, tracker.size)), np.zeros(0, int), 0
    if tracker.initial is not None:
        states = _drawn(rng, tracker.initial)
        labels, next_label = np.arange(len(states)), len(states)
    found = Scene([], [], [])
    for t in range(num_steps):
        stays = rng.random(len(states)) < float(tracker.survival)
        states, labels = _moved(rng, states[stays], motion), labels[stays]
        born = _drawn(rng, tracker.births)
        states = np.concatenate([states, born])
        labels = np.concatenate([labels, next_label + np.arange(len(born))])
        next_label += len(born)
        seen = rng.random(len(states)) < float(tracker.detection)
        values = [_moved(rng, states[seen], measurement), np.asarray(false, float)[: num_clutter[t], t]]
        found.truth.append(states)
        found.labels.append(labels)
        found.measurements.append(of_scans.permutation(np.concatenate(values)))
    return found


def _moved(rng: np.random.Generator, x: np.ndarray, law: list[np.ndarray]) -> np.ndarray:
    slope, offset, covariance = law
    noise = rng.standard_normal((len(x), len(offset))) @ np.linalg.cholesky(covariance).T
    return x @ slope.T + offset + noise


def _drawn(rng: np.random.Generator, targets: Any) -> np.ndarray:
    found = targets.components() if isinstance(targets, PoissonTargets) else targets.bernoullis()
    weight, mean, covariance = (np.asarray(x, float) for x in found[:3])
    num = (
        rng.poisson(weight)
        if isinstance(targets, PoissonTargets)
        else (rng.random(len(weight)) < weight).astype(int)
    )
    which = np.repeat(np.arange(len(num)), num)
    noise = rng.standard_normal((len(which), mean.shape[1]))
    return mean[which] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariance)[which], noise)
