"""Ten thousand steps of a small model: ``ppl_ext.infer.fit`` with its progress bar, a bare jitted scan, and
NumPyro's ``SVI.run``.

The scan is what someone would write by hand: ``lax.scan`` over ``SVI.update``, compiled once, no bar, no
check, no stop at a NaN. All do the same steps with the same objective and optimiser. "Steps" is the time from
the first step to the last, bar included; "call" is a whole second call: setting up guide and optimiser, the
checks before the first step and the steps. ``SVI.run`` compiles at every call. Compilations in the second
call of ``fit`` are counted, not timed.
"""

import json
import time
from collections.abc import Callable
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

from benchmarks import harness
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

STEPS = 10_000
HOMES, COUNTIES = 919, 85  # the size of the radon data
AIM = 1.1
_COMPILED = "/jax/core/compile/backend_compile_duration"


def model(x, county, y=None):
    loc = numpyro.sample("loc", dist.Normal(0.0, 5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 5.0))
    spread, noise = (numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("spread", "noise"))
    with numpyro.plate("counties", COUNTIES):
        level = numpyro.sample("level", dist.Normal(loc, spread))
    with numpyro.plate("homes", len(x)):
        numpyro.sample("y", dist.Normal(level[county] + slope * x, noise), obs=y)


def data():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.bernoulli(keys[0], 0.2, (HOMES,)).astype(jnp.float32)
    county = jax.random.randint(keys[1], (HOMES,), 0, COUNTIES)
    level = 1.5 + 0.3 * jax.random.normal(keys[2], (COUNTIES,))
    return x, county, level[county] - 0.7 * x + 0.7 * jax.random.normal(keys[3], (HOMES,))


@contextmanager
def count_compilations():
    """How often XLA compiles inside the block, in a list."""
    seen: list[str] = []

    def listener(event: str, duration: float, **kwargs):
        if event == _COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def contenders(steps: int) -> dict[str, Callable[[jax.Array], tuple[float, float, float]]]:
    """Each runs once from a key and returns (seconds of the whole call, seconds of the steps, mean loss of
    the last tenth).
    """
    args, optim, objective, guide = data(), optax.adam(1e-2), ELBO(), AutoNormal(model)
    by_hand = SVI(model, AutoNormal(model), optim, loss=objective)

    by_hand.init(jax.random.key(0), *args)  # sets up the guide

    @jax.jit
    def scan(state, *args):
        return jax.lax.scan(lambda state, _: by_hand.update(state, *args), state, None, length=steps)

    def bare(key):
        start = time.perf_counter()
        # a start of its own, as each run of fit has
        state = SVI(model, AutoNormal(model), optim, loss=objective).init(key, *args)
        jax.block_until_ready(state)
        ready = time.perf_counter()
        _, losses = jax.block_until_ready(scan(state, *args))
        end = time.perf_counter()
        return end - start, end - ready, float(np.mean(losses[-steps // 10 :]))

    def ours(key):
        start = time.perf_counter()
        result = fit(key, model, guide, objective, optim, steps, *args, progress_bar=True)
        return (
            time.perf_counter() - start,
            result.run_seconds,
            float(np.mean(result.losses[:, -steps // 10 :])),
        )

    def numpyro_run(key):
        svi = SVI(model, AutoNormal(model), optim, loss=objective)
        start = time.perf_counter()
        result = svi.run(key, steps, *args, progress_bar=True)
        losses = np.asarray(result.losses)
        return time.perf_counter() - start, float("nan"), float(np.mean(losses[-steps // 10 :]))

    return {"bare scan": bare, "ppl_ext": ours, "numpyro": numpyro_run}


def main(quick: bool = False) -> None:
    steps, rounds = (2_000, 3) if quick else (STEPS, 15)
    description = (
        f"{steps} Adam steps of the ELBO of a hierarchical regression ({HOMES} rows, {COUNTIES} groups), "
        "progress bar on"
    )
    print(f"runner: {description}\n")
    runs = contenders(steps)
    for run in runs.values():
        run(jax.random.key(0))  # compiles
    with count_compilations() as compilations:
        runs["ppl_ext"](jax.random.key(1))
    call, loop, loss = harness.by_turns(runs, rounds)
    if abs(loss["ppl_ext"].mean() - loss["bare scan"].mean()) > 5 * loss["bare scan"].std(ddof=1) + 0.5:
        raise AssertionError(f"the contenders do not do the same work: losses {loss}")
    ratios = {
        "steps: ppl_ext / bare scan": harness.paired_ratio(loop["ppl_ext"], loop["bare scan"]),
        "call: ppl_ext / bare scan": harness.paired_ratio(call["ppl_ext"], call["bare scan"]),
        "call: ppl_ext / numpyro": harness.paired_ratio(call["ppl_ext"], call["numpyro"]),
    }
    for name in runs:
        print(f"  {name:<10} call {np.median(call[name]):7.3f} s   steps {np.median(loop[name]):7.3f} s")
    for name, ratio in ratios.items():
        aim = "" if name.endswith("numpyro") else f"   aim {AIM:g}  {ratio.verdict(AIM)}"
        print(
            f"  {name:<28} {ratio.median:6.3f}  (quartiles {ratio.quartiles[0]:.3f} to "
            f"{ratio.quartiles[1]:.3f}){aim}"
        )
    print(f"  compilations in the second call of fit: {len(compilations)}", flush=True)
    if quick:
        return
    report = {
        "benchmark": "runner",
        "description": description,
        "rounds": rounds,
        **harness.environment(),
        "median_seconds": {
            name: {"call": round(float(np.median(call[name])), 4), "steps": _seconds(loop[name])}
            for name in runs
        },
        "ratios": {
            name: {"median": round(r.median, 4), "quartiles": [round(q, 4) for q in r.quartiles]}
            for name, r in ratios.items()
        },
        "compilations_in_the_second_call": len(compilations),
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "runner.json").write_text(json.dumps(report, indent=1) + "\n")


def _seconds(times: np.ndarray) -> float | None:
    return None if np.isnan(times).any() else round(float(np.median(times)), 4)
