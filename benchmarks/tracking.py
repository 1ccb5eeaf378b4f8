"""Ten targets among twenty false measurements: the tracker beside the same filter in plain NumPy.

``plain`` is the filter as one writes it down: lists of targets, a loop over them and over measurements, and
belief propagation on arrays. It is checked to give the tracker's numbers, in double precision, before
anything is timed. ``arrays`` is the same filter with all loops over targets and measurements as NumPy
operations, on arrays of just the size that is needed. Times are of a whole series of measurements as lists,
so that padding and the way to the device count as the tracker's. Compilations are counted while numbers of
targets and measurements vary.
"""

import json
import random
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks import harness
from benchmarks.runner import count_compilations
from ppl_ext.smoothing.tracking import BernoulliTargets, PoissonTargets, Tracker, draw_scene

TARGETS, CLUTTER, STEPS, HALF = 10, 20.0, 40, 50.0
AIM = 50.0
# lists, which become arrays of the precision that is asked for
MOVE = np.kron([[1.0, 1.0], [0.0, 1.0]], np.eye(2)).tolist()
NOISE = (0.01 * np.kron([[1 / 3, 1 / 2], [1 / 2, 1.0]], np.eye(2))).tolist()
SPREAD = [30.0, 30.0, 1.0, 1.0]


def step(x, z):
    """A position and a velocity in the plane; the position is measured."""
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.array(MOVE) @ x, jnp.array(NOISE)))
    numpyro.sample("z", dist.Normal(x[:2], 1.0).to_event(1), obs=z)
    return x, None


def tracker(targets: int = TARGETS, clutter: float = CLUTTER, **settings: Any) -> Tracker:
    """So many targets from the start, and few births."""
    law = dist.Normal(jnp.zeros(4), jnp.array(SPREAD)).to_event(1)
    area = dist.Uniform(-HALF * jnp.ones(2), HALF * jnp.ones(2)).to_event(1)
    some = {"detection": 0.9, "survival": 0.99, "max_targets": 40, "max_measurements": 48} | settings
    return Tracker(step, PoissonTargets(0.1, law), clutter, area, initial=there(targets), **some)


def there(targets: int) -> BernoulliTargets:
    """Targets that are there for sure, on a circle."""
    angle = np.linspace(0.0, 2.0 * np.pi, targets, endpoint=False)
    mean = np.stack([30 * np.cos(angle), 30 * np.sin(angle), 0 * angle, 0 * angle], 1)
    covariance = jnp.diag(jnp.array([1.0, 1.0, 0.5, 0.5]))
    return BernoulliTargets(jnp.ones(targets), dist.MultivariateNormal(jnp.array(mean.tolist()), covariance))


class Numbers:
    """A tracker's numbers, for NumPy."""

    def __init__(self, of: Tracker):
        motion, measurement = ([np.asarray(x, float) for x in law] for law in of.one_target()[:2])
        (self.F, self.c, self.Q), (self.H, self.d, self.R) = motion, measurement
        self.detection, self.survival, self.below = of.detection, of.survival, of.recycle_below
        self.max_targets, self.max_undetected, self.rounds = of.max_targets, of.max_undetected, of.num_rounds
        births, start = (np.asarray(x, float) for x in of.births.components()), of.initial.bernoullis()
        self.births = list(zip(*births, strict=True))
        self.start = [
            (float(r), np.asarray(m, float), np.asarray(P, float)) for r, m, P in zip(*start[:3], strict=True)
        ]
        self.clutter = float(of.clutter)
        self.log_area = float(np.log(np.asarray(of.clutter_law.base_dist.high * 2.0, float)).sum())

    def log_clutter(self, z: np.ndarray) -> float:
        return np.log(self.clutter) - self.log_area if (np.abs(z) <= HALF).all() else -np.inf


def one_update(n: Numbers, m: np.ndarray, P: np.ndarray, z: np.ndarray):
    """A normal law and one measurement: the log likelihood, and the law after it."""
    S, e = n.H @ P @ n.H.T + n.R, z - n.H @ m - n.d
    K = P @ n.H.T @ np.linalg.inv(S)
    rest = np.eye(len(m)) - K @ n.H
    log = -0.5 * e @ np.linalg.solve(S, e) - 0.5 * np.linalg.slogdet(2.0 * np.pi * S)[1]
    return log, m + K @ e, rest @ P @ rest.T + K @ n.R @ K.T


def matched(weights, laws):
    """The normal law with a mixture's moments."""
    weights = np.asarray(weights) / np.sum(weights)
    mean = sum(w * m for w, (m, _) in zip(weights, laws, strict=True))
    return mean, sum(w * (P + np.outer(m - mean, m - mean)) for w, (m, P) in zip(weights, laws, strict=True))


def messages(w0: np.ndarray, w: np.ndarray, rounds: int):
    """Association probabilities and the log of Bethe's sum."""
    nu = np.ones_like(w)
    for _ in range(rounds):
        s = w * nu
        mu = w / np.maximum(w0[:, None] + s.sum(1, keepdims=True) - s, 1e-300)
        nu = 1.0 / (1.0 + mu.sum(0) - mu)
    s = w * nu
    mu = w / np.maximum(w0[:, None] + s.sum(1, keepdims=True) - s, 1e-300)
    whole, claimed = w0 + s.sum(1), 1.0 + mu.sum(0)
    bethe = np.log(whole).sum() + np.log(claimed).sum() - np.log1p(mu * nu).sum()
    return w0 / whole, s / whole[:, None], 1.0 / claimed, bethe


def settled(n: Numbers, targets: list, unseen: list):
    """Likely targets, and the heaviest of the rest."""
    targets = sorted(targets, key=lambda target: -target[0])
    known = [x for x in targets[: n.max_targets] if x[0] >= n.below]
    rest = [x for x in targets[: n.max_targets] if x[0] < n.below] + targets[n.max_targets :]
    return known, sorted(unseen + rest, key=lambda x: -x[0])[: n.max_undetected]


def plain(n: Numbers, scans: list[np.ndarray]):
    """The filter with lists: by step the targets (existence, mean, covariance), and the log increments."""
    known, unseen, found, logs = list(n.start), [], [], []
    for scan in scans:
        known = [(n.survival * r, n.F @ m + n.c, n.F @ P @ n.F.T + n.Q) for r, m, P in known]
        unseen = [(n.survival * w, n.F @ m + n.c, n.F @ P @ n.F.T + n.Q) for w, m, P in unseen] + n.births
        rho, new, laws = np.zeros(len(scan)), [], []
        for j, z in enumerate(scan):
            each = [(w, *one_update(n, m, P, z)) for w, m, P in unseen]
            weights = [n.detection * w * np.exp(log) for w, log, _, _ in each]
            rho[j] = np.exp(n.log_clutter(z)) + sum(weights)
            new.append((sum(weights) / rho[j], *matched(weights, [law for _, _, *law in each])))
        w0, w = np.zeros(len(known)), np.zeros((len(known), len(scan)))
        for i, (r, m, P) in enumerate(known):
            w0[i] = 1.0 - r * n.detection
            each = [one_update(n, m, P, z) for z in scan]
            laws.append([(m, P)] + [law for _, *law in each])
            w[i] = [r * n.detection * np.exp(log) / rho[j] for j, (log, _, _) in enumerate(each)]
        missed, detected, unclaimed, bethe = messages(w0, w, n.rounds)
        logs.append(bethe + np.log(rho).sum() - n.clutter - n.detection * sum(w for w, _, _ in unseen))
        targets = [(p * r, m, P) for p, (r, m, P) in zip(unclaimed, new, strict=True)]
        for i, (r, _, _) in enumerate(known):
            weights = [missed[i] * r * (1.0 - n.detection) / w0[i], *detected[i]]
            targets.append((sum(weights), *matched(weights, laws[i])))
        known, unseen = settled(n, targets, [((1.0 - n.detection) * w, m, P) for w, m, P in unseen])
        found.append(known)
    return found, np.array(logs)


def many_updates(n: Numbers, m: np.ndarray, P: np.ndarray, z: np.ndarray):
    """Laws beside measurements, as arrays."""
    S, e = n.H @ P @ n.H.T + n.R, z[None] - (m @ n.H.T + n.d)[:, None]
    K = P @ n.H.T @ np.linalg.inv(S)
    rest = np.eye(m.shape[1]) - K @ n.H
    after = rest @ P @ np.swapaxes(rest, 1, 2) + K @ n.R @ np.swapaxes(K, 1, 2)
    scaled = np.einsum("iab,ijb->ija", np.linalg.inv(np.linalg.cholesky(S)), e)
    log = -0.5 * (scaled**2).sum(-1) - 0.5 * np.linalg.slogdet(2.0 * np.pi * S)[1][:, None]
    return log, m[:, None] + np.einsum("iab,ijb->ija", K, e), after


def moments(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray):
    """Mixtures (n, k) of laws (n, k, d), (n, k, d, d) as one normal law each."""
    weights = weights / weights.sum(1, keepdims=True)
    mean = np.einsum("ij,ijd->id", weights, means)
    apart = means - mean[:, None]
    spread = np.einsum("ij,ijde->ide", weights, covariances)
    return mean, spread + np.einsum("ijd,ije->ide", weights[..., None] * apart, apart)


def arrays(n: Numbers, scans: list[np.ndarray]):
    """The filter with arrays of the size that is needed."""
    r, m, P = (np.stack(x) for x in zip(*n.start, strict=True))
    u, um, uP = np.zeros(0), np.zeros((0, m.shape[1])), np.zeros((0, *P.shape[1:]))
    births, found, logs = [np.stack(x) for x in zip(*n.births, strict=True)], [], []
    for z in scans:
        r, m, P = n.survival * r, m @ n.F.T + n.c, n.F @ P @ n.F.T + n.Q
        unseen = n.survival * u, um @ n.F.T + n.c, n.F @ uP @ n.F.T + n.Q
        u, um, uP = (np.concatenate(x) for x in zip(unseen, births, strict=True))
        log, means, after = many_updates(n, um, uP, z)
        weights = n.detection * u[:, None] * np.exp(log)
        inside = (np.abs(z) <= HALF).all(1)
        rho = np.where(inside, n.clutter * np.exp(-n.log_area), 0.0) + weights.sum(0)
        laws = np.swapaxes(means, 0, 1), np.broadcast_to(after, (len(z), *after.shape))
        new = moments(weights.T, *laws)
        log, means, after = many_updates(n, m, P, z)
        w0, w = 1.0 - r * n.detection, r[:, None] * n.detection * np.exp(log) / rho
        missed, detected, unclaimed, bethe = messages(w0, w, n.rounds)
        logs.append(bethe + np.log(rho).sum() - n.clutter - n.detection * u.sum())
        shares = np.concatenate([(missed * r * (1.0 - n.detection) / w0)[:, None], detected], 1)
        covariances = np.broadcast_to(after[:, None], (*means.shape[:2], *after.shape[1:]))
        laws = np.concatenate([m[:, None], means], 1), np.concatenate([P[:, None], covariances], 1)
        known = shares.sum(1), *moments(shares, *laws)
        first = unclaimed * weights.sum(0) / rho, *new
        every = [np.concatenate(x) for x in zip(known, first, strict=True)]
        order = np.argsort(-every[0], kind="stable")
        stays = (np.arange(len(order)) < n.max_targets) & (every[0][order] >= n.below)
        r, m, P = (x[order[stays]] for x in every)
        rest = (x[order[~stays]] for x in every)
        pool = [np.concatenate(x) for x in zip(((1.0 - n.detection) * u, um, uP), rest, strict=True)]
        heaviest = np.argsort(-pool[0], kind="stable")[: n.max_undetected]
        u, um, uP = (x[heaviest] for x in pool)
        found.append((r, m, P))
    return found, np.array(logs)


def check(of: Tracker, scans: list[np.ndarray], atol: float = 1e-6) -> None:
    """Stop where the three do not give the same numbers: this is for double precision."""
    n, ours = Numbers(of), of.run(scans)
    lists, logs = plain(n, scans)
    others, other_logs = arrays(n, scans)
    np.testing.assert_allclose(ours.log_increments, logs, atol=atol, rtol=atol)
    np.testing.assert_allclose(other_logs, logs, atol=atol, rtol=atol)
    for t, (known, (r, m, P)) in enumerate(zip(lists, others, strict=True)):
        there = int((ours.existence[t] > 0.0).sum())
        assert there == len(known) == len(r)
        for place, array in enumerate((r, m, P)):
            of_plain = np.stack([x[place] for x in known])
            field = (ours.existence, ours.mean, ours.covariance)[place]
            np.testing.assert_allclose(array, of_plain, atol=atol, rtol=atol)
            np.testing.assert_allclose(field[t, :there], of_plain, atol=atol, rtol=atol)


def compilations(counts=((10, 20.0), (1, 0.5), (3, 5.0), (12, 25.0))) -> list[int]:
    """How often XLA compiles for series whose numbers of targets and measurements differ, one after the
    other.
    """
    of, found = tracker(), []
    scenes = [
        draw_scene(jax.random.key(k), tracker(targets, clutter), STEPS)
        for k, (targets, clutter) in enumerate(counts)
    ]
    jax.clear_caches()
    for scene in scenes:
        with count_compilations() as seen:
            jax.block_until_ready(of.run(scene.measurements))
        found.append(len(seen))
    return found


def timed(contenders: dict[str, Any], calls: int) -> dict[str, np.ndarray]:
    """Seconds of each call, in random order round by round."""
    rng, seconds = random.Random(0), {name: [] for name in contenders}
    for _ in range(calls):
        for name in rng.sample(list(contenders), len(contenders)):
            start = time.perf_counter()
            jax.block_until_ready(contenders[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}


def main(quick: bool = False) -> None:
    with jax.enable_x64(True):
        of = tracker()
        check(of, draw_scene(jax.random.key(0), of, 10 if quick else STEPS).measurements)
    of = tracker()
    scans = draw_scene(jax.random.key(0), of, STEPS).measurements
    n = Numbers(of)
    jax.clear_caches()
    start = time.perf_counter()
    jax.block_until_ready(of.run(scans))
    first = time.perf_counter() - start
    seconds = timed(
        {"ours": lambda: of.run(scans), "plain": lambda: plain(n, scans), "arrays": lambda: arrays(n, scans)},
        3 if quick else 15,
    )
    medians = {name: float(f"{np.median(x):.4g}") for name, x in seconds.items()}
    print(f"  {TARGETS} targets, clutter {CLUTTER:g}, {STEPS} steps: first call {first:.2f} s; then", medians)
    lines = {}
    for name, aim in (("plain", AIM), ("arrays", 1.0)):
        found = harness.paired_ratio(seconds[name], seconds["ours"])
        verdict = "met" if found.median >= aim else "missed"
        lines[f"{name} / ours"] = {"ratio": round(found.median, 2), "aim": -aim, "verdict": verdict}
        print(f"  {name} / ours: {found.median:.1f}, aim at least {aim:g}, {verdict}", flush=True)
    counts = compilations()
    print(f"  compilations by series: {counts}")
    aims = harness.verdicts({"no compilation after the first series": not any(counts[1:])})
    if quick:
        return
    report = {
        "benchmark": "tracking",
        "description": f"{TARGETS} targets, clutter {CLUTTER:g}, {STEPS} steps; medians of interleaved calls",
        **harness.environment(),
        "first_call_seconds": round(first, 3),
        "cases": {"whole series": {"calls": len(seconds["ours"]), "median_seconds": medians}},
        "ratios": lines,
        "compilations": counts,
        "aims": aims,
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "tracking.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
