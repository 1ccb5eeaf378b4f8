"""The site reaches every page and every public package; that it builds without a warning is ``make docs``."""

from pathlib import Path
from types import ModuleType

import pytest

import ppl_ext

DOCS = Path(__file__).resolve().parent.parent / "docs"
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")


def entries() -> list[str]:
    """What the tables of contents name, patterns included."""
    lines = [line.strip() for block in INDEX.split("```{toctree}")[1:] for line in block.split("```")[0].splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_a_table_of_contents_once():
    pages = [p.relative_to(DOCS).with_suffix("").as_posix() for folder in (".", "api") for p in (DOCS / folder).glob("*.md")]
    listed = [p.relative_to(DOCS).with_suffix("").as_posix() for entry in entries() for p in DOCS.glob(f"{entry}.md")]
    assert sorted(listed) == sorted(set(pages) - {"index"} | {p for p in listed if p.startswith("adr/")})


@pytest.mark.parametrize("name", [n for n in ppl_ext.__all__ if isinstance(getattr(ppl_ext, n), ModuleType)])
def test_every_public_package_has_a_page(name):
    page = DOCS / "api" / f"{name}.md"
    assert page.exists(), f"docs/api/{name}.md, with automodule:: ppl_ext.{name}, is missing"
    assert f"automodule:: ppl_ext.{name}" in page.read_text(encoding="utf-8")


def test_every_tutorial_that_draws_has_a_picture_in_the_gallery():
    shown = {line.split()[1] for line in (DOCS / "gallery.md").read_text(encoding="utf-8").splitlines() if line.startswith(":::{picture}")}
    tutorials = DOCS.parent / "tutorials"
    assert shown == {path.stem for path in tutorials.glob("*.py") if "matplotlib" in path.read_text(encoding="utf-8")}
