"""The tool that breaks the code: what it changes, and that a red test is told from a green one."""

import ast
import dataclasses

import pytest

from tools import mutation
from tools.mutants import mutants
from tools.verdicts import ALIVE, KILLED, UNDECIDED, Verdict, add, load, report

SOURCE = '''"""A module."""


def loss(x: int | float, y):
    """Not 3."""
    if not y > 1:
        raise ValueError(f"{x + 1} is wrong")
    return -(x * 2.0) + stop_gradient(y)


class Kind:
    size: int = 3
    width: float = field(static=True, default=0.5)

    def grow(self, by=10, *, to=Kind(20), at):
        return by
'''


def test_each_place_is_changed_once_and_texts_are_left_alone():
    found = mutants("m.py", SOURCE)
    changes = [(m.line, m.before, m.after) for m in found]
    assert changes == [
        (6, "not y > 1", "(not not y > 1)"),
        (6, "y > 1", "(y <= 1)"),
        (6, "1", "(2)"),
        (8, "-(x * 2.0) + stop_gradient(y)", "(-(x * 2.0) - stop_gradient(y))"),
        (8, "-(x * 2.0)", "(+(x * 2.0))"),
        (8, "x * 2.0", "(x / 2.0)"),
        (8, "2.0", "(3.0)"),
        (8, "stop_gradient(y)", "((lambda x: x)(y))"),
    ]
    for mutant in found:
        ast.parse(mutant.source)
        assert mutant.source != SOURCE


@pytest.mark.slow
def test_samples_are_repeatable_and_every_module_has_its_tests():
    first, again = (mutation.sample(40, seed=3) for _ in range(2))
    assert first == again and len({(m.module, m.line, m.after) for m in first}) == 40
    for tests in mutation.TESTS.values():
        assert all((mutation.ROOT / path).exists() for path in tests.split())
    assert {m.module for m in mutation.sample(5, seed=0, only="ppl_ext/objectives/terms/analytic_kl.py")} == {
        "ppl_ext/objectives/terms/analytic_kl.py"
    }


TOY = (
    "def double(x):\n    return x + x\n\n\ndef half(x):\n    while 2 * x > 1:\n        x = x - 1\n    "
    "return x\n"
)
TESTS_OF_TOY = """
from ppl_ext.toy import double, half
def test_half():
    assert half(0.0) == 0.0
def test_double():
    assert double(3) == 6
"""


@pytest.fixture
def toy(tmp_path, tmp_path_factory, monkeypatch):
    """A tree with one module and its tests, and the trials of it."""
    (tmp_path / "ppl_ext").mkdir()
    (tmp_path / "ppl_ext" / "__init__.py").touch()
    (tmp_path / "ppl_ext" / "toy.py").write_text(TOY, encoding="utf-8")
    (tmp_path / "test_toy.py").write_text(TESTS_OF_TOY, encoding="utf-8")
    (tmp_path / "conftest.py").write_text("import ppl_ext.toy\n", encoding="utf-8")
    monkeypatch.setattr(mutation, "TESTS", {"ppl_ext/toy.py": "test_toy.py"})
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    monkeypatch.setattr(mutation, "PRELOAD", [])
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return mutation.Trials(tmp_path, tmp_path_factory.mktemp("trees"))


def test_red_is_killed_green_survives_and_the_source_is_put_back(toy):
    [mutant] = [m for m in mutants("ppl_ext/toy.py", TOY) if m.before == "x + x"]
    assert mutant.function == "ppl_ext/toy.py:double"
    same = dataclasses.replace(mutant, after="(x * 2)", source=TOY.replace("x + x", "x * 2"))
    assert toy.judge(same, 60.0).verdict == ALIVE
    enters = {nodeid.rpartition(":")[2]: functions for nodeid, (_, functions) in toy.known.items()}
    assert enters == {"test_double": ["ppl_ext/toy.py:double"], "test_half": ["ppl_ext/toy.py:half"]}
    verdict = toy.judge(mutant, 60.0)
    assert verdict.verdict == KILLED and verdict.by.endswith("test_double")
    # what test_double is known not to enter
    elsewhere = dataclasses.replace(mutant, function="ppl_ext/toy.py:half")
    assert toy.judge(elsewhere, 60.0).verdict == ALIVE
    [tree] = toy.trees.queue
    assert (tree / "ppl_ext" / "toy.py").read_text(encoding="utf-8") == TOY
    broken = dataclasses.replace(mutant, source=TOY + "\n1 / 0\n")
    assert toy.judge(broken, 60.0).by == "collection"  # its conftest.py imports the module
    (tree / "conftest.py").unlink()
    assert toy.judge(broken, 60.0).by == "ppl_ext/toy.py"
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        toy.run(tree, ["test_nowhere.py"], "", 60.0)


def test_what_is_red_anyway_kills_nothing_and_a_run_out_of_time_decides_nothing(toy):
    [tree] = toy.trees.queue
    (tree / "test_toy.py").write_text("def test_it():\n    assert False\n", encoding="utf-8")
    mutant = mutants("ppl_ext/toy.py", TOY)[0]
    verdict = toy.judge(mutant, 60.0)
    assert verdict.verdict == UNDECIDED and "not green without" in verdict.note
    (tree / "test_toy.py").write_text("import time\ndef test_it():\n    time.sleep(60)\n", encoding="utf-8")
    assert toy.judge(mutant, 3.0).verdict == UNDECIDED


def test_a_file_is_left_out_if_none_of_its_tests_enters_the_function_until_it_changes(toy):
    [tree] = toy.trees.queue
    assert toy.learn_all("test_toy.py") == "" and set(toy.known) == {
        "test_toy.py::test_half",
        "test_toy.py::test_double",
    }
    assert toy.may_enter("test_toy.py", "ppl_ext/toy.py:half", tree) and toy.may_enter(
        "test_toy.py", "ppl_ext/toy.py:", tree
    )
    assert not toy.may_enter("test_toy.py", "ppl_ext/toy.py:treble", tree)
    (tree / "test_toy.py").write_text(
        TESTS_OF_TOY.replace("double(3) == 6", "double(3) == 7"), encoding="utf-8"
    )
    assert toy.may_enter("test_toy.py", "ppl_ext/toy.py:treble", tree)
    toy.known.clear()
    assert toy.learn_all("test_toy.py") == "test_toy.py::test_double"


def test_what_is_not_known_comes_first_where_a_mutant_is_judged_again(tmp_path, toy):
    again = mutation.Trials(tmp_path, tmp_path / "again", again=True)
    again.known = {"test_toy.py::test_half": (9.0, ["ppl_ext/toy.py:double"])}
    [mutant] = [m for m in mutants("ppl_ext/toy.py", TOY) if m.before == "x + x"]
    assert again.judge(mutant, 60.0).by == "test_toy.py::test_double"
    assert again.known["test_toy.py::test_half"][0] == 9.0  # it would be quicker, had it run


def test_verdicts_add_up_stay_where_lines_move_and_grow_stale(tmp_path, toy):
    kept = tmp_path / "kept.json"
    first, second = mutants("ppl_ext/toy.py", TOY)[:2]
    add(kept, Verdict.on(first, ALIVE, 1.0, note="no test can tell"))
    add(kept, Verdict.on(second, KILLED, 2.0))
    assert [v.place for v in load(kept)] == [first.place, second.place]
    judged = frozenset(v.place for v in load(kept))
    assert not judged & {m.place for m in mutation.sample(99, 0, judged=judged)}
    add(kept, Verdict.on(first, ALIVE, 3.0))  # judged again: the note stays
    add(kept, Verdict.on(second, UNDECIDED, 1.0, note="out of time"))
    add(kept, Verdict.on(second, KILLED, 2.0))  # and goes with its verdict
    assert [v.note for v in load(kept)] == ["no test can tell", ""]
    moved = {m.place: m for m in mutants("ppl_ext/toy.py", "import math\n\n" + TOY)}
    said = report(load(kept), moved)
    assert "1 of    2 killed,  50 %" in said and "1 alive, 1 of them explained" in said and "0 stale" in said
    assert f"toy.py:{first.line + 2}" in said and "no test can tell" in said
    gone = {m.place: m for m in mutants("ppl_ext/toy.py", TOY.replace("x + x", "2 * x"))}
    assert "1 stale" in report(load(kept), gone)
