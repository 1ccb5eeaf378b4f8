"""Losses and point estimates in words, for summaries of results that have no draws."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppl_ext.diagnostics.report.summary import MAX_ROWS, in_table


def losses_in_words(losses: np.ndarray) -> str:
    """How the losses of each restart, (chain, step), went: a line a chain.

    >>> print(losses_in_words(np.array([[3.0, 2.0, 1.5, 1.0]])))
    chain 0: loss 3.00 at first, 1.00 at last, mean of the last tenth 1.00
    """
    lines = []
    for c, row in enumerate(np.asarray(losses, np.float64)[:MAX_ROWS]):
        row = row[np.isfinite(row)]
        if not row.size:
            lines.append(f"chain {c}: no finite loss")
            continue
        tail = row[-max(1, row.size // 10) :].mean()
        lines.append(
            f"chain {c}: loss {in_table(row[0])} at first, {in_table(row[-1])} at last, mean of the last "
            f"tenth {in_table(tail)}"
        )
    if (more := len(losses) - MAX_ROWS) > 0:
        lines.append(f"{more} more chains.")
    return "\n".join(lines)


def points(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Numbers that are no draws, one row per scalar: by column, values by name.

    >>> print(points({"estimate": {"mu": np.array([1.0, 2.0])}, "se": {"mu": np.array([0.1, 0.2])}}))
             estimate          se
    mu[0]        1.00        0.10
    mu[1]        2.00        0.20
    """
    rows: list[tuple[str, list[str]]] = []
    hidden: list[str] = []
    for name, x in next(iter(columns.values())).items():
        shape = np.shape(x)
        flat = [np.asarray(column[name], np.float64).ravel() for column in columns.values()]
        for i in range(min(flat[0].size, MAX_ROWS)):
            index = ",".join(map(str, np.unravel_index(i, shape))) if shape else ""
            rows.append((f"{name}[{index}]" if shape else name, [in_table(v[i]) for v in flat]))
        if flat[0].size > MAX_ROWS:
            hidden.append(f"{name}: {flat[0].size - MAX_ROWS} more rows.")
    width = max((len(label) for label, _ in rows), default=0)
    lines = [" " * width + "".join(f"{h:>12}" for h in columns)]
    lines += [f"{label:<{width}}" + "".join(f"{v:>12}" for v in row) for label, row in rows]
    return "\n".join(lines + hidden)
