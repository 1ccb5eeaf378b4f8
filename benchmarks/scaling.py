"""Weak and strong scaling over host devices, one thread each: chains of a fit, particles of a smoother,
episodes of a batch.

Strong: the same work on more devices; ideal is 1/D of the time. Weak: D times the work on D devices; ideal is
the same time. Each number of devices is a process of its own, since it is fixed when JAX starts. More devices
than cores share the cores, so no speed-up is to be had there; what they show is what spreading itself costs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.sharding import AxisType
from numpyro.contrib.control_flow import scan

from benchmarks import harness
from ppl_ext.infer import fit
from ppl_ext.meta import EpisodeStream, LaplaceGGN, lift
from ppl_ext.meta.fit import Trainer
from ppl_ext.objectives import ELBO
from ppl_ext.runtime.sharding import placed
from ppl_ext.smoothing import smooth

DEVICES = (1, 2, 4)
STEPS = 2000
FLAGS = (
    "--xla_force_host_platform_device_count={} --xla_cpu_multi_thread_eigen=false "
    "intra_op_parallelism_threads=1"
)


def regression(x, y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


def guide(x, y):
    loc = numpyro.param("loc", lambda key: 0.1 * jax.random.normal(key, (x.shape[1],)))
    numpyro.sample(
        "weights",
        dist.Normal(loc, jnp.exp(numpyro.param("log_scale", jnp.full(x.shape[1], -2.0)))).to_event(1),
    )


def walk(y):
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x_prev, 0.7))
        numpyro.sample("y", dist.StudentT(5.0, x, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def episode(x, y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.StudentT(5.0, x @ weights, 0.3), obs=y)


def chains(mesh, times: int) -> Callable[[], float]:
    """Seconds of a run of 32 chains, or times as many."""
    x = np.random.default_rng(0).normal(size=(500, 20)).astype(np.float32)

    def run():
        how = {"num_chains": 32 * times, "mesh": mesh, "progress_bar": False}
        return fit(
            jax.random.key(0), regression, guide, objective, optim, STEPS, x, x[:, 0], **how
        ).run_seconds

    objective, optim = ELBO(), optax.adam(0.01)
    return run


def particles(mesh, times: int) -> Callable[[], float]:
    """Seconds to smooth 20 steps with 200,000 particles, or times as many."""
    y = np.random.default_rng(0).normal(size=20).astype(np.float32)
    smoother = smooth(walk, {"s": lambda t, x_prev, x: x_prev * x}, num_particles=200_000 * times, mesh=mesh)

    def run():
        started = time.perf_counter()
        jax.block_until_ready(smoother.run(jax.random.key(0), y).expectations)
        return time.perf_counter() - started

    return run


def episodes(mesh, times: int) -> Callable[[], float]:
    """Seconds of 20 steps on batches of 64 episodes, or times as many."""
    rng = np.random.default_rng(0)
    rows = [(x, x[:, 0]) for x in rng.normal(size=(64 * times, 30, 8)).astype(np.float32)]
    stream = EpisodeStream(rows)
    hierarchy = lift(episode, ["weights"]).hierarchy(stream, jax.random.key(0))
    trainer = Trainer(
        hierarchy, LaplaceGGN(), optax.adam(0.01), lambda step: jnp.full((), 0.1), num_draws=8, mesh=mesh
    )
    batch = placed(mesh, next(stream.batches(jax.random.key(1), len(rows), 0)))
    step = jax.jit(trainer.step)

    def run():
        state = placed(mesh, trainer.start(), leading=False)
        started = time.perf_counter()
        for _ in range(20):
            state = jax.block_until_ready(step(state, batch, jax.random.key(2))[0])
        return time.perf_counter() - started

    return run


WORK = {
    "32 chains of a fit": chains,
    "200,000 particles, smoothed": particles,
    "64 episodes a batch": episodes,
}


def _measure(devices: int, repeats: int) -> None:
    """In a process with so many devices: seconds by work and kind of scaling, as JSON."""
    mesh = jax.make_mesh((devices,), ("all",), axis_types=(AxisType.Auto,)) if devices > 1 else None
    found: dict[str, dict[str, float]] = {}
    for name, make in WORK.items():
        for kind, times in (("strong", 1), ("weak", devices)):
            run = make(mesh, times)
            run()
            found.setdefault(name, {})[kind] = round(float(np.median([run() for _ in range(repeats)])), 4)
    print(json.dumps(found))


def main(quick: bool = False) -> None:
    description = (
        f"fits of {STEPS} steps, 20 steps of a series, 20 steps of a lifted model; one thread a device"
    )
    report = {"benchmark": "scaling", "description": description, **harness.environment(), "seconds": {}}
    root = Path(__file__).resolve().parent.parent
    for devices in DEVICES[:2] if quick else DEVICES:
        environment = {
            **os.environ,
            "XLA_FLAGS": FLAGS.format(devices),
            "NPROC": str(2 * devices),
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "benchmarks.scaling", str(devices), "1" if quick else "5"]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        report["seconds"][str(devices)] = json.loads(done.stdout.splitlines()[-1])
        print(f"{devices} devices: {report['seconds'][str(devices)]}", flush=True)
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "scaling.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    _measure(int(sys.argv[1]), int(sys.argv[2]))
