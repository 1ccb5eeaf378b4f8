"""The rules of the house: which module may import which, what a wheel holds, and what stays out of the
tree.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from tools.house import (
    closure,
    code_of,
    imports_of,
    modules_under,
    numbers,
    offered,
    parameters,
    private_across,
    violations,
)

ROOT = Path(__file__).resolve().parent.parent

# --- the import floors


def test_imports_keep_to_their_floors():
    modules = modules_under(ROOT / "ppl_ext")
    assert "ppl_ext" in modules
    assert violations(modules) == []


ALLOWED = {
    "ppl_ext": "from ppl_ext.infer import fit",
    "ppl_ext.errors": "",
    "ppl_ext.program": "import jax\nfrom ppl_ext.errors import ModelError",
    "ppl_ext.gradients": "from ppl_ext.gradients.score import ScoreFunction",
    "ppl_ext.gradients.base": "from ppl_ext import program",
    "ppl_ext.gradients.score": "from ppl_ext.gradients.base import Strategy",
    "ppl_ext.handlers": "from numpyro import handlers\nfrom numpyro.handlers import seed",
    "ppl_ext.objectives": "",
    "ppl_ext.smoothing": "from ppl_ext.program import Program",
    "ppl_ext.priors": "",
    "ppl_ext.infer": "import ppl_ext.smoothing, ppl_ext.priors",
}


def test_the_floors_allow_what_they_should():
    assert violations(ALLOWED) == []


@pytest.mark.parametrize(
    ("importer", "source", "words"),
    [
        ("ppl_ext.errors", "from ppl_ext.program import Program", "higher floor"),
        ("ppl_ext.errors", "from ppl_ext import program", "higher floor"),
        (
            "ppl_ext.program",
            "from ppl_ext.gradients import ScoreFunction",
            "gradients stands behind program on one floor",
        ),
        (
            "ppl_ext.errors",
            "def f():\n    import ppl_ext.program",
            "line 2: program stands on a higher floor",
        ),
        ("ppl_ext.errors", "import importlib\nimportlib.import_module('ppl_ext.infer')", "higher floor"),
        ("ppl_ext.priors", "from ppl_ext.smoothing import PaRIS", "pillars"),
        ("ppl_ext.smoothing", "from ppl_ext.objectives import ELBO", "pillars"),
        ("ppl_ext.infer", "from ppl_ext import simulate", "imports ppl_ext itself"),
        ("ppl_ext.infer", "import ppl_ext", "imports ppl_ext itself"),
        ("ppl_ext.infer", "from ppl_ext.nowhere import thing", "no floor"),
        ("ppl_ext.stray", "", "no floor"),
        ("ppl_ext.infer", "from .fit import fit", "relative import"),
        ("ppl_ext.infer", "from . import fit", "relative import"),
        ("ppl_ext.infer", "import handlers", "the link"),
        ("ppl_ext.infer", "from handlers.gradient import gradient", "the link"),
        ("ppl_ext.gradients.base", "import ppl_ext.gradients.score", "circle"),
        ("ppl_ext.gradients.base", "def f():\n    from ppl_ext.gradients import ScoreFunction", "circle"),
    ],
)
def test_a_planted_violation_is_found(importer, source, words):
    assert any(words in found for found in violations(ALLOWED | {importer: source}))


def test_a_circle_through_a_package_that_python_loads_on_the_way_is_found():
    modules = ALLOWED | {
        "ppl_ext.smoothing.space": "from ppl_ext.smoothing.backward.kernel import Kernel",
        "ppl_ext.smoothing.backward": "from ppl_ext.smoothing.backward.dense import Dense",
        "ppl_ext.smoothing.backward.kernel": "",
        "ppl_ext.smoothing.backward.dense": "from ppl_ext.smoothing.space import Space",
    }
    [found] = violations(modules)
    assert "circle" in found


# --- the house in numbers

AT_MOST = {  # python -m tools.house prints them
    "files loose at the root": 4,
    "rooms": 25,
    "upward imports": 0,
    "circles": 0,
    "private names across files": 0,
    "longest line": 110,
    "public names exported twice": 0,
    # None of these may grow; that they should shrink is told in docs/adr/0015.
    "functions with eight parameters or more": 36,
    "closure of IWELBO, statements": 3_500,
    "closure of infer.fit, statements": 5_310,
    "closure of smooth, statements": 4_440,
}


@pytest.fixture(scope="module")
def counted():
    return numbers()


@pytest.mark.parametrize("name", AT_MOST)
def test_the_house_in_numbers(counted, name):
    assert counted[name] <= AT_MOST[name]


TWO_ROOMS = {
    "ppl_ext.a": "from ppl_ext.b import _hidden",
    "ppl_ext.b": "_hidden = 1\n\ndef f(self, a, b, c, d, e, f, g, *, h): pass",
}


def test_what_the_numbers_count():
    modules = TWO_ROOMS
    assert private_across(modules) == ["ppl_ext.a, line 1: _hidden of ppl_ext.b"]
    assert parameters(modules) == ["ppl_ext.b.f: 8"]
    assert closure("ppl_ext.a", modules) == {"ppl_ext.a", "ppl_ext.b"} and closure("ppl_ext.b", modules) == {
        "ppl_ext.b"
    }
    assert code_of({"ppl_ext.b"}, modules) == 3
    assert [*offered({"ppl_ext.a": "__all__ = ['x']", "ppl_ext.b": "__all__ = ['x', 'y']"}).items()] == [
        ("x", ["ppl_ext.a", "ppl_ext.b"]),
        ("y", ["ppl_ext.b"]),
    ]


# --- every public name shows what it is for

SHOWN_ELSEWHERE = {"ppl_ext.priors.Matched": "match makes it, for seconds, and its example looks at one"}


def public_definitions(modules: dict[str, str]) -> dict[str, ast.AST]:
    """What packages offer in ``__all__``, by its dotted name there: the function or class it stands for,
    wherever that is written.
    """
    found: dict[str, ast.AST] = {}
    packages = {module for module in modules if any(other.startswith(f"{module}.") for other in modules)}
    for package in sorted(packages):
        tree = ast.parse(modules[package])
        # Those that are imported when first asked for stand under ``if TYPE_CHECKING``, which the walk
        # enters.
        origin = {
            a.asname or a.name: (n.module, a.name)
            for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom)
            for a in n.names
        }
        [offered] = [
            n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
        ] or [None]
        for name in () if offered is None else ast.literal_eval(offered):
            module, here = origin.get(name, (package, name))
            while (
                again := _imported(modules.get(module, ""), here) if module in packages else None
            ) and again != (module, here):
                module, here = again
            defined = {
                n.name: n
                for n in ast.parse(modules.get(module, "")).body
                if isinstance(n, ast.FunctionDef | ast.ClassDef)
            }
            if here in defined:
                found[f"{package}.{name}"] = defined[here]
    return found


def _imported(source: str, name: str) -> tuple[str, str] | None:
    """Where a package has a name from."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module)
    return next(
        ((str(n.module), a.name) for n in nodes for a in n.names if (a.asname or a.name) == name), None
    )


def without_example(modules: dict[str, str]) -> list[str]:
    public = public_definitions(modules)
    return [
        name
        for name, node in public.items()
        if ">>>" not in (ast.get_docstring(node) or "") and name not in SHOWN_ELSEWHERE
    ]


def test_every_public_name_has_a_docstring_with_an_example():
    modules = modules_under(ROOT / "ppl_ext")
    public = public_definitions(modules)
    assert {
        "ppl_ext.simulate",
        "ppl_ext.marginal",
        "ppl_ext.objectives.ELBO",
        "ppl_ext.priors.match",
    } <= public.keys()
    assert len(public) > 150 and SHOWN_ELSEWHERE.keys() <= public.keys()
    assert without_example(modules) == []


@pytest.mark.parametrize(
    "module",
    ["ppl_ext.objectives.elbo", "ppl_ext.priors.distances.energy", "ppl_ext.result", "ppl_ext.gradients"],
)
def test_a_public_name_without_an_example_is_found(module):
    modules = modules_under(ROOT / "ppl_ext")
    assert without_example(modules | {module: modules[module].replace(">>>", "...")})


# --- a docstring begins with a sentence that stands alone

NO_BEGINNING = {"Of", "Its", "Their", "See", "As", "Same", "Ditto"}


def beginnings(modules: dict[str, str]) -> list[str]:
    """Docstrings whose first words lean on what stands around them."""
    found = []
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
                text := ast.get_docstring(node)
            ):
                words = [word.rstrip(",:.") for word in text.split()[:2]]
                if words[0] in NO_BEGINNING or words == ["The", "same"]:
                    found.append(f"{module}: {text.splitlines()[0]}")
    return found


def test_docstrings_begin_with_a_sentence_that_stands_alone():
    assert beginnings(modules_under(ROOT / "ppl_ext")) == []
    leaning = {
        f"m{i}": f'def f():\n    """{text}"""' for i, text in enumerate(("See x.", "Of y.", "The same, z."))
    }
    assert len(beginnings(leaning)) == 3


# --- what is built and installed


def run(*command: str | Path, cwd: Path) -> str:
    """The command's standard output; its whole output in the failure when it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist"))


def build(tree: Path, out: Path) -> Path:
    """A folder with the sdist of this tree, and the wheel built from that sdist."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tree)
    shutil.copytree(ROOT / "ppl_ext", tree / "ppl_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "handlers").symlink_to(os.readlink(ROOT / "handlers"))
    run("-m", "build", "--no-isolation", "--outdir", out, cwd=tree)
    return out


@pytest.fixture(scope="module")
def sources() -> set[str]:
    """Every file of the package that has to reach a user."""
    package = ROOT / "ppl_ext"
    return {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")} | {"ppl_ext/py.typed"}


def test_the_wheel_holds_the_package_and_nothing_else(built, sources):
    [wheel] = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert any(name.startswith("ppl_ext/handlers/") for name in names)
    assert names == sources


def test_the_sdist_holds_the_package_and_no_second_handlers(built, sources):
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert sources | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith("handlers")]


def test_an_installed_wheel_brings_no_global_handlers(built, tmp_path):
    [wheel] = built.glob("*.whl")
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    script = """
        import importlib.util, sys
        from pathlib import Path
        site = sys.argv[1]
        # An environment for development may have a checkout on its path: that one's link is not the wheel's
        # doing.
        sys.path[:] = [site, *(path for path in sys.path if not Path(path, "handlers").is_symlink())]
        import ppl_ext.handlers
        assert ppl_ext.handlers.__file__.startswith(site), ppl_ext.handlers.__file__
        assert importlib.util.find_spec("handlers") is None
    """
    run("-c", textwrap.dedent(script), site, cwd=tmp_path)


# --- the link at the top level


def test_handlers_at_the_top_is_a_relative_link_to_the_package():
    link = ROOT / "handlers"
    assert link.is_symlink()
    assert os.readlink(link) == os.path.join("ppl_ext", "handlers")
    assert link.is_dir()


@pytest.mark.parametrize("paths", [[], ["."], ["ppl_ext"]])
def test_pytest_collects_a_handler_once(tmp_path, paths):
    package = tmp_path / "ppl_ext" / "handlers"
    package.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "ppl_ext" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "twice.py").write_text(
        'def twice(x):\n    """\n    >>> twice(2)\n    4\n    """\n    return 2 * x\n'
    )
    (tmp_path / "handlers").symlink_to(os.path.join("ppl_ext", "handlers"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    collected = run("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *paths, cwd=tmp_path)
    assert [line for line in collected.splitlines() if "::" in line] == [
        "ppl_ext/handlers/twice.py::ppl_ext.handlers.twice.twice"
    ]


# --- nothing of one machine in the tree


def files_of_the_tree() -> list[Path]:
    """What git would commit; in an unpacked sdist, every file outside hidden and generated folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = shutil.which("git") and subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    if listed:
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        generated = re.compile(r"(^|/)(\.[^/]+|__pycache__|build|dist|output|[^/]+\.egg-info)/")
        paths = [path for path in ROOT.rglob("*") if not generated.search(path.relative_to(ROOT).as_posix())]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def machine_paths() -> re.Pattern[str]:
    """A home, a scratch folder, or where this checkout and this environment happen to lie."""
    system = {
        Path(name) for name in ("/", "/usr", "/bin", "/etc", "/dev", "/opt", "/var", "/lib", "/srv", "/mnt")
    }
    here = {Path(tempfile.gettempdir()), Path.home(), ROOT, ROOT.parent} - system
    if sys.prefix != sys.base_prefix:
        here.add(Path(sys.prefix))
    known = "|".join(re.escape(path.as_posix()) for path in here)
    return re.compile(
        rf"(?<![\w.\-/])(?:/(?:home|Users|root|tmp|private|scratch)|[A-Z]:\\Users|{known})[/\\]\w"
    )


def test_no_file_names_a_path_of_one_machine():
    pattern = machine_paths()
    assert pattern.search(f"see {ROOT / 'README.md'}") and pattern.search(
        '"' + "/".join(("", "home", "me", "x"))
    )
    assert not pattern.search(
        " ".join(
            "/".join(parts)
            for parts in (("example.org", "home", "me"), ("docs", "tmp", "x"), (".", "tmp", "x"))
        )
    )
    found = []
    for path in files_of_the_tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}, line {number}: {line.strip()[:100]}")
    assert found == []


# --- the versions that are checked


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-newest.txt"])
def test_constraints_are_names_and_versions_and_the_readme_tells_them(name):
    lines = [
        line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []
    versions = {key.lower(): version for key, version in (line.split("==") for line in lines)}
    told = "jax {jax}, numpyro {numpyro}, ArviZ {arviz}".format(**versions)
    assert told in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


# --- one reader of JAX's traced programs


def reads_of_jax(source: str) -> list[str]:
    """What a module takes of JAX's internals: modules that promise nothing, and the equations of traced
    programs.
    """
    tree = ast.parse(source)
    modules = [name.split(".") for _, name in imports_of(source, {})]
    found = [
        ".".join(m) for m in modules if m[:2] in (["jax", "_src"], ["jax", "extend"], ["jax", "interpreters"])
    ]
    found += [
        f".{n.attr}"
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr in {"eqns", "constvars", "_src"}
    ]
    return found


def test_one_module_reads_jax():
    for bad in (
        "from jax.extend.core import Literal",
        "import jax._src.core",
        "def f(j):\n    return j.eqns",
        "x = jax._src.core",
    ):
        assert reads_of_jax(bad), bad
    found = {
        path.relative_to(ROOT).as_posix(): reads_of_jax(path.read_text(encoding="utf-8"))
        for path in (ROOT / "ppl_ext").rglob("*.py")
    }
    # The walks take equations that jaxprs.body has opened.
    expected = {f"ppl_ext/tracing/{name}.py" for name in ("jaxprs", "dataflow", "depends", "work")}
    assert {path for path, reads in found.items() if reads} == expected
    assert all(set(found[path]) == {".eqns"} for path in expected - {"ppl_ext/tracing/jaxprs.py"})
