"""Draws of a projection DPP of 50 points from 100,000 candidates, beside DPPy and plain NumPy.

All draw by the chain rule. NumPy's is what someone would write by hand, a loop over points in this process;
DPPy runs in an environment of its own (``--dppy-python``), in the same run. Inclusions are checked: the mean
leverage of drawn rows has a known expectation.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from ppl_ext.designs import ProjectionDPP

CANDIDATES, FEATURES, AIM = 100_000, 50, 0.1
PEER = Path(__file__).parent / "peers" / "dppy_draws.py"


def by_numpy(basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows, by the chain rule."""
    left, taken, rows = (basis**2).sum(1), np.zeros((0, basis.shape[1])), []
    for _ in range(basis.shape[1]):
        row = rng.choice(len(basis), p=left / left.sum())
        direction = basis[row] - taken.T @ (taken @ basis[row])
        direction /= np.linalg.norm(direction)
        left = np.maximum(left - (basis @ direction) ** 2, 0.0)
        left[row] = 0.0
        taken = np.vstack([taken, direction])
        rows.append(row)
    return np.array(rows)


def timed(draw: Callable[[int], np.ndarray], basis: np.ndarray, num: int) -> dict[str, list[float]]:
    """Seconds of draws, and the mean leverage of the rows of each."""
    seconds, leverages = [], []
    for k in range(num):
        start = time.perf_counter()
        rows = draw(k)
        seconds.append(time.perf_counter() - start)
        leverages.append(float((basis[rows] ** 2).sum(1).mean()))
    return {"seconds": seconds, "leverages": leverages}


def main(quick: bool = False, dppy_python: str | None = None) -> None:
    num_candidates, num = (10_000, 5) if quick else (CANDIDATES, 15)
    features = np.random.default_rng(0).normal(size=(num_candidates, FEATURES))
    description = f"one draw of {FEATURES} rows of {num_candidates:,} candidates"
    print(f"dpp: {description}\n")
    start = time.perf_counter()
    dpp = ProjectionDPP(features)
    jax.block_until_ready(dpp.basis)
    built = time.perf_counter() - start
    sample = jax.jit(lambda key: dpp.sample(key))
    start = time.perf_counter()
    jax.block_until_ready(sample(jax.random.key(0)))
    first = time.perf_counter() - start
    basis, rng = np.asarray(dpp.basis, float), np.random.default_rng(1)
    found: dict[str, dict[str, Any]] = {
        "ppl_ext": timed(lambda k: np.asarray(sample(jax.random.key(k))), basis, num),
        "NumPy": timed(lambda k: by_numpy(basis, rng), basis, num),
    }
    if dppy_python is None:
        print("  DPPy: left out, no --dppy-python")
    else:
        problem = {"candidates": num_candidates, "features": FEATURES, "repeats": max(3, num // 3)}
        out = subprocess.run(
            [dppy_python, str(PEER)], input=json.dumps(problem), capture_output=True, text=True, check=True
        )
        found["DPPy"] = json.loads(out.stdout)
    leverage = (basis**2).sum(1)
    expected = (leverage**2).sum() / FEATURES
    medians = {name: float(np.median(f["seconds"])) for name, f in found.items()}
    for name, f in found.items():
        values = np.asarray(f["leverages"])
        off = (values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5)
        if abs(off) > 6:
            raise AssertionError(f"{name} does not draw this law: leverages are {off:.1f} errors off")
        ratio = medians["ppl_ext"] / medians[name]
        print(f"  {name:<8} {medians[name] * 1e3:9.1f} ms a draw; ppl_ext over it {ratio:.3f}")
    print(f"  ppl_ext: built in {built:.2f} s, first draw {first:.2f} s")
    ratios = {name: medians["ppl_ext"] / s for name, s in medians.items() if name != "ppl_ext"}
    if (ratio := ratios.get("DPPy")) is None:
        aims = {}
    else:
        aims = harness.verdicts({f"at most .1 of DPPy's time ({ratio:.3f})": ratio <= AIM})
    if quick:
        return
    report = {
        "benchmark": "dpp",
        "description": description,
        **harness.environment(),
        "median_seconds": {name: round(s, 5) for name, s in medians.items()},
        "built_seconds": round(built, 3),
        "first_draw_seconds": round(first, 3),
        "ratios": {name: round(r, 4) for name, r in ratios.items()},
        "aims": aims,
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "dpp.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
