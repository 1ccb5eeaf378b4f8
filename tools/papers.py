"""Systems from the literature, each a program in ``tutorials/papers/``: what a paper claims, and what comes
out here.

``python -m tools.papers`` runs every program whole, one process each, and makes ``docs/papers.md`` of their
claims; ``--only NAME`` runs one and keeps the others' rows. A program has a constant ``PAPER``, the citation,
and a function ``claims(small=False)`` that returns :class:`Claim`-like rows: tuples of what is claimed, the
exact or published figure, and ours.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tutorials" / "papers"
PAGE = ROOT / "docs" / "papers.md"

HEAD = """# Papers as programs

Methods from the literature whose heart is a probabilistic program, a transformation of one, or an objective.
Each is a program of at most eighty lines in `tutorials/papers/`, written with what this library has, and each
checks a claim. `python -m tools.papers` runs them and makes this page.

"""


class Claim(NamedTuple):
    """What is claimed, the exact or published figure, and ours, in words."""

    claim: str
    known: str
    ours: str


def programs() -> list[Path]:
    return sorted(PROGRAMS.glob("*.py"))


def loaded(path: Path) -> ModuleType:
    """The program as a module, its last cell aside, which runs only as a script."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of_code(path: Path) -> int:
    """Lines that are neither empty nor a comment."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def section(path: Path, paper: str, rows: list[Claim], seconds: float) -> str:
    """What the page says of one program."""
    table = [f"| {row.claim} | {row.known} | {row.ours} |" for row in rows]
    return "\n".join(
        [
            f"## {paper}",
            "",
            f"`tutorials/papers/{path.name}`, {lines_of_code(path)} lines, {seconds:.0f} s.",
            "",
            "| claim | exact or published | ours |",
            "|---|---|---|",
            *table,
            "",
        ]
    )


def ran(path: Path) -> str:
    """Run a program whole, in a process of its own."""
    code = (
        "import json, sys; from pathlib import Path; from tools.papers import loaded; "
        "module = loaded(Path(sys.argv[1])); "
        "print(json.dumps([module.PAPER, [[str(x) for x in row] for row in module.claims()]]))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        raise SystemExit(f"{path.name} failed:\n{done.stderr[-3000:]}")
    paper, rows = json.loads(done.stdout.splitlines()[-1])
    print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return section(path, paper, [Claim(*row) for row in rows], time.perf_counter() - started)


def kept() -> dict[str, str]:
    """The page's sections by the name of their program."""
    if not PAGE.exists():
        return {}
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return {part.split("tutorials/papers/")[1].split("`")[0]: f"## {part.rstrip()}\n" for part in parts}


def counted(sections: list[str]) -> str:
    """How many claims the sections hold, and how many of them did not come out.

    >>> rows = ["| claim | exact or published | ours |", "|---|---|---|", "| a | 1 | 1 |",
    ...         "| b | 2 | not reproduced: 3 |"]
    >>> counted([chr(10).join(rows)]).splitlines()[0]
    '1 programs and 2 claims, of which 1 is not reproduced and says so.'
    """
    rows = [line for text in sections for line in text.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith("| claim | ")]
    missed = sum("not reproduced" in row for row in claims)
    verb = "is not reproduced and says" if missed == 1 else "are not reproduced and say"
    return f"{len(sections)} programs and {len(claims)} claims, of which {missed} {verb} so.\n\n"


def main(only: list[str] | None = None) -> None:
    sections = kept()
    for path in programs():
        if not only or path.stem in only:
            sections[path.name] = ran(path)
    here = [sections[path.name] for path in programs() if path.name in sections]
    PAGE.write_text(HEAD + counted(here) + "\n".join(here), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.papers", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="one program, by its name")
    main(parser.parse_args().only)
