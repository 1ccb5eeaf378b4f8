"""The house in numbers: ``python -m tools.house``.

Rooms are the modules and packages right inside of ``ppl_ext``; arrows are imports between them. The *closure*
of a module is what Python has to load of ``ppl_ext`` to import it: what a reader may have to read.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Low to high, and on a floor from left to right: a room imports those before it. ppl_ext/__init__.py stands
# above them all.
FLOORS = (
    ("errors",),
    ("tracing", "runtime"),
    ("densities",),
    ("program", "gradients"),
    ("designs", "expectations", "handlers", "diagnostics", "state_space"),
    ("scores", "transport", "algorithms", "result"),
    ("objectives", "smoothing", "priors", "meta"),
    ("infer",),
)
PILLARS = {"objectives", "smoothing", "priors", "meta"}
FLOOR_OF = {room: height for height, floor in enumerate(FLOORS) for room in floor}
ORDER = [room for floor in FLOORS for room in floor]


def modules_under(package: Path) -> dict[str, str]:
    """Dotted name to source text, a package standing for its ``__init__``."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return modules


def imports_of(source: str, modules: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Line and dotted target of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(level=0, module=str(module)):
                for alias in node.names:
                    name = f"{module}.{alias.name}"
                    yield node.lineno, name if name in modules else module
            case ast.ImportFrom():
                yield node.lineno, "." * node.level + (node.module or "")
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def packages_loaded_with(target: str, importer: str) -> Iterator[str]:
    """Packages whose ``__init__`` Python runs for ``target`` and has not begun on the way to ``importer``."""
    parts = target.split(".")
    for end in range(2, len(parts)):
        package = ".".join(parts[:end])
        if not f"{importer}.".startswith(f"{package}."):
            yield package


def why_not(importer: str, target: str) -> str | None:
    """The rule that this import breaks, or None."""
    if target.startswith("."):
        return "relative import; write it out from ppl_ext"
    if target.partition(".")[0] == "handlers":
        return "imports the link at the top level; write ppl_ext.handlers"
    if target.partition(".")[0] != "ppl_ext" or importer == "ppl_ext":
        return None
    if target == "ppl_ext":
        return "imports ppl_ext itself, which imports everything; name the module"
    here, there = importer.split(".")[1], target.split(".")[1]
    if there not in FLOOR_OF:
        return f"{target} stands on no floor"
    if FLOOR_OF[there] > FLOOR_OF[here]:
        return f"{there} stands on a higher floor than {here}"
    if here in PILLARS and there in PILLARS and here != there:
        return f"{here} and {there} are pillars, which never import each other"
    if ORDER.index(there) > ORDER.index(here):
        return f"{there} stands behind {here} on one floor"
    return None


def upward(modules: dict[str, str]) -> list[str]:
    """Every import that a floor forbids, in words."""
    found = []
    for importer, source in modules.items():
        if importer != "ppl_ext" and importer.split(".")[1] not in FLOOR_OF:
            found.append(f"{importer} stands on no floor: give it one in FLOORS, tools/house.py")
            continue
        for line, target in dict.fromkeys(imports_of(source, modules)):
            if reason := why_not(importer, target):
                found.append(f"{importer}, line {line}: {reason}")
    return found


def circles(modules: dict[str, str]) -> list[str]:
    """Imports that go in a circle, packages that Python loads on the way included."""
    graph: dict[str, set[str]] = {}
    for importer, source in modules.items():
        edges = graph.setdefault(importer, set())
        for _, target in imports_of(source, modules):
            edges.update({target, *packages_loaded_with(target, importer)} & modules.keys())
    graph.pop("ppl_ext", None)
    try:
        TopologicalSorter({module: edges - {"ppl_ext"} for module, edges in graph.items()}).prepare()
    except CycleError as error:
        return ["imports go in a circle: " + " <- ".join(error.args[1])]
    return []


def violations(modules: dict[str, str]) -> list[str]:
    """Every broken import rule among these modules, in words."""
    return upward(modules) + circles(modules)


def private_across(modules: dict[str, str]) -> list[str]:
    """Imports of a name that begins with one underscore from another module of ``ppl_ext``."""
    found = []
    for importer, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppl_ext"):
                private = [
                    a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")
                ]
                found += [f"{importer}, line {node.lineno}: {name} of {node.module}" for name in private]
    return found


def parameters(modules: dict[str, str], at_least: int = 8) -> list[str]:
    """Functions with that many parameters, ``self`` and ``cls`` left out."""
    found = []
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = [
                    p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ("self", "cls")
                ]
                if len(names) >= at_least:
                    found.append(f"{module}.{node.name}: {len(names)}")
    return sorted(found, key=lambda entry: -int(entry.rpartition(" ")[2]))


def offered(modules: dict[str, str]) -> dict[str, list[str]]:
    """Public names, as packages list them in ``__all__``: in which packages each stands."""
    found: dict[str, list[str]] = {}
    for module, source in modules.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                for name in ast.literal_eval(node.value):
                    found.setdefault(name, []).append(module)
    return found


def offered_twice(modules: dict[str, str]) -> list[str]:
    """Public names that stand for different things in different packages."""
    from importlib import import_module

    found = []
    for name, places in offered(modules).items():
        things = {id(getattr(import_module(place), name)) for place in places}
        if len(things) > 1:
            found.append(f"{name}: {', '.join(places)}")
    return found


def closure(module: str, modules: dict[str, str]) -> set[str]:
    """The modules of ``ppl_ext`` that importing this one loads, itself included, ``ppl_ext`` left out."""
    found: set[str] = set()
    todo = [module]
    while todo:
        here = todo.pop()
        if here in found or here == "ppl_ext":
            continue
        found.add(here)
        for node in ast.parse(modules[here]).body:  # what stands within functions is loaded when it is called
            if isinstance(node, ast.Import | ast.ImportFrom):
                for _, target in imports_of(ast.unparse(node), modules):
                    todo += [t for t in (target, *packages_loaded_with(target, here)) if t in modules]
    return found


def lines_of(names: set[str], modules: dict[str, str]) -> int:
    return sum(len(modules[name].splitlines()) for name in names)


def code_of(names: set[str], modules: dict[str, str]) -> int:
    """Statements without docstrings: a measure of length that knows nothing of how lines are broken."""

    def is_text(node: ast.stmt) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    return sum(
        isinstance(node, ast.stmt) and not is_text(node)
        for name in names
        for node in ast.walk(ast.parse(modules[name]))
    )


CLOSURES = {
    "IWELBO": "ppl_ext.objectives.importance_weighted",
    "infer.fit": "ppl_ext.infer.svi.fit",
    "smooth": "ppl_ext.smoothing.smooth",
}


def numbers() -> dict[str, int]:
    """What the tests hold, by name."""
    modules = modules_under(ROOT / "ppl_ext")
    loose = [
        m for m in modules if m.count(".") == 1 and (ROOT / "ppl_ext" / f"{m.split('.')[1]}.py").exists()
    ]
    found = {
        "files loose at the root": len(loose) + 1,  # and __init__
        "rooms": len({m.split(".")[1] for m in modules if "." in m}),
        "floors": len(FLOORS),
        "upward imports": len(upward(modules)),
        "circles": len(circles(modules)),
        "private names across files": len(private_across(modules)),
        "longest line": max(len(line) for source in modules.values() for line in source.splitlines()),
        "functions with eight parameters or more": len(parameters(modules)),
        "public names exported twice": len(offered_twice(modules)),
        "lines": lines_of(set(modules), modules),
        "statements": code_of(set(modules), modules),
    }
    for name, module in CLOSURES.items():
        found[f"closure of {name}, files"] = len(closure(module, modules))
        found[f"closure of {name}, lines"] = lines_of(closure(module, modules), modules)
        found[f"closure of {name}, statements"] = code_of(closure(module, modules), modules)
    return found


def main() -> None:
    modules = modules_under(ROOT / "ppl_ext")
    for name, number in numbers().items():
        print(f"{name:45} {number:7,}")
    for about, entries in (
        ("upward", upward(modules)),
        ("circles", circles(modules)),
        ("private names across files", private_across(modules)),
        ("parameters", parameters(modules)),
        ("exported twice", offered_twice(modules)),
    ):
        if entries:
            print(f"\n{about}:", *entries, sep="\n  ")


if __name__ == "__main__":
    main()
