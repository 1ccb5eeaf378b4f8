"""Mutation testing: break the code on purpose, one place at a time, and see whether a test goes red.

``python -m tools.mutation --num 20 --seed 1`` samples twenty places over all modules of ``TESTS``, evenly by module; ``--module
ppl_ext/smoothing/conditional.py`` keeps to one. Each mutant runs in a copy of the tree against the tests named for its module, up to the
first failure. The survivors, each with its text before and after, end the run; a survivor wants a test or an explanation.
"""

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = {
    "ppl_ext/program.py": "tests/test_program.py tests/test_density.py",
    "ppl_ext/density.py": "tests/test_density.py tests/test_program.py",
    "ppl_ext/expectation.py": "tests/test_expectation.py",
    "ppl_ext/surrogate.py": "tests/test_expectation.py tests/objectives/test_unbiased.py",
    "ppl_ext/choices.py": "tests/test_expectation.py tests/objectives/test_unbiased.py",
    "ppl_ext/run.py": "tests/test_expectation.py tests/objectives/test_unbiased.py",
    "ppl_ext/particles.py": "tests/test_expectation.py tests/test_carried.py",
    "ppl_ext/credit.py": "tests/test_credit.py tests/test_expectation.py",
    "ppl_ext/dataflow.py": "tests/test_credit.py tests/test_expectation.py",
    "ppl_ext/vmapped.py": "tests/test_vmapped.py",
    "ppl_ext/summing.py": "tests/test_elimination.py",
    "ppl_ext/held.py": "tests/objectives/test_held_draws.py tests/test_carried.py",
    "ppl_ext/factors.py": "tests/test_elimination.py",
    "ppl_ext/divergence.py": "tests/objectives/test_options.py",
    "ppl_ext/elimination.py": "tests/test_elimination.py",
    "ppl_ext/gradients": "tests/gradients",
    "ppl_ext/objectives": "tests/objectives",
    "ppl_ext/algorithms": "tests/algorithms",
    "ppl_ext/smoothing": "tests/smoothing",
    "ppl_ext/meta": "tests/meta",
    "ppl_ext/priors": "tests/priors",
    "ppl_ext/infer": "tests/infer",
}
"""From a module, or a folder of them, to the tests that should notice."""

SWAPS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Add},
    **{ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
IDENTITIES = {"stop_gradient", "_stop"}
"""Functions of one argument that are left out: without them only a gradient is wrong."""


@dataclass(frozen=True)
class Mutant:
    """One change in one module: the source after it, and the line before and after."""

    module: str
    line: int
    before: str
    after: str
    source: str


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, object]]:
    """Every (node, field, new value) that makes a mutant. Annotations, defaults' types, docstrings and messages are left alone."""
    skip: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (note := getattr(node, name, None)) is not None:
                skip |= {id(x) for x in ast.walk(note)}
        if isinstance(node, ast.Raise | ast.JoinedStr):  # a message, or whether an error is raised at all: other tests hold these
            skip |= {id(x) for x in ast.walk(node)}
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr):
            skip |= {id(x) for x in ast.walk(node.value)}  # a union of types, as a rule
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
            yield node, "ops", [SWAPS[type(node.ops[0])]()]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            yield node, "op", ast.UAdd()
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "operand", ast.UnaryOp(ast.Not(), node.operand)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.Call) and _name(node.func) in IDENTITIES and len(node.args) == 1:
            yield node, "func", ast.Lambda(ast.arguments([], [ast.arg("x")], None, [], [], None, []), ast.Name("x", ast.Load()))


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def mutants(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    tree = ast.parse(source)
    lines, found = source.splitlines(), []
    for node, field, new in sorted(places(tree), key=lambda p: (p[0].lineno, p[0].col_offset)):  # type: ignore[attr-defined]
        old = ast.get_source_segment(source, node)
        changed = copy.copy(node)
        setattr(changed, field, new)
        text = f"({ast.unparse(ast.fix_missing_locations(changed))})"
        if old is None:
            continue
        start, end = _offset(lines, node.lineno, node.col_offset), _offset(lines, node.end_lineno, node.end_col_offset)
        found.append(Mutant(module, node.lineno, old, text, source[:start] + text + source[end:]))
    return found


def _offset(lines: list[str], line: int, column: int) -> int:
    before = sum(len(x) + 1 for x in lines[: line - 1])
    return before + len(lines[line - 1].encode()[:column].decode())


def tests_of(module: str) -> str:
    return next(tests for path, tests in TESTS.items() if module == path or module.startswith(f"{path}/"))


def sample(num: int, seed: int, only: str | None = None) -> list[Mutant]:
    """Mutants, a module as likely as another, none twice."""
    rng = random.Random(seed)
    modules = [p for path in TESTS for p in ([ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py")))]
    names = [p.relative_to(ROOT).as_posix() for p in modules if p.name != "__init__.py"]
    pool = {n: mutants(n, (ROOT / n).read_text(encoding="utf-8")) for n in names if only is None or n == only}
    chosen: list[Mutant] = []
    while len(chosen) < num and any(pool.values()):
        name = rng.choice([n for n, left in pool.items() if left])
        chosen.append(pool[name].pop(rng.randrange(len(pool[name]))))
    return chosen


def killed(mutant: Mutant, tree: Path, seconds: float, options: list[str]) -> bool:
    """Whether a test goes red; one that never ends counts as killed."""
    target = tree / mutant.module
    original = target.read_text(encoding="utf-8")
    target.write_text(mutant.source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, *tests_of(mutant.module).split()]
    try:
        return subprocess.run(command, cwd=tree, capture_output=True, timeout=seconds, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(original, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module")
    parser.add_argument("--seconds", type=float, default=900.0, help="for the tests of one mutant")
    parser.add_argument("--list", action="store_true", help="show the sample and stop")
    parser.add_argument("options", nargs="*", help="for pytest, after --")
    given = parser.parse_args()
    chosen = sample(given.num, given.seed, given.module)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "_build", "output"))
        for number, mutant in enumerate(chosen, 1):
            what = f"{mutant.module}:{mutant.line}  {mutant.before}  ->  {mutant.after}"
            if given.list:
                print(what)
                continue
            started = time.perf_counter()
            dead = killed(mutant, tree, given.seconds, given.options)
            survivors += [] if dead else [what]
            print(f"{number:4}/{len(chosen)}  {'killed' if dead else 'ALIVE '}  {time.perf_counter() - started:6.0f} s  {what}", flush=True)
    if chosen and not given.list:
        print(
            f"\n{len(chosen) - len(survivors)} of {len(chosen)} killed ({100 * (1 - len(survivors) / len(chosen)):.0f} %).",
            *survivors,
            sep="\n",
        )


if __name__ == "__main__":
    main()
