"""Filtering and smoothing of an AR(1) process with noise: this library, hand-coded JAX, cuthbert, and
particles.

- The bootstrap filter against one written by hand in JAX for this model, at N = 10³ to 10⁶ (systematic
  resampling by scatter, always).
- PaRIS (``backward="mcmc"``, two backward draws) against the filter, and how the time grows with N.
- What a stream keeps: bytes of its state, and the peak of the process, after many and after few steps.
- The spread of a score at T = 1600 by PaRIS, and along the particles' own paths.
- cuthbert's filter, and its backward sampler (Metropolis) for N trajectories, at equal N, in this process:
  ``pip install cuthbert``.
- PaRIS, FFBS (exact backward draws) and backward Metropolis of particles, at N = 1000 and T = 5, in an
  environment of its own: ``python -m benchmarks.smoothing --particles-python ENV/bin/python`` (see
  ``benchmarks/peers/particles_smoothing.py``).

Peers that are not there are left out, and the table says so.
"""

import argparse
import json
import math
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from tqdm import tqdm

from benchmarks import harness
from ppl_ext.smoothing import OnlineSmoother, additive, smooth

PARAMETERS = {"phi": 0.9, "sigma": 0.6, "noise": 1.0}
STEPS = 100
PEER_STEPS = 5  # particles' PaRIS is a double loop in Python: seconds a step
FUNCTIONALS = {"s10": lambda t, x_prev, x: x_prev * x}


def model(y):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    sigma, noise = (numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("sigma", "noise"))

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x_prev, sigma))
        numpyro.sample("y", dist.Normal(x, noise), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def series(num: int) -> jax.Array:
    """A draw of the model."""
    of_states, of_noise = jax.random.split(jax.random.key(0))
    noise = PARAMETERS["sigma"] * jax.random.normal(of_states, (num,))
    x = jax.lax.scan(lambda x, e: (PARAMETERS["phi"] * x + e,) * 2, 0.0, noise)[1]
    return x + PARAMETERS["noise"] * jax.random.normal(of_noise, (num,))


def log_evidence(y) -> float:
    """By Kalman's filter."""
    a, q, r = PARAMETERS["phi"], PARAMETERS["sigma"] ** 2, PARAMETERS["noise"] ** 2
    mean, variance, total = 0.0, 1.0, 0.0
    for value in np.asarray(y, float):
        mean, variance = a * mean, a * a * variance + q
        s = variance + r
        total -= 0.5 * (math.log(2 * math.pi * s) + (value - mean) ** 2 / s)
        gain = variance / s
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    return total


# --- contenders: each takes (key, y) and returns the log evidence, and what else it computes


def ours(num: int, **options: Any):
    smoother = smooth(model, num_particles=num, **options)

    def run(key, y):
        found = smoother.run(key, y, params=PARAMETERS)
        return found.log_evidence, found.expectations

    return run


def trajectories(num: int, **options: Any):
    smoother = smooth(model, num_particles=num, **options)

    def run(key, y):
        of_filter, of_draws = jax.random.split(key)
        return smoother.run(of_filter, y, params=PARAMETERS).sample(of_draws, num)

    return run


def hand_coded(num: int):
    """The bootstrap filter of this model, as one would write it who knows how to resample on an
    accelerator.
    """
    phi, sigma, noise = PARAMETERS["phi"], PARAMETERS["sigma"], PARAMETERS["noise"]

    def systematic(key, weights):
        total = jnp.cumsum(weights)
        starts = jnp.clip(jnp.ceil(num * total / total[-1] - jax.random.uniform(key)), 0, num).astype(
            jnp.int32
        )
        first = jnp.concatenate([jnp.zeros(1, jnp.int32), starts[:-1]])
        marks = (
            jnp.zeros(num, jnp.int32)
            .at[jnp.where(starts > first, first, num)]
            .max(jnp.arange(num, dtype=jnp.int32), mode="drop")
        )
        return jax.lax.cummax(marks)

    def run(key, y):
        of_start, of_steps = jax.random.split(key)
        x = jax.random.normal(of_start, (num,))

        def step(carry, at):
            x, log_weights, evidence = carry
            key, y_t = at
            of_resampling, of_noise = jax.random.split(key)
            x = x[systematic(of_resampling, jnp.exp(log_weights - log_weights.max()))]
            x = phi * x + sigma * jax.random.normal(of_noise, (num,))
            log_weights = -0.5 * ((y_t - x) / noise) ** 2 - math.log(noise) - 0.5 * math.log(2 * math.pi)
            return (x, log_weights, evidence + logsumexp(log_weights) - math.log(num)), None

        start = (x, jnp.zeros(num), jnp.zeros(()))
        return jax.lax.scan(step, start, (jax.random.split(of_steps, y.shape[0]), y))[0][2]

    return run


def cuthberts(num: int, backward: bool):
    """cuthbert's particle filter, and its backward sampler if asked for; None where it is not installed."""
    try:
        from cuthbert import filtering, smoothing
        from cuthbert.smc import backward_sampler, particle_filter
        from cuthbertlib.resampling import systematic
        from cuthbertlib.smc.smoothing import mcmc
    except ImportError:
        return None
    phi, sigma, noise = PARAMETERS["phi"], PARAMETERS["sigma"], PARAMETERS["noise"]

    def log_normal(x, loc, scale):
        return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)

    built = particle_filter.build_filter(
        init_sample=lambda key: jax.random.normal(key),
        propagate_sample=lambda key, x, y: phi * x + sigma * jax.random.normal(key),
        log_potential=lambda before, x, y: log_normal(y, x, noise),
        n_filter_particles=num,
        resampling_fn=systematic.resampling,
    )
    drawn = backward_sampler.build_smoother(
        log_potential=lambda before, x, y: log_normal(x, phi * before, sigma),
        backward_sampling_fn=lambda *args, **kwargs: mcmc.simulate(*args, **kwargs, n_steps=1),
        resampling_fn=systematic.resampling,
        n_smoother_particles=num,
    )

    def run(key, y):
        of_start, of_steps, of_draws = jax.random.split(key, 3)
        states = filtering.filter(built, y, built.init_prepare(key=of_start), key=of_steps)
        if not backward:
            return states.log_normalizing_constant[-1]
        return smoothing.smoother(drawn, states, y, key=of_draws).particles

    return run


def check(problems: dict[str, Any], y: jax.Array) -> None:
    """Stop where a filter does not estimate the evidence that Kalman's filter computes."""
    exact = log_evidence(y)
    for name, run in problems.items():
        value = jax.tree.leaves(jax.jit(run)(jax.random.key(3), y))[0]
        if abs(float(value) - exact) > 1.0:
            raise AssertionError(
                f"{name} estimates a log evidence of {float(value):.2f}, exactly {exact:.2f}"
            )


def stream_memory(few: int, many: int, num: int = 100) -> dict[str, int]:
    """What a stream holds after few and after many steps: bytes of its arrays on the device, and the peak of
    the process so far.
    """
    smoother = OnlineSmoother(model, functionals=FUNCTIONALS, num_particles=num)
    values = [jnp.asarray(value) for value in np.asarray(series(200))]
    before = {id(x) for x in jax.live_arrays()}
    state = smoother.init(jax.random.key(0), values[0], params=PARAMETERS)
    found = {}
    for step in tqdm(range(many), desc="stream", leave=False):
        state = smoother.step(state, values[step % len(values)])
        if step + 1 in (few, many):
            jax.block_until_ready(state)
            found[f"bytes after {step + 1}"] = sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)
            found[f"peak KiB after {step + 1}"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def score_spread(replicates: int, steps: int = 1600, num: int = 100) -> dict[str, float]:
    """Standard deviation, over keys, of the score in phi by Fisher's identity: PaRIS, and along the
    particles' own paths.
    """
    y, keys = series(steps), jax.random.split(jax.random.key(5), replicates)
    found = {}
    for backward in ("mcmc", "path"):
        run = jax.jit(ours(num, functionals={"score": additive.score()}, backward=backward))
        values = [run(key, y)[1]["score"]["phi"] for key in keys]
        found[backward] = float(np.std(np.asarray(values, np.float64), ddof=1))
    return found


def particles_peer(python: str, y: jax.Array, num: int, repeats: int) -> dict[str, Any]:
    problem = {
        "y": np.asarray(y, float).tolist(),
        "num_particles": num,
        "parameters": PARAMETERS,
        "repeats": repeats,
    }
    script = Path(__file__).parent / "peers" / "particles_smoothing.py"
    done = subprocess.run(
        [python, str(script)], input=json.dumps(problem), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(name: str, contenders: dict[str, Any], y: jax.Array, calls: int) -> dict[str, np.ndarray]:
    return harness.time_calls(harness.Case(name, contenders, (y,)), calls, 3, random.Random(0))


class Report:
    """Rows of medians, and lines of ratios beside their aims."""

    def __init__(self, quick: bool):
        self.cases: dict[str, Any] = {}
        self.lines: dict[str, Any] = {}
        self.calls = (lambda calls: 5) if quick else (lambda calls: calls)

    def time(self, name: str, contenders: dict[str, Any], y: jax.Array, calls: int) -> dict[str, np.ndarray]:
        seconds = seconds_of(name, contenders, y, self.calls(calls))
        row = {contender: float(f"{np.median(values) / len(y):.4g}") for contender, values in seconds.items()}
        self.cases[name] = {"calls": self.calls(calls), "steps": len(y), "median_seconds_a_step": row}
        print(
            f"  {name}: " + ", ".join(f"{k} {1e6 * v:.1f} µs" for k, v in row.items()) + " a step", flush=True
        )
        return seconds

    def ratio(self, name: str, times: np.ndarray, against: np.ndarray, aim: float) -> None:
        found = harness.paired_ratio(times, against)
        self.line(name, found.median, aim, interval=[round(x, 4) for x in found.interval])

    def line(self, name: str, value: float, aim: float, **more: Any) -> None:
        """``aim``: at most this; if negative, at least its size."""
        verdict = "met" if (value <= aim if aim > 0 else value >= -aim) else "missed"
        self.lines[name] = {"ratio": round(value, 4), "aim": aim, "verdict": verdict, **more}
        print(
            f"  {name:<58} {value:>9.3f}   aim {'at most' if aim > 0 else 'at least'} {abs(aim):g}   "
            f"{verdict}",
            flush=True,
        )


def filters(report: Report, sizes: dict[int, int]) -> None:
    """Ours against the hand-coded one and cuthbert's, PaRIS against the filter, and how PaRIS grows with
    N.
    """
    paris = {}
    for num, calls in sizes.items():
        y = series(STEPS if num < 1_000_000 else 10)
        contenders = {"filter": ours(num, ess_threshold=1.0), "hand-coded": hand_coded(num)}
        if num <= 100_000:
            contenders["PaRIS"] = ours(num, functionals=FUNCTIONALS, ess_threshold=1.0)
        peer = cuthberts(num, backward=False)
        if peer is not None and num <= 10_000:
            contenders["cuthbert"] = peer
        seconds = report.time(f"N {num}", contenders, y, calls)
        for contender, against, aim in (
            ("filter", "hand-coded", 1.15),
            ("PaRIS", "filter", 3.0),
            ("filter", "cuthbert", 1.0),
        ):
            if contender in seconds and against in seconds:
                report.ratio(f"N {num}: {contender} / {against}", seconds[contender], seconds[against], aim)
        if "PaRIS" in seconds:
            paris[num] = float(np.median(seconds["PaRIS"]))
    if len(paris) > 1:
        few, many = min(paris), max(paris)
        report.line("PaRIS: exponent of N", math.log(paris[many] / paris[few]) / math.log(many / few), 1.1)


def peers(report: Report, particles_python: str | None) -> None:
    """Backward draws beside cuthbert's, and everything beside particles', which is timed on a shorter
    series.
    """
    y = series(STEPS)
    if (peer := cuthberts(1000, backward=True)) is not None:
        seconds = report.time(
            "N 1000, N trajectories", {"ours": trajectories(1000), "cuthbert": peer}, y, 100
        )
        report.ratio("N 1000: trajectories / cuthbert", seconds["ours"], seconds["cuthbert"], 1.0)
    else:
        print("  cuthbert is not installed: left out")
    if particles_python is None:
        print("  particles: left out, no --particles-python")
        return
    short = y[:PEER_STEPS]
    mine = report.time(
        f"N 1000, T = {PEER_STEPS}",
        {
            "PaRIS": ours(1000, functionals=FUNCTIONALS),
            "exact draws": trajectories(1000, backward="hybrid"),
            "mcmc draws": trajectories(1000),
        },
        short,
        100,
    )
    theirs = particles_peer(particles_python, short, 1000, 1)["seconds"]
    report.cases["particles, seconds a run"] = {
        name: float(np.median(values)) for name, values in theirs.items()
    }
    for name, contender, peer in (("PaRIS", "PaRIS", "paris"), ("FFBS, exact draws", "exact draws", "ffbs")):
        report.line(
            f"N 1000: particles' {name} / ours",
            float(np.median(theirs[peer]) / np.median(mine[contender])),
            -20.0,
        )
    ratio = float(np.median(theirs["backward mcmc"]) / np.median(mine["mcmc draws"]))
    report.line("N 1000: particles' backward Metropolis / ours", ratio, -1.0)


def main(quick: bool = False, particles_python: str | None = None) -> None:
    check({"ours": ours(10_000), "hand-coded": hand_coded(10_000)}, series(STEPS))
    report = Report(quick)
    filters(report, {1_000: 200} if quick else {1_000: 200, 10_000: 100, 100_000: 20, 1_000_000: 15})
    peers(report, particles_python)
    spread = score_spread(5 if quick else 40, 200 if quick else 1600)
    report.line("score, T = 1600: sd by PaRIS / along paths", spread["mcmc"] / spread["path"], 0.5)
    few, many = (100, 500) if quick else (1_000, 1_000_000)
    memory = stream_memory(few, many)
    report.line(
        f"stream: bytes after {many} steps / after {few}",
        memory[f"bytes after {many}"] / memory[f"bytes after {few}"],
        1.0,
    )
    peak = memory[f"peak KiB after {many}"] / memory[f"peak KiB after {few}"]
    report.line(f"stream: peak of the process after {many} / after {few}", peak, 1.01)
    if not quick:
        described = (
            "bootstrap filter and PaRIS of an AR(1) with noise, T = 100 (10 at N = 10⁶); medians of "
            "blocked, interleaved calls"
        )
        found = {
            "benchmark": "smoothing",
            "description": described,
            **harness.environment(),
            "cases": report.cases,
        }
        harness.RESULTS.mkdir(exist_ok=True)
        lines = {"ratios": report.lines, "score_sd": spread, "stream": memory}
        (harness.RESULTS / "smoothing.json").write_text(json.dumps({**found, **lines}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--particles-python", metavar="PYTHON")
    options = parser.parse_args()
    sys.exit(main(options.quick, options.particles_python))
