"""Chains of 10, 20 and 50 dependent flips: time to compile, time to run and noise of a gradient, beside
genjax 0.10.3.

The negative ELBO of a hidden Markov chain of coins, x_t ~ Bernoulli(logit a + c x_{t-1}), y_t ~ N(2 x_t, 1),
under a guide whose coins depend on each other too; the gradient is by the guide's logits. Here the chain is a
``scan``, as a chain is in NumPyro (genjax has no strategies inside its ``scan``, so there it is a Python
loop); at 10 flips the same chain written as a Python loop stands below it.

genjax 0.10.3 needs jax 0.5, so it runs in an environment and a process of its own::

    python3.11 -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install "genjax==0.10.3"
    python -m benchmarks chains --genjax-python ENVIRONMENT/bin/python

Without that option only this library is measured, and nothing is saved. A peer that takes longer than the
limit to start, compile and run is reported as such, and so are longer chains under the same strategy. Both
sides are blocked on, with the same compiler flags and no cache on disk; they cannot be interleaved call by
call, so this library is timed before and after each peer, and of either side's calls the lower quartile is
reported: what a call takes while nothing else gets in its way.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.control_flow import scan

from benchmarks import harness
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO

LENGTHS = (10, 20, 50)
LONGEST_LOOP = 10
COUPLING, PRIOR_LOGIT, PRIOR_COUPLING, SHIFT = 0.8, -0.5, 1.5, 2.0
PEER = Path(__file__).parent / "peers" / "genjax_chains.py"
LIMIT = 100  # seconds for a peer
LONG = 5  # seconds of compilation after which once is enough


def as_scan(logits, coupling, y=None):
    def step(x, now):
        logit, seen = now
        x = 1.0 * numpyro.sample("x", dist.Bernoulli(logits=logit + coupling * x))
        if seen is not None:
            numpyro.sample("y", dist.Normal(SHIFT * x, 1.0), obs=seen)
        return x, None

    scan(step, 0.0, (logits, y))


def as_loop(logits, coupling, y=None):
    x = 0.0
    for t in range(len(logits)):
        x = 1.0 * numpyro.sample(f"x{t}", dist.Bernoulli(logits=logits[t] + coupling * x))
        if y is not None:
            numpyro.sample(f"y{t}", dist.Normal(SHIFT * x, 1.0), obs=y[t])


def negative_elbo_gradient(chain, strategy: str):
    def model(y):
        chain(jnp.full(y.shape, PRIOR_LOGIT), PRIOR_COUPLING, y)

    def guide(y):
        chain(numpyro.param("logits", jnp.zeros(y.shape)), COUPLING)

    loss, guide = ELBO().loss, gradient(guide, {"x*": strategy})
    return lambda key, logits, y: jax.grad(lambda logits: loss(key, {"logits": logits}, model, guide, y))(
        logits
    )


def problem(length: int) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    return {
        "logits": (0.3 * rng.normal(size=length)).astype(np.float32).tolist(),
        "y": (1 + rng.normal(size=length)).astype(np.float32).tolist(),
        "coupling": COUPLING,
        "prior_logit": PRIOR_LOGIT,
        "prior_coupling": PRIOR_COUPLING,
        "shift": SHIFT,
    }


def ours(chain, strategy: str, data: dict[str, Any], compilations: int):
    """The compiled gradient and what it took to compile it."""
    logits, y = jnp.asarray(data["logits"]), jnp.asarray(data["y"])
    seconds: list[float] = []
    while len(seconds) < compilations and (not seconds or seconds[0] < LONG):
        jax.clear_caches()
        start = time.perf_counter()
        traced = jax.jit(negative_elbo_gradient(chain, strategy)).trace(random.key(0), logits, y)
        compiled = traced.lower().compile()
        seconds.append(time.perf_counter() - start)
    return lambda key: compiled(key, logits, y), {
        "compile": float(np.median(seconds)),
        "equations": len(traced.jaxpr.jaxpr.eqns),
    }


def timed_calls(step, calls: int, seed: int) -> tuple[list[float], np.ndarray]:
    keys = list(random.split(random.key(seed), calls))
    jax.block_until_ready(keys)
    times, gradients = [], []
    for key in keys:
        start = time.perf_counter()
        gradient_ = jax.block_until_ready(step(key))
        times.append(time.perf_counter() - start)
        gradients.append(np.asarray(gradient_, np.float64))
    return times[len(times) // 10 :], np.stack(gradients)


def theirs(
    python: str, strategy: str, data: dict[str, Any], compilations: int, calls: int, limit: float
) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("JAX_")}
    request = {**data, "strategy": strategy, "compilations": compilations, "long": LONG, "calls": calls}
    try:
        done = subprocess.run(
            [python, str(PEER)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"over": limit}
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the genjax process failed; its last words:\n{error.stderr[-2000:]}") from error
    return json.loads(done.stdout.splitlines()[-1])


def contender(strategy: str, length: int) -> str:
    """All 2^10 assignments of 10 flips are one batch here; of more, each flip is enumerated by itself."""
    return strategy if strategy != "enumerate" or length <= 10 else "enumerate_locally"


def measure(
    strategy: str, length: int, python: str | None, compilations: int, calls: int, limit: float
) -> dict[str, Any]:
    """One length and strategy, on both sides."""
    data, name = problem(length), contender(strategy, length)
    step, found = ours(as_scan, name, data, compilations)
    before, gradients = timed_calls(step, calls, seed=1)
    peer = None if python is None else theirs(python, strategy, data, compilations, calls, limit)
    after, more = timed_calls(step, calls, seed=2)
    gradients = np.concatenate([gradients, more])
    found |= {
        "strategy": name,
        "run": float(np.quantile([*before, *after], 0.25)),
        "variance": float(gradients.var(0, ddof=1).mean()),
    }
    row: dict[str, Any] = {"ppl_ext": found}
    if length <= LONGEST_LOOP:
        step, loop = ours(as_loop, name, data, 1)
        row["ppl_ext, Python loop"] = {
            **loop,
            "run": float(np.quantile(timed_calls(step, calls, seed=3)[0], 0.25)),
        }
    if peer is not None:
        row["genjax"] = peer
        if "over" not in peer:
            _check_means(f"{strategy}, {length} flips", gradients, peer, calls)
            peer["variance"] = float(np.mean(peer["variance"]))
            del peer["mean"]
    return row


def _check_means(what: str, gradients: np.ndarray, peer: dict[str, Any], calls: int) -> None:
    """Stop when the two sides do not estimate the same gradient."""
    error = np.sqrt(gradients.var(0, ddof=1) / len(gradients) + np.asarray(peer["variance"]) / calls)
    off = np.abs(gradients.mean(0) - np.asarray(peer["mean"])) / (error + 1e-4)
    if off.max() > 5:
        raise AssertionError(f"{what}: means of the gradient differ by {off.max():.1f} standard errors")


def ratios(row: dict[str, Any]) -> dict[str, Any]:
    """Ours over theirs; under 1 is better. Below a variance of 1e-8 both are exact."""
    here, there = row["ppl_ext"], row["genjax"]
    if "over" in there:
        return {"compile": f"<{here['compile'] / there['over']:.2g}"}
    out = {what: round(here[what] / there[what], 3) for what in ("compile", "run")}
    exact = max(here["variance"], there["variance"]) < 1e-8
    out["variance"] = "both exact" if exact else round(here["variance"] / there["variance"], 4)
    out["verdict"] = (
        "met" if out["compile"] < 1 and out["run"] < 1 and (exact or out["variance"] < 1) else "missed"
    )
    return out


def main(quick: bool = False, genjax_python: str | None = None) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    lengths, compilations, calls, limit = ((4, 6), 1, 300, LIMIT) if quick else (LENGTHS, 3, 2000, LIMIT)
    description = (
        f"gradient of the negative ELBO of a chain of dependent flips, {calls} calls; peers are given "
        f"{limit} s"
    )
    report: dict[str, Any] = {
        "benchmark": "chains",
        "description": description,
        "calls": calls,
        **harness.environment(),
        "cases": {},
    }
    print(f"chains: {description}\n")
    too_long: set[str] = set()
    for length in lengths:
        for strategy in ("score", "measure_valued", "enumerate"):
            peer_python = None if strategy in too_long else genjax_python
            row = measure(strategy, length, peer_python, compilations, calls, limit)
            if genjax_python is not None:
                row.setdefault("genjax", {"over": limit})
                if "over" in row["genjax"]:
                    too_long.add(strategy)
                row["ratios"] = ratios(row)
            report["cases"][f"{length} flips, {strategy}"] = row
            _print(length, strategy, row)
    if genjax_python is None:
        print(
            "genjax was not measured: see the head of benchmarks/chains.py for how to make its environment.\n"
        )
    elif not quick:
        report["load"] = [round(x, 1) for x in os.getloadavg()]
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "chains.json").write_text(json.dumps(_rounded(report), indent=1) + "\n")


def _print(length: int, strategy: str, row: dict[str, Any]) -> None:
    print(f"{length} flips, {strategy}")
    for name, found in row.items():
        if name == "ratios":
            print(f"  ratios to genjax      {', '.join(f'{k} {v}' for k, v in found.items())}")
        elif "over" in found:
            print(f"  {name:<21} over {found['over']} s")
        else:
            variance = f"   variance {found['variance']:10.4g}" if "variance" in found else ""
            equations = f"   {found['equations']} equations" if "equations" in found else ""
            print(
                f"  {name:<21} compile {found['compile']:7.2f} s   run {found['run'] * 1e6:8.1f} "
                f"us{variance}{equations}"
            )
    print(flush=True)


def _rounded(x):
    if isinstance(x, dict):
        return {k: _rounded(v) for k, v in x.items()}
    return float(f"{x:.4g}") if isinstance(x, float) else x
