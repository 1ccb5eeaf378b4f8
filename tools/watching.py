"""Run the tests of one mutant in this process, the fastest that enter the changed function first; say which
functions each enters.
"""

import ast
import builtins
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder, SourceFileLoader
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tools.mutants import functions

ENTERED = "__mutation_entered__"
LEFT_OUT = 2


class Watch:
    """A plugin of pytest that tells what each test does over a connection, and runs the tests in the order of
    ``rank``.
    """

    def __init__(self, tree: Path, tell: Callable[[tuple], Any], rank: Callable[[str], Any]):
        self.tree, self.tell, self.rank = tree, tell, rank
        self.seconds, self.entered = 0.0, set[str]()

    def instrument(self):
        """Before pytest starts: a ``conftest.py`` may import the package."""
        setattr(builtins, ENTERED, self.entered.add)
        sys.meta_path.insert(0, Finder(self.tree))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Tests that are known not to enter the function are left out: at worst a mutant lives that one of
        them would have killed.
        """
        ranked = sorted(items, key=lambda item: self.rank(item.nodeid))
        kept = [item for item in ranked if self.rank(item.nodeid)[0] < LEFT_OUT]
        config.hook.pytest_deselected(items=ranked[len(kept) :])
        items[:] = kept

    def pytest_collectreport(self, report):
        if report.failed:
            self.tell(("failed", report.nodeid))

    def pytest_runtest_logstart(self, nodeid):
        self.tell(("starts", nodeid))
        self.seconds = 0.0
        self.entered.clear()

    def pytest_runtest_logreport(self, report):
        self.seconds += report.duration
        if report.failed:
            self.tell(("failed", report.nodeid))
        elif report.when == "teardown":
            self.tell(("passed", report.nodeid, self.seconds, sorted(self.entered)))


class Instrumented(SourceFileLoader):
    """Loads a module so that each of its functions, when entered, adds its name to a set."""

    tree: Path

    def source_to_code(self, data, path, **options):  # type: ignore[override]
        parsed = ast.parse(data, path)
        for name, node in functions(Path(path).relative_to(self.tree).as_posix(), parsed):
            call = ast.Expr(ast.Call(ast.Name(ENTERED, ast.Load()), [ast.Constant(name)], []))
            after_docstring = int(ast.get_docstring(node) is not None)
            ast.copy_location(call, node.body[0])
            node.body.insert(after_docstring, ast.fix_missing_locations(call))
        return super().source_to_code(parsed, path, **options)


class Finder:
    """Gives ``ppl_ext`` to :class:`Instrumented`, ahead of pytest, which would rewrite a module that stands
    on its command line.
    """

    def __init__(self, tree: Path):
        self.loader = type("Loader", (Instrumented,), {"tree": tree})

    def find_spec(self, name, path, target=None):
        spec = PathFinder.find_spec(name, path) if name.partition(".")[0] == "ppl_ext" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = self.loader(spec.loader.name, spec.loader.path)
        return spec


def meets(function: str, enters: list[str]) -> bool:
    """Whether a test that enters these functions enters this one, or one of this module: ``"module:"``."""
    return any(name.startswith(function) for name in enters) if function.endswith(":") else function in enters


def run_tests(
    tell: Connection,
    tree: str,
    log: str,
    arguments: list[str],
    known: dict[str, tuple[float, list[str]]],
    function: str,
    again: bool,
) -> None:
    """The body of the process: pytest in a copy of the tree; its exit code comes last over the connection."""
    os.setsid()  # what its tests start ends with it
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(tree)
    sys.path.insert(0, tree)
    sys.dont_write_bytecode = True  # a compiled module would be read in place of its source

    def rank(nodeid: str) -> tuple[int, float]:
        if nodeid not in known:
            return -1 if again else 1, 0.0  # a mutant that lived through what is known
        seconds, enters = known[nodeid]
        return 0 if meets(function, enters) else LEFT_OUT, seconds

    # plugins that pytest would rather have imported itself
    preloaded = "ignore::pytest.PytestAssertRewriteWarning"
    watch = Watch(Path(tree), tell.send, rank)
    watch.instrument()
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-W", preloaded, *arguments], plugins=[watch])
    tell.send(("ends", int(code)))
