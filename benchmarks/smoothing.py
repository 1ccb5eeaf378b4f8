"""Filtering and smoothing of an AR(1) process with noise: this library, hand-coded JAX, cuthbert, and particles.

- The bootstrap filter against one written by hand in JAX for this model, at N = 10³ to 10⁶ (systematic resampling by scatter, always).
- PaRIS (``backward="mcmc"``, two backward draws) against the filter, and how the time grows with N.
- What a stream keeps: bytes of its state after many and after few steps.
- cuthbert's filter, and its backward sampler (Metropolis) for N trajectories, at equal N, in this process: ``pip install cuthbert``.
- PaRIS and backward sampling of particles, at N = 1000, in an environment of its own:
  ``python -m benchmarks.smoothing --particles-python ENV/bin/python`` (see ``benchmarks/peers/particles_smoothing.py``).

Peers that are not there are left out, and the table says so.
"""

import argparse
import json
import math
import random
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

from benchmarks import harness
from ppl_ext.smoothing import OnlineSmoother, smooth

PARAMETERS = {"phi": 0.9, "sigma": 0.6, "noise": 1.0}
STEPS = 100
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
        state, found, _, _ = smoother._forward(key, PARAMETERS, (y,), {})
        return state.log_evidence, found

    return run


def trajectories(num: int):
    smoother = smooth(model, num_particles=num)

    def run(key, y):
        of_filter, of_draws = jax.random.split(key)
        return smoother._backward(of_draws, of_filter, PARAMETERS, (y,), {}, num)

    return run


def hand_coded(num: int):
    """The bootstrap filter of this model, as one would write it who knows how to resample on an accelerator."""
    phi, sigma, noise = PARAMETERS["phi"], PARAMETERS["sigma"], PARAMETERS["noise"]

    def systematic(key, weights):
        total = jnp.cumsum(weights)
        starts = jnp.clip(jnp.ceil(num * total / total[-1] - jax.random.uniform(key)), 0, num).astype(jnp.int32)
        first = jnp.concatenate([jnp.zeros(1, jnp.int32), starts[:-1]])
        marks = jnp.zeros(num, jnp.int32).at[jnp.where(starts > first, first, num)].max(jnp.arange(num, dtype=jnp.int32), mode="drop")
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
            raise AssertionError(f"{name} estimates a log evidence of {float(value):.2f}, exactly {exact:.2f}")


def stream_bytes(steps: int, num: int = 1000) -> int:
    """Bytes that live on the device after so many steps of a stream, beyond those before it."""
    smoother = OnlineSmoother(model, functionals=FUNCTIONALS, num_particles=num)
    before = {id(x) for x in jax.live_arrays()}
    state = smoother.init(jax.random.key(0), jnp.zeros(()), params=PARAMETERS)
    for value in np.asarray(series(200))[np.arange(steps) % 200]:
        state = smoother.step(state, value)
    jax.block_until_ready(state)
    return sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)


def particles_peer(python: str, y: jax.Array, num: int, repeats: int) -> dict[str, Any]:
    problem = {"y": np.asarray(y, float).tolist(), "num_particles": num, "parameters": PARAMETERS, "repeats": repeats}
    script = Path(__file__).parent / "peers" / "particles_smoothing.py"
    done = subprocess.run([python, str(script)], input=json.dumps(problem), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(quick: bool = False, particles_python: str | None = None) -> None:
    y = series(STEPS)
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    check({"ours": ours(10_000), "hand-coded": hand_coded(10_000)}, y)
    cases = []
    for num in sizes:
        steps = STEPS if num < 1_000_000 else 10
        contenders = {"filter": ours(num, ess_threshold=1.0), "hand-coded": hand_coded(num)}
        if num <= 100_000:
            contenders["PaRIS"] = ours(num, functionals=FUNCTIONALS, ess_threshold=1.0)
        if (peer := cuthberts(num, backward=False)) is not None and num <= 100_000:
            contenders["cuthbert"] = peer
        cases.append(harness.Case(f"N {num}", contenders, (y[:steps],)))
    description = f"bootstrap filter and PaRIS of an AR(1) with noise, T = {STEPS} (10 at N = 10⁶)"
    report = harness.run("smoothing", cases[: 1 if quick else None], [], description=description, calls=100, compilations=1, save=False)
    table = report["cases"]
    lines: dict[str, Any] = {}
    for name, case in table.items():
        seconds = case["median_seconds"]["run"]
        for contender, against, aim in (("filter", "hand-coded", 1.15), ("PaRIS", "filter", 3.0), ("filter", "cuthbert", 1.0)):
            if contender in seconds and against in seconds:
                lines[f"{name}: {contender} / {against}"] = {"ratio": round(seconds[contender] / seconds[against], 3), "aim": aim}
    paris = [(int(n.split()[1]), c["median_seconds"]["run"]["PaRIS"]) for n, c in table.items() if "PaRIS" in c["median_seconds"]["run"]]
    if len(paris) > 1:
        exponent = math.log(paris[-1][1] / paris[0][1]) / math.log(paris[-1][0] / paris[0][0])
        lines["PaRIS: exponent of N"] = {"ratio": round(exponent, 3), "aim": 1.1}
    if (peer := cuthberts(1000, backward=True)) is not None:
        case = harness.Case("N 1000, N trajectories", {"ours": trajectories(1000), "cuthbert": peer}, (y,))
        drawn = harness.run(
            "trajectories", [case], [harness.Target("ours", "cuthbert", "run", 1.0)], description="", compilations=1, save=False
        )
        row = drawn["cases"][case.name]["ratios"][0]
        lines["N 1000: trajectories / cuthbert"] = {"ratio": row["median"], "aim": 1.0}
    else:
        print("  cuthbert is not installed: left out")
    few, many = stream_bytes(100), stream_bytes(500 if quick else 5_000)
    lines["stream: bytes after many steps / after few"] = {"ratio": round(many / few, 3), "aim": 1.0}
    if particles_python:
        peer_report = particles_peer(particles_python, y, 1000, 1 if quick else 3)
        mine = np.median(
            harness.time_calls(harness.Case("", {"PaRIS": ours(1000, functionals=FUNCTIONALS)}, (y,)), 50, 5, random.Random(0))["PaRIS"]
        )
        lines["N 1000: particles' PaRIS / PaRIS"] = {
            "ratio": round(float(np.median(peer_report["seconds"]["paris"])) / mine, 1),
            "aim": -20.0,
        }
        mine = np.median(harness.time_calls(harness.Case("", {"draws": trajectories(1000)}, (y,)), 50, 5, random.Random(0))["draws"])
        backward = float(np.median(peer_report["seconds"]["backward"]))
        lines["N 1000: particles' backward draws / trajectories"] = {"ratio": round(backward / mine, 1), "aim": -20.0}
    else:
        print("  particles: left out, no --particles-python")
    for name, line in lines.items():
        aim = line["aim"]
        met = line["ratio"] <= aim if aim > 0 else line["ratio"] >= -aim
        line["verdict"] = "met" if met else "missed"
        print(f"  {name:<52} {line['ratio']:>8}   aim {'at most' if aim > 0 else 'at least'} {abs(aim):g}   {line['verdict']}", flush=True)
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "smoothing.json").write_text(json.dumps({**report, "ratios": lines}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--particles-python", metavar="PYTHON")
    options = parser.parse_args()
    sys.exit(main(options.quick, options.particles_python))
