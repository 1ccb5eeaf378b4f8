"""How many verdicts are right."""

from collections.abc import Sequence
from typing import Any

from benchmarks.reference.truth import Error

DEFINITION = (
    "Truth: bad if a mean is off by more than .3 of the reference's sds, or an sd by more than 30 %; within "
    ".05 or two standard errors of that, border, and right either way. Right: bad or doubtful where the "
    "truth is bad; good or unknown where it is fine. A false alarm: bad or doubtful where it is fine."
)


LOOKED_AT = frozenset(
    "eight_schools_centered eight_schools_noncentered kilpisjarvi kidscore mesquite sblr radon_centered "
    "bball logistic_pca surgical garch11 lotka_volterra".split()
)
LOOKED_AT_TOO, HELD_OUT = "looked at while rules were made", "held out"


def _error(row: dict[str, Any]) -> Error:
    return Error(row["mean"], row["sd"], row["noise"])


def judged(row: dict[str, Any], lenient: bool = True) -> str:
    """One row: "right", "false alarm", "bad called good", or "bad left open" (unknown); an error that the
    library raised in words is right, and no result.

    :param lenient: whether rows on the border are right either way.
    """
    if "error" in row:
        return "right"
    off = _error(row)
    if lenient and off.border:
        return "right"
    if off.bad:
        return {"good": "bad called good", "unknown": "bad left open"}.get(row["said"], "right")
    return "right" if row["said"] in ("good", "unknown") else "false alarm"


def counted(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts over a table: of all its rows, and of the models whose rows were, and were not, looked at
    while the rules of the verdicts were made.
    """
    rows = [r for r in rows if "error" not in r]
    found = _counts(rows)
    for which, seen in ((LOOKED_AT_TOO, True), (HELD_OUT, False)):
        found[which] = _counts([r for r in rows if (r["model"] in LOOKED_AT) is seen])
    return found


def aims(found: dict[str, Any]) -> dict[str, bool]:
    """What verdicts should reach, and whether they do."""
    return {
        "verdicts right in at least 95 % of the rows": found["right"] >= 0.95 * found["rows"],
        "no bad row called good": found["bad called good"] == 0,
        "false alarms in at most 5 % of the rows": found["false alarms"] <= 0.05 * found["rows"],
    }


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    how = [judged(r) for r in rows]
    off = [_error(r) for r in rows]
    fine = sum(not e.bad for e in off)
    return {
        "models": len({r["model"] for r in rows}),
        "rows": len(rows),
        "right": how.count("right"),
        "truth bad": sum(e.bad for e in off),
        "border": sum(e.border for e in off),
        "border wrong": sum(e.border and judged(r, False) != "right" for e, r in zip(off, rows, strict=True)),
        "bad called good": how.count("bad called good"),
        "bad left open": how.count("bad left open"),
        "false alarms": how.count("false alarm"),
        "truth fine": fine,
        "unknown": sum(r["said"] == "unknown" for r in rows),
    }


def in_words(found: dict[str, Any]) -> str:
    """A row, or the counts of a table."""
    if "method" in found:
        if "error" in found:
            return f"{found['model']:<26}{found['method']:<15}raised: {found['error'][:60]}"
        return (
            f"{found['model']:<26}{found['method']:<15}mean {found['mean']:6.2f}   sd {found['sd']:6.2f}   "
            f"{found['seconds']:6.1f} s + {found['seconds_of_verdict']:5.1f} s   {found['said']:<9}"
            f"{judged(found)}"
        )
    lines = [DEFINITION, _sentence("all", found)]
    lines += [_sentence(half, found[half]) for half in (LOOKED_AT_TOO, HELD_OUT) if half in found]
    return "\n".join(lines)


def _sentence(which: str, n: dict[str, Any]) -> str:
    rows, fine = max(n["rows"], 1), max(n["truth fine"], 1)
    return (
        f"{which}: {n['models']} models, {n['rows']} rows, {n['right'] / rows:.1%} right; "
        f"{n['truth bad']} truly bad, of which {n['bad called good']} called good and "
        f"{n['bad left open']} unknown; "
        f"{n['false alarms']} false alarms ({n['false alarms'] / fine:.1%} of the {fine} that are fine); "
        f"{n['unknown']} unknown; {n['border']} on the border, "
        f"of which {n['border wrong']} would be wrong without it."
    )
