"""The site reaches every page and every public name; that it builds without a warning is ``make docs``."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ppl_ext
from tests.test_house import SHOWN_ELSEWHERE

SLOW = pytest.mark.slow
DOCS = Path(__file__).resolve().parent.parent / "docs"
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")


def entries() -> list[str]:
    """What the tables of contents name, patterns included."""
    lines = [
        line.strip()
        for block in INDEX.split("```{toctree}")[1:]
        for line in block.split("```")[0].splitlines()
    ]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_a_table_of_contents_once():
    pages = [
        p.relative_to(DOCS).with_suffix("").as_posix()
        for folder in (".", "api")
        for p in (DOCS / folder).glob("*.md")
    ]
    listed = [
        p.relative_to(DOCS).with_suffix("").as_posix()
        for entry in entries()
        for p in DOCS.glob(f"{entry}.md")
    ]
    assert sorted(listed) == sorted(set(pages) - {"index"} | {p for p in listed if p.startswith("adr/")})


def public(package: ModuleType) -> dict[str, object]:
    """By dotted name, what a package offers, and what the modules among that offer."""
    name = package.__name__
    offered = {
        n: getattr(package, n) for n in getattr(package, "__all__", vars(package)) if not n.startswith("_")
    }
    if not hasattr(package, "__all__"):
        offered = {n: found for n, found in offered.items() if getattr(found, "__module__", None) == name}
    inner = [public(found) for found in offered.values() if isinstance(found, ModuleType)]
    return {f"{name}.{n}": found for n, found in offered.items() if callable(found)} | {
        n: f for names in inner for n, f in names.items()
    }


PUBLIC = public(ppl_ext)


def documented(text: str) -> set[str]:
    """The names that the directives of a page of the reference stand for."""
    found = set()
    for kind, target, *options in re.findall(r"\.\. auto(module|class):: (\S+)\n((?:   :.*\n)*)", text):
        left_out = set(re.findall(r"\w+", "".join(re.findall(r":exclude-members:(.*)", options[0]))))
        offered = public(import_module(target)) if kind == "module" else {target: None}
        found |= {
            name
            for name in offered
            if name.rpartition(".")[2] not in left_out and (kind == "class" or ":members:" in options[0])
        }
    return found


REFERENCE = {page.stem: documented(page.read_text(encoding="utf-8")) for page in (DOCS / "api").glob("*.md")}


def test_every_public_name_is_in_the_reference():
    objects = [PUBLIC.get(name) for names in REFERENCE.values() for name in names]
    assert len(PUBLIC) > 150 and {"ppl_ext.simulate", "ppl_ext.smoothing.additive.score"} <= PUBLIC.keys()
    assert [name for name, found in PUBLIC.items() if not any(found is other for other in objects)] == []


def test_a_name_that_a_page_leaves_out_is_found():
    text = (DOCS / "api" / "algorithms.md").read_text(encoding="utf-8")
    assert "ppl_ext.algorithms.ParticleFilter" in documented(text)
    assert "ppl_ext.algorithms.ParticleFilter" not in documented(
        text.replace("marginal, normalize", "ParticleFilter")
    )
    assert documented(text.replace(":members:", ":undoc:")) == set()


# Names of tables and of types of errors tell all there is to tell by themselves.
@pytest.mark.parametrize("package", sorted({name.rpartition(".")[0] for name in PUBLIC} - {"ppl_ext.errors"}))
def test_every_public_name_says_what_it_is_and_shows_it(package):
    names = {
        name: inspect.getdoc(found) or ""
        for name, found in PUBLIC.items()
        if name.rpartition(".")[0] == package
    }
    assert [name for name, text in names.items() if len(text.split()) < 5] == []
    assert [name for name, text in names.items() if ">>>" not in text and name not in SHOWN_ELSEWHERE] == []


def named(target: str) -> object:
    """What a role's dotted name stands for: an attribute, or else a module that nobody imported yet."""
    first, *parts = target.split(".")
    found: object = import_module(first)
    for number, part in enumerate(parts, start=1):
        if not hasattr(found, part) and isinstance(found, ModuleType):
            try:
                import_module(".".join([first, *parts[:number]]))
            except ModuleNotFoundError:
                raise AttributeError(target) from None
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    roles = re.findall(r"\{(?:class|func|meth|mod)\}`(?:[^`<]*<)?~?(ppl_ext[\w.]*)>?`", text)
    missing = [name for name in roles if not _is_there(name)]
    files = re.findall(r"`((?:ppl_ext|tests|docs|tutorials|benchmarks)/[\w./]+\.\w+)`", text)
    assert (missing, [name for name in files if not (DOCS.parent / name).exists()]) == ([], [])


def _is_there(name: str) -> bool:
    try:
        named(name)
    except AttributeError:
        return False
    return True


def test_a_name_that_is_not_there_is_found():
    assert (
        named("ppl_ext.meta.NIW.kl")
        and not _is_there("ppl_ext.meta.NIW.nothing")
        and not _is_there("ppl_ext.nothing.at.all")
    )


# --- the code of a page runs, from its first block to its last

ROOT = DOCS.parent
BY_DEFAULT = {"howto_write_your_own"}
SHOWN_IN_A_TUTORIAL = {"howto_is_my_posterior_any_good"}  # tutorials/02, whose output it explains
WITH_CODE = {path.stem: path for path in [*DOCS.glob("howto_*.md"), DOCS / "start.md", ROOT / "README.md"]}


@pytest.mark.parametrize(
    "name",
    [
        n if n in BY_DEFAULT else pytest.param(n, marks=SLOW)
        for n in sorted(WITH_CODE.keys() - SHOWN_IN_A_TUTORIAL)
    ],
)
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", WITH_CODE[name].read_text(encoding="utf-8"))
    assert blocks
    exec(compile("\n".join(blocks), WITH_CODE[name].name, "exec"), {"__name__": "page"})


# Fragments, on the other pages, stand for programs: what they import and call is there, and takes the
# arguments they name.


def called(tree: ast.Module) -> Iterator[tuple[str, object, list[str]]]:
    """Calls of public things: how it is written, what it is, and the keywords given."""
    by_name = {name.rpartition(".")[2]: found for name, found in PUBLIC.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            target = named(written) if re.fullmatch(r"ppl_ext\.[\w.]+", written) else by_name.get(written)
            if target is not None:
                yield written, target, [k.arg for k in node.keywords if k.arg]


def mistakes(code: str) -> list[str]:
    tree, found = ast.parse(code), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppl_ext"):
            found += [
                f"{node.module}.{a.name}" for a in node.names if not _is_there(f"{node.module}.{a.name}")
            ]
    for written, target, keywords in called(tree):
        parameters = inspect.signature(target).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            found += [f"{written}({keyword}=)" for keyword in keywords if keyword not in parameters]
    return found


@pytest.mark.parametrize(
    "page",
    [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("adr/*.md")), ROOT / "README.md"],
    ids=lambda page: page.stem,
)
def test_what_the_code_of_a_page_calls_is_there(page):
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text(encoding="utf-8"))
    assert [found for block in blocks for found in mistakes(block)] == []


def test_a_mistake_in_a_fragment_is_found():
    assert mistakes("from ppl_ext.infer import SGHMC, NUTZ\nSGHMC(model, batch=3)") == [
        "ppl_ext.infer.NUTZ",
        "SGHMC(batch=)",
    ]
    assert mistakes("ppl_ext.smoothing.smooth(model, particles=3).run(key, y)") == [
        "ppl_ext.smoothing.smooth(particles=)"
    ]


def test_every_tutorial_that_draws_has_a_picture_in_the_gallery():
    shown = {
        line.split()[1]
        for line in (DOCS / "gallery.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(":::{picture}")
    }
    tutorials = DOCS.parent / "tutorials"
    assert shown == {
        path.stem for path in tutorials.glob("*.py") if "matplotlib" in path.read_text(encoding="utf-8")
    }
