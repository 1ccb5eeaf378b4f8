"""All problems, by name."""

from benchmarks.reference import hierarchies, regressions, series
from benchmarks.reference.problem import Problem

PROBLEMS: dict[str, Problem] = {
    p.name: p for p in (*regressions.PROBLEMS, *hierarchies.PROBLEMS, *series.PROBLEMS)
}
