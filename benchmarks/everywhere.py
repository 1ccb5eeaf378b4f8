"""Every benchmark on the device that JAX finds here, and one table of what came out.

``python -m benchmarks.everywhere results/h100`` runs each in a process of its own, so that one that fails or
runs out of time or memory takes no other with it; ``--quick`` and names choose as in
``python -m benchmarks``. The folder gets their reports and ``table.md``, with the hardware's name on top. A
second call goes on with those that have no report there yet.

On a machine with an accelerator: ``pip install "jax[cuda13]" -e ".[bench]"`` and this. Nothing in the library
or here is particular to it; ratios are of contenders on the same device, and aims are the ones for a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import available

LIMIT = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.everywhere", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of: {', '.join(available())} (default all)"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"seconds for each benchmark (default {LIMIT:g})"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(available())):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(available())}")
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = options.folder / "runs.json"
    done = json.loads(runs.read_text()) if runs.exists() else {}
    for name in options.names or available():
        if done.get(name, {}).get("status") == "ran":
            continue
        print(f"--- {name}", flush=True)
        done[name] = run(name, options.folder, options.quick, options.limit)
        runs.write_text(json.dumps(done, indent=1) + "\n")
        (options.folder / "table.md").write_text(table(options.folder, done))
    print((options.folder / "table.md").read_text())


def run(name: str, folder: Path, quick: bool, limit: float) -> dict[str, Any]:
    """One benchmark: how it ended, after how many seconds."""
    command = [sys.executable, "-m", "benchmarks", name, *(["--quick"] if quick else [])]
    start = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        try:
            process = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit,
                env={**os.environ, "BENCHMARK_RESULTS": str(folder.resolve())},
            )
            status = "ran" if process.returncode == 0 else f"failed, see {name}.log"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:g} s"
    return {"status": status, "seconds": round(time.perf_counter() - start, 1)}


def table(folder: Path, done: dict[str, Any]) -> str:
    """One table: a row for each ratio and aim of each report, and one for each benchmark without."""
    lines = ["| benchmark | what | measured | aim | |", "| --- | --- | --- | --- | --- |"]
    where = ""
    for name, how in done.items():
        path = folder / f"{name}.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        hardware = report.get("hardware", {})
        where = where or (
            f"{hardware['device']} ({hardware['backend']}), jax {report['versions']['jax']}"
            if hardware
            else ""
        )
        rows = list(_rows(report)) if how["status"] == "ran" else []
        for what, value, aim, verdict in rows or [(how["status"], "", "", "")]:
            lines.append(f"| {name} | {what} | {value} | {aim} | {verdict} |")
    total = sum(how["seconds"] for how in done.values())
    return (
        f"{where}{': ' if where else ''}{len(done)} benchmarks in {total / 60:.0f} minutes.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _rows(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str, str]]:
    """Whatever has a verdict, wherever a report keeps it: (what, measured, aim, verdict)."""
    if isinstance(found, list):
        for one in found:
            yield from _rows(one, path)
    elif isinstance(found, dict):
        if isinstance(found.get("verdict"), str):
            if "against" in found:
                what = f"{found['what']} time of {found['contender']} over {found['against']}"
                yield (
                    ", ".join([*path, what]),
                    _short(found["median"]),
                    f"at most {found['at_most']:g}",
                    found["verdict"],
                )
            else:
                value = found.get("value", found.get("ratio", found.get("run", found.get("rms", ""))))
                aim = found.get("aim", "")
                if "ratio" in found:  # a negative aim is a lower bound
                    aim = f"at most {aim:g}" if aim >= 0.0 else f"at least {-aim:g}"
                yield ", ".join(path), _short(value), _short(aim), found["verdict"]
            return
        for key, value in found.items():
            if key == "aims" and all(isinstance(v, str) for v in value.values()):
                yield from ((", ".join([*path, aim]), "", "", verdict) for aim, verdict in value.items())
            else:
                yield from _rows(
                    value, path if key in ("cases", "ratios", "aims", "bounds") else (*path, key)
                )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    main()
