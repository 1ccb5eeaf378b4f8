"""The tool that breaks the code: what it changes, and that a red test is told from a green one."""

import ast

import pytest

from tools import mutation

SOURCE = '''"""A module."""


def loss(x: int | float, y):
    """Not 3."""
    if not y > 1:
        raise ValueError(f"{x + 1} is wrong")
    return -(x * 2.0) + stop_gradient(y)
'''


def test_each_place_is_changed_once_and_texts_are_left_alone():
    found = mutation.mutants("m.py", SOURCE)
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
    assert {m.module for m in mutation.sample(5, seed=0, only="ppl_ext/divergence.py")} == {"ppl_ext/divergence.py"}


def test_red_is_killed_green_survives_and_the_source_is_put_back(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text("def double(x):\n    return x + x\n", encoding="utf-8")
    (tmp_path / "test_toy.py").write_text("from toy import double\ndef test_it():\n    assert double(3) == 6\n", encoding="utf-8")
    monkeypatch.setattr(mutation, "TESTS", {"toy.py": "test_toy.py"})
    (mutant,) = mutation.mutants("toy.py", (tmp_path / "toy.py").read_text(encoding="utf-8"))
    assert mutation.killed(mutant, tmp_path, 60.0, [])
    same = mutation.Mutant("toy.py", 2, "x + x", "(x * 2)", "def double(x):\n    return x * 2\n")
    assert not mutation.killed(same, tmp_path, 60.0, [])
    assert "x + x" in (tmp_path / "toy.py").read_text(encoding="utf-8")
