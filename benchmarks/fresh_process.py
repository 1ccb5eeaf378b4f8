"""Time to the first step of a fit in a process that has just begun and has nothing compiled, beside NumPyro's
SVI: what a user waits for who runs a script. Imports are left out; processes are interleaved.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from numpyro.infer import Trace_ELBO, TraceEnum_ELBO

from benchmarks import first_number, harness

CALLS = {
    "regression": (first_number.regression, Trace_ELBO),
    "hierarchy": (first_number.hierarchy, Trace_ELBO),
    "mixture": (first_number.mixture, TraceEnum_ELBO),
    "series": (first_number.series, Trace_ELBO),
}


def one(who: str, kind: str) -> list[float]:
    """Seconds of the clock and of the processor, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    make, loss = CALLS[kind]
    fresh = first_number.our_fit(make) if who == "ours" else first_number.their_fit(make, loss)
    call = fresh()
    began = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return [time.perf_counter() - began[0], time.process_time() - began[1]]


def elsewhere(who: str, kind: str) -> list[float]:
    """``one`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fresh_process", "--one", who, kind]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(quick: bool = False) -> None:
    rounds = 1 if quick else 5
    description = f"{rounds} processes of each, interleaved"
    report: dict[str, Any] = {
        "benchmark": "fresh_process",
        "description": description,
        **harness.environment(),
        "cases": {},
    }
    print(f"fresh_process: {description}\n")
    for kind in CALLS:
        pairs = [[elsewhere(who, kind) for who in ("ours", "theirs")] for _ in range(rounds)]
        ours, theirs = np.array(pairs).swapaxes(0, 1)
        ratio = harness.paired_ratio(ours[:, 1], theirs[:, 1])
        seconds = {"ours": np.median(ours, 0).tolist(), "theirs": np.median(theirs, 0).tolist()}
        report["cases"][kind] = {"seconds": seconds, "ratio": ratio._asdict()}
        print(
            f"{kind}: {seconds['ours'][0]:.2f} s, NumPyro's SVI {seconds['theirs'][0]:.2f} s; ratio by the "
            f"processor {ratio.median:.2f}",
            flush=True,
        )
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "fresh_process.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fresh_process", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one process of each; prints only")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one)))
    else:
        main(options.quick)
