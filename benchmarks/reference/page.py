"""The table of verdicts for ``docs/benchmarks.md``."""

from typing import Any

from benchmarks.reference.counting import DEFINITION, counted, in_words
from benchmarks.reference.registry import PROBLEMS


def posteriors(report: dict[str, Any]) -> str:
    """A row for each method, and the counts."""
    rows = [r for r in report["rows"] if "error" not in r]
    lines = [
        "| method | rows | truly bad | right | bad called good | bad left open | false alarms | unknown |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        n = counted([r for r in rows if r["method"] == method])
        cells = ["rows", "truth bad", "right", "bad called good", "bad left open", "false alarms", "unknown"]
        lines.append(f"| {method} | " + " | ".join(str(n[c]) for c in cells) + " |")
    sentences = in_words(report["counts"]).split("\n")[1:]
    aims = [f"- {what}: {how}" for what, how in report["aims"].items()]
    raised = len(report["rows"]) - len(rows)
    about = f" {raised} runs ended with an error in words, and are not counted." if raised else ""
    whole = sum(7 + p.scan for p in PROBLEMS.values())
    about += f" {len(report['rows'])} rows of {whole} are made so far: another call goes on."
    return "\n".join([*lines, "", DEFINITION + about, "", *(f"- {s}" for s in sentences), *aims])
