"""What the rows of reports are written with."""

from typing import Any


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def figure(cell: dict[str, Any], digits: int = 3) -> str:
    """A mean with its standard error over seeds."""
    return f"{cell['mean']:.{digits}f}" + (f" ± {cell['se']:.{digits}f}" if cell["se"] is not None else "")


def aims(report: dict[str, Any]) -> str:
    return table(["aim", ""], [[aim, verdict] for aim, verdict in report["aims"].items()])
