"""The verdicts on mutants, kept in a file of one line each, so that several runs add up."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.mutants import Mutant

KILLED, ALIVE, UNDECIDED = "killed", "alive", "undecided"


@dataclass
class Verdict:
    """One mutant and what its tests said: ``by`` is the test that went red, ``note`` what a person wrote
    about a survivor.
    """

    module: str
    line: int
    text: str
    before: str
    after: str
    nth: int
    verdict: str
    seconds: float
    by: str = ""
    note: str = ""

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        return self.module, self.text, self.before, self.after, self.nth

    @classmethod
    def on(cls, mutant: Mutant, verdict: str, seconds: float, by: str = "", note: str = "") -> "Verdict":
        m = mutant
        return cls(m.module, m.line, m.text, m.before, m.after, m.nth, verdict, round(seconds, 1), by, note)


def load(path: Path) -> list[Verdict]:
    if not path.exists():
        return []
    return [Verdict(**record) for record in json.loads(path.read_text(encoding="utf-8"))]


def save(path: Path, verdicts: Iterable[Verdict]) -> None:
    ordered = sorted(verdicts, key=lambda v: (v.module, v.line, v.before, v.after))
    text = ",\n".join(json.dumps(asdict(v), ensure_ascii=False) for v in ordered)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def add(path: Path, verdict: Verdict) -> None:
    """Keep one more; a note on the same verdict about the same place stays. The file is read again, since it
    may have been edited.
    """
    verdicts = {v.place: v for v in load(path)}
    before = verdicts.get(verdict.place, verdict)
    if before.verdict == verdict.verdict and not verdict.note:
        verdict.note = before.note
    save(path, (verdicts | {verdict.place: verdict}).values())


def report(verdicts: list[Verdict], standing: dict[tuple, Mutant]) -> str:
    """Kills by folder, then every survivor with its note. What no longer stands in the source is counted
    apart.
    """
    stale = [v for v in verdicts if v.place not in standing]
    judged = [v for v in verdicts if v.place in standing and v.verdict != UNDECIDED]
    undecided = [v for v in verdicts if v.place in standing and v.verdict == UNDECIDED]
    rows = defaultdict(list)
    for v in judged:
        rows[v.module.rpartition("/")[0] if v.module.count("/") > 1 else v.module].append(v)
    width = max([len(name) for name in rows], default=0)
    out = [f"{name:{width}}  {_share(row)}" for name, row in sorted(rows.items())] + [
        f"{'all':{width}}  {_share(judged)}"
    ]
    survivors = [v for v in judged if v.verdict == ALIVE]
    explained = sum(bool(v.note) for v in survivors)
    out.append(
        f"{len(survivors)} alive, {explained} of them explained; {len(undecided)} undecided, {len(stale)} "
        "stale"
    )
    for v in survivors + undecided:
        out.append(
            f"  {v.verdict:9} {v.module}:{standing[v.place].line}  {v.before}  ->  {v.after}   | {v.text}"
        )
        out.append(f"            {v.note or 'NO NOTE'}")
    return "\n".join(out)


def _share(verdicts: list[Verdict]) -> str:
    dead = sum(v.verdict == KILLED for v in verdicts)
    return f"{dead:4} of {len(verdicts):4} killed, {100 * dead / max(len(verdicts), 1):3.0f} %"
