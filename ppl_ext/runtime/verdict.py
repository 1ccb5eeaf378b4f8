"""One word on a result, and the reasons for it."""

from collections.abc import Iterable
from html import escape
from typing import Literal, NamedTuple

Level = Literal["good", "unknown", "doubtful", "bad"]
LEVELS: tuple[Level, ...] = ("good", "unknown", "doubtful", "bad")
"""From best to worst: the worst of the reasons is the verdict."""


class Reason(NamedTuple):
    """What one check found: how good that is, and in words.

    >>> Reason("doubtful", "the restarts disagree").level
    'doubtful'
    """

    level: Level
    words: str


class Verdict(NamedTuple):
    """Whether to believe a result.

    ``level``: "good", nothing that was looked at speaks against it, and something speaks for it; "unknown",
    nothing can be told from what there is; "doubtful"; or "bad". ``reasons``: what was looked at, worst
    first.

    >>> print(judged([Reason("good", "k-hat 0.2"), Reason("doubtful", "the restarts disagree")]))
    Verdict: doubtful.
      doubtful: the restarts disagree
      good: k-hat 0.2
    """

    level: Level
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        lines = [f"Verdict: {self.level}.", *(f"  {r.level}: {r.words}" for r in self.reasons)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def judged(reasons: Iterable[Reason]) -> Verdict:
    """The verdict that reasons come to: the worst of them, and "unknown" where there are none.

    Silence is no praise. For authors of results: a method ``verdict`` that returns it is all that
    :func:`ppl_ext.diagnostics.verdict` asks for.

    >>> judged([]).level, judged([Reason("good", "exact"), Reason("unknown", "one run")]).level
    ('unknown', 'unknown')
    """
    reasons = tuple(sorted(reasons, key=lambda r: -LEVELS.index(r.level)))
    return Verdict(reasons[0].level if reasons else "unknown", reasons)
