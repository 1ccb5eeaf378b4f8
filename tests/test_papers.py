"""Papers as programs: short, on public names alone, and on the page. What each claims is asserted in
``tests/papers/``.
"""

import ast

import pytest

from tools.papers import PAGE, counted, kept, lines_of_code, programs

MOST_LINES = 80
PROGRAMS = [pytest.param(path, id=path.stem) for path in programs()]


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_is_short(path):
    assert lines_of_code(path) <= MOST_LINES


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_names_nothing_private(path):
    """Neither in an import nor after a dot; `__doc__` and the like are not private."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [part for alias in node.names for part in alias.name.split(".")]
            names += (getattr(node, "module", None) or "").split(".")
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        assert not any(n.startswith("_") and not n.endswith("__") for n in names), ast.unparse(node)


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_says_whose_it_is_and_what_it_claims(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    names = {t.id for t in assigned if isinstance(t, ast.Name)}
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "PAPER" in names
    assert [a.arg for a in functions["claims"].args.args] == ["small"]


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_has_its_section_on_the_page(path):
    assert f"`tutorials/papers/{path.name}`" in PAGE.read_text(encoding="utf-8")


def test_the_page_counts_what_it_holds():
    page = PAGE.read_text(encoding="utf-8")
    assert counted(list(kept().values())) in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and "not reproduced" in line]
    assert f"of which {len(rows)} " in page


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_has_a_test_of_its_claims(path):
    tests = (path.parent.parent.parent / "tests" / "papers").glob("test_*.py")
    assert any(f'"{path.stem}"' in test.read_text(encoding="utf-8") for test in tests)
