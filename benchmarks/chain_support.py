"""Marginals of a chain of switches, of a thousand to a hundred thousand: the time is to grow as their number.

``priors.Support`` sums over all patterns along the chain; by enumeration it would be two to their number.
"""

import json
import time

import jax
import numpy as np

from benchmarks import harness
from ppl_ext.priors import Support

SIZES, AIM = (1_000, 10_000, 100_000), 1.1


def main(quick: bool = False) -> None:
    rounds, sizes = (5, SIZES[:2]) if quick else (21, SIZES)
    description = "marginals of switches in a chain, by number of switches"
    print(f"chain_support: {description}\n")
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    programs = {size: jax.jit(Support(size, 0.1, stay=0.9).marginals) for size in sizes}
    odds = {size: jax.random.normal(jax.random.key(size), (size,)) for size in sizes}
    for _ in range(rounds + 1):
        for size, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(odds[size]))
            seconds[size].append(time.perf_counter() - start)
    medians = {size: float(np.median(s[1:])) for size, s in seconds.items()}  # the first compiles
    slope = float(np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0])
    for size, median in medians.items():
        print(f"  {size:7,} switches {median * 1e3:9.3f} ms")
    aims = harness.verdicts({f"exponent at most {AIM:g} ({slope:.2f})": slope <= AIM})
    if quick:
        return
    report = {
        "benchmark": "chain_support",
        "description": description,
        "rounds": rounds,
        **harness.environment(),
        "milliseconds": {f"{size:,}": round(m * 1e3, 4) for size, m in medians.items()},
        "exponent": round(slope, 3),
        "aims": aims,
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "chain_support.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
