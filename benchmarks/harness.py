"""Times contenders side by side, so that a ratio of two of them is worth believing.

Every contender computes the same thing from the same arguments in one process. Calls are interleaved one by
one in random order, so a drift of the machine (heat, a neighbour's job) hits all of them alike, and ratios
are taken within a round, where the contenders ran within milliseconds of each other. Each call is blocked on.
Compilation is timed apart, on fresh wrappers with JAX's caches cleared and the persistent cache off.
"""

import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
_PACKAGES = ("jax", "jaxlib", "numpyro", "numpy", "ppl_ext")


@dataclass(frozen=True)
class Case:
    """One problem that every contender solves.

    :param name: what tells this case from the others of the benchmark, e.g. ``"batch 64"``.
    :param contenders: name to function; each is called as ``function(key, *args)`` and must be pure, so that
        it can be jitted.
    :param args: the arguments after the key, the same for all.
    """

    name: str
    contenders: dict[str, Callable[..., Any]]
    args: tuple[Any, ...]


class Target(NamedTuple):
    """``contender`` should take at most ``at_most`` times as long as ``against``, in ``"run"`` or in
    ``"compile"``.
    """

    contender: str
    against: str
    what: str
    at_most: float


class Ratio(NamedTuple):
    """Median of paired ratios, the quartiles, and a 95 % interval for the median itself."""

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]

    def verdict(self, at_most: float) -> str:
        """``"met"``, ``"missed"``, or ``"undecided"``: above the aim, but by no more than the noise of the
        median.
        """
        if self.median <= at_most:
            return "met"
        return "undecided" if self.interval[0] <= at_most else "missed"


def paired_ratio(times: np.ndarray, reference: np.ndarray) -> Ratio:
    """How many times as long ``times`` took as ``reference``, pair by pair.

    >>> paired_ratio(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    Ratio(median=2.0, quartiles=(2.0, 2.0), interval=(2.0, 2.0))
    """
    ratios = np.sort(times / reference)
    lower, median, upper = np.quantile(ratios, [0.25, 0.5, 0.75])
    # The rank of the median is binomial: its standard deviation is sqrt(n)/2 whatever the distribution of the
    # times.
    half_width = 0.98 / np.sqrt(len(ratios))
    low, high = np.quantile(ratios, np.clip([0.5 - half_width, 0.5 + half_width], 0.0, 1.0))
    return Ratio(float(median), (float(lower), float(upper)), (float(low), float(high)))


def by_turns(runs: dict[str, Callable[[jax.Array], tuple]], rounds: int) -> list[dict[str, np.ndarray]]:
    """Each run once a round, in random order, with a key of the round; by number that a run returns, those of
    all rounds by name.
    """
    found: dict[str, list] = {name: [] for name in runs}
    rng = random.Random(0)
    for r in range(rounds):
        for name in rng.sample(list(runs), len(runs)):
            found[name].append(runs[name](jax.random.key(2 + r)))
    numbers = np.array(list(found.values()))
    return [dict(zip(found, numbers[:, :, i], strict=True)) for i in range(numbers.shape[2])]


def time_compilations(
    case: Case, repeats: int, rng: random.Random
) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
    """Seconds to trace, lower and compile each contender, ``repeats`` fresh times, interleaved; and the flops
    of what came out.

    The flops are XLA's count, where the backend has one: free of noise, they show whether contenders do the
    same work.
    """
    key = jax.random.key(0)
    seconds: dict[str, list[float]] = {name: [] for name in case.contenders}
    flops: dict[str, float | None] = {}
    for _ in range(repeats):
        for name in rng.sample(list(case.contenders), len(case.contenders)):
            jax.clear_caches()
            start = time.perf_counter()
            compiled = _fresh_jit(case.contenders[name]).lower(key, *case.args).compile()
            seconds[name].append(time.perf_counter() - start)
            flops[name] = (compiled.cost_analysis() or {}).get("flops")
    return {name: np.asarray(values) for name, values in seconds.items()}, flops


def time_calls(case: Case, calls: int, warm_up: int, rng: random.Random) -> dict[str, np.ndarray]:
    """Seconds of each of ``calls`` blocked calls per contender, interleaved call by call in random order."""
    jitted = {name: _fresh_jit(function) for name, function in case.contenders.items()}
    keys = list(jax.random.split(jax.random.key(1), warm_up + calls))
    jax.block_until_ready(keys)
    seconds: dict[str, list[float]] = {name: [] for name in jitted}
    for index, key in enumerate(tqdm(keys, desc=case.name, leave=False)):
        for name in rng.sample(list(jitted), len(jitted)):
            start = time.perf_counter()
            jax.block_until_ready(jitted[name](key, *case.args))
            elapsed = time.perf_counter() - start
            if index >= warm_up:
                seconds[name].append(elapsed)
    return {name: np.asarray(values) for name, values in seconds.items()}


def run(
    benchmark: str,
    cases: Sequence[Case],
    targets: Sequence[Target] = (),
    *,
    description: str,
    calls: int = 200,
    warm_up: int = 10,
    compilations: int = 7,
    save: bool = True,
    seed: int = 0,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time every case, print one table of ratios and verdicts, and save it as
    ``benchmarks/results/<benchmark>.json``.

    :param targets: which pairs of contenders the table compares, and the ratio aimed at.
    :param calls: timed calls of each contender in each case, at least 100.
    :param extra: what else the saved report shall hold.
    :raises ValueError: ``calls`` is under 100.
    """
    if calls < 100:
        raise ValueError(f"calls must be at least 100 for a median to be worth printing; got {calls}")
    # A persistent cache would turn every compilation after the first into a file read.
    jax.config.update("jax_enable_compilation_cache", False)
    rng = random.Random(seed)
    report: dict[str, Any] = {
        "benchmark": benchmark,
        "description": description,
        "calls": calls,
        "compilations": compilations,
        **environment(),
        **(extra or {}),
        "cases": {},
    }
    print(f"{benchmark}: {description}\n{_describe(report)}\n")
    _print_header(targets)
    for case in cases:
        compile_seconds, flops = time_compilations(case, compilations, rng)
        run_seconds = time_calls(case, calls, warm_up, rng)
        seconds = {"run": run_seconds, "compile": compile_seconds}
        report["cases"][case.name] = {**_summarise(seconds, targets), "flops": flops}
        _print_case(case.name, report["cases"][case.name], targets)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{benchmark}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _fresh_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    # jit shares its cache between wrappers of one function object, so each wrapper gets an object of its own.
    return jax.jit(lambda *args: function(*args))


def _summarise(seconds: dict[str, dict[str, np.ndarray]], targets: Sequence[Target]) -> dict[str, Any]:
    medians = {
        what: {name: float(f"{np.median(values):.4g}") for name, values in by_name.items()}
        for what, by_name in seconds.items()
    }
    ratios = []
    for contender, against, what, at_most in targets:
        ratio = paired_ratio(seconds[what][contender], seconds[what][against])
        ratios.append(
            {
                "contender": contender,
                "against": against,
                "what": what,
                "median": round(ratio.median, 4),
                "quartiles": [round(value, 4) for value in ratio.quartiles],
                "interval": [round(value, 4) for value in ratio.interval],
                "at_most": at_most,
                "verdict": ratio.verdict(at_most),
            }
        )
    return {"median_seconds": medians, "ratios": ratios}


def _print_header(targets: Sequence[Target]) -> None:
    for number, target in enumerate(targets, start=1):
        print(
            f"  ratio {number}: {target.what} time of {target.contender} over {target.against}, aim "
            f"{target.at_most:g} or less"
        )
    if targets:
        print()


def _print_case(name: str, case: dict[str, Any], targets: Sequence[Target]) -> None:
    medians = case["median_seconds"]
    print(f"{name}")
    for contender, run_seconds in medians["run"].items():
        flops = case["flops"][contender]
        work = "" if flops is None else f"   {flops / 1e6:10.1f} Mflop"
        print(
            f"  {contender:<16} run {run_seconds * 1e3:9.3f} ms   compile "
            f"{medians['compile'][contender]:7.3f} s{work}"
        )
    for number, ratio in enumerate(case["ratios"], start=1):
        low, high = ratio["quartiles"]
        print(
            f"  ratio {number}: {ratio['median']:6.3f}  (quartiles {low:.3f} to {high:.3f})  aim "
            f"{ratio['at_most']:g}  {ratio['verdict']}"
        )
    print(flush=True)


def verdicts(aims: dict[str, bool]) -> dict[str, str]:
    """Prints each aim with ``"met"`` or ``"missed"``, and returns what the saved report holds."""
    found = {aim: "met" if met else "missed" for aim, met in aims.items()}
    for aim, verdict in found.items():
        print(f"  aim: {aim}: {verdict}", flush=True)
    return found


def environment() -> dict[str, Any]:
    """What a result depends on besides the code: versions and hardware."""
    return {"versions": _versions(), "hardware": _hardware()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source tree"
    return found


def _hardware() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "backend": device.platform,
        "device": device.device_kind,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _describe(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    hardware = report["hardware"]
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['backend']}; {versions}"
