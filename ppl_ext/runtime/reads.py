"""What a Python program reads: a walk over the functions and objects that it can reach, by the names that its
code loads.
"""

import contextvars
import dis
import functools
import operator
import os
import sys
import sysconfig
import types
import weakref
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Container, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_ext.runtime.read_values import SORTS, content_of, parts_of, sort_of

Edge = tuple[int, tuple[str, Any]]
"""The identity of a function, object or container, and which part of it: ``("global", "DATA")``."""

_MOST = 100_000  # parts that a walk follows; of more, no state is ever taken for another's
_DEEP = 16  # levels of tuples and frozen values
_DYNAMIC = {"getattr", "vars", "__dict__", "attrgetter", "asdict", "astuple", "fields"}
_NOT_DATA = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__annotations__",
    "__abstractmethods__",
    "_abc_impl",
    "__slots__",
}
_OF_MAKING = {"__init__", "__new__", "__post_init__"}
_NOT_IMPLIED = {
    "__repr__",
    "__str__",
    "__del__",
    "__init_subclass__",
    "__set_name__",
    "__getstate__",
    "__setstate__",
    "__reduce__",
}
_WRAPPED: dict[type, str] = {UserDict: "data", UserList: "data", ChainMap: "maps"}
"""Python's own containers that keep what they hold in an attribute."""
_STANDARD = sysconfig.get_path("stdlib")
_INSTALLED = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # ppl_ext itself
_CORE = {
    "jax",
    "jaxlib",
    "numpy",
    "numpyro",
    "scipy",
    "flax",
    "optax",
    "equinox",
    "pandas",
    "ml_dtypes",
    "jaxtyping",
    "funsor",
}


class Code(NamedTuple):
    """The names that a code object and those within it load."""

    globals: tuple[str, ...]
    attributes: frozenset[str]
    modules: tuple[str, ...]
    dynamic: bool


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Code:
    """What a function's code loads, by name."""
    found, attributes, modules = dict[str, None](), set[str](), dict[str, None]()
    todo = [code]
    while todo:
        here = todo.pop()
        todo += [c for c in here.co_consts if isinstance(c, types.CodeType)]
        spelled = {c for c in here.co_consts if isinstance(c, str) and c.isidentifier()}  # getattr(self, "y")
        attributes |= spelled
        if "globals" in here.co_names:
            found |= dict.fromkeys(sorted(spelled))
        for step in dis.get_instructions(here):
            if step.opname == "MATCH_CLASS":  # which attributes a pattern reads, its class says
                attributes.add("fields")
            elif step.opname == "IMPORT_NAME":
                modules[step.argval] = None
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
                attributes.add(step.argval)
            elif step.opname.startswith("LOAD_") and ("GLOBAL" in step.opname or "NAME" in step.opname):
                found[step.argval] = None
    return Code(
        tuple(found), frozenset(attributes), tuple(modules), bool(_DYNAMIC & (attributes | set(found)))
    )


@lru_cache(maxsize=4096)
def package_of(file: str | None) -> str | None:
    """The installed package that a file is of: this one, Python's, another; ``None`` for a user's own."""
    if not file or file.startswith("<"):
        return None
    file = os.path.abspath(file)
    if file.startswith(_OWN + os.sep):
        return "ppl_ext"
    for base in _INSTALLED:
        if file.startswith(base + os.sep):
            return file[len(base) + 1 :].split(os.sep)[0].removesuffix(".py")
    if file.startswith(_STANDARD + os.sep):
        return "python"
    for name in _CORE:
        module = sys.modules.get(name)
        if (
            module is not None
            and (home := getattr(module, "__file__", None))
            and file.startswith(os.path.dirname(home) + os.sep)
        ):
            return name
    return None


class Walk:
    """All that ``roots`` read from outside: ``edges`` from the identity and part of what is read to its
    value, or its identity.

    :param skip: edges that are not followed.
    """

    def __init__(self, skip: Container[Edge], roots: Iterable[Any]):
        self.edges: dict[Edge, Any] = {}
        self.seen: dict[int, Any] = {}
        self.classes: dict[int, type] = {}  # of objects that the walk met: their attributes are edges, too
        self.countable = True
        self._skip, self._todo, self._depth = skip, deque[Any](), 0
        self._names: set[str] = set()
        self._dynamic = False
        self._by_name: dict[int, tuple[Any, set[Any]]] = {}
        roots = tuple(roots)
        self._own = {
            p for r in roots if (p := _home(r)) is not None and p not in _CORE | {"python", "ppl_ext"}
        }
        try:
            self._follow(roots)
        # a user's object that does not let itself be looked at: no two states of it are the same
        except Exception:
            self.countable = False

    def _follow(self, roots: tuple) -> None:
        for root in roots:
            self.key(root)
        while self._todo or self._named():
            while self._todo:
                self._expand(self._todo.popleft())
            if len(self.edges) > _MOST:
                self.countable = False
                return

    def key(self, x: Any) -> Any:
        """What stands for ``x``: a value, or the identity of something that the walk will look into."""
        kind = type(x)
        sort = SORTS.get(kind) or sort_of(x)
        if sort == "value":
            return kind, x
        if sort == "spelled":
            return kind, repr(x)
        if sort == "array":
            return content_of(self.key, x)
        if sort == "buffer":
            return content_of(self.key, np.frombuffer(x, np.uint8))
        if sort == "scalar":
            return kind, x.tobytes()
        if sort == "method":
            return "method", self.key(x.__func__), self.key(x.__self__)
        if sort == "parts" and self._depth < _DEEP:
            self._depth += 1
            try:
                named = () if self._library(kind) else (self.key(kind),)
                parts = [self.key(p) for p in parts_of(x)]
                return (kind, *named, frozenset(parts) if isinstance(x, set | frozenset) else tuple(parts))
            finally:
                self._depth -= 1
        if id(x) not in self.seen:
            self.seen[id(x)] = x
            if sort == "jax":
                self.countable &= not isinstance(x, jax.core.Tracer)
            elif kind is not types.ModuleType or not self._library(x):
                self._todo.append(x)
        return id(x)

    def _edge(self, owner: Any, part: str, name: Any, value: Any) -> None:
        edge = (id(owner), (part, name))
        if edge not in self._skip:
            self.edges[edge] = self.key(value)

    def _library(self, thing: type | types.ModuleType) -> bool:
        """Whether a class or module is an installed library's."""
        package = _FROM.get(thing) or _from(thing)
        return package != "yours" and package not in self._own

    def _expand(self, x: Any) -> None:
        if isinstance(x, types.FunctionType):
            self._function(x)
        elif isinstance(x, functools.partial):
            self._edge(x, "function", "", x.func)
            for i, value in enumerate(x.args):
                self._edge(x, "argument", i, value)
            for name, value in x.keywords.items():
                self._edge(x, "argument", name, value)
        elif isinstance(x, dict):
            if (id(x), ("keys", "")) not in self._skip:
                self.edges[id(x), ("keys", "")] = tuple(self.key(k) for k in x)
            for name, value in x.items():
                self._edge(x, "item", self.key(name), value)
            self._attributes(x)
        elif isinstance(x, list | deque):
            if (id(x), ("items", "")) not in self._skip:
                self.edges[id(x), ("items", "")] = tuple(self.key(v) for v in x)
            self._attributes(x)
        elif isinstance(x, staticmethod | classmethod):
            self._edge(x, "function", "", x.__func__)
        elif isinstance(x, property):
            self._edge(x, "function", "", x.fget)
        elif isinstance(x, functools.cached_property):
            self._edge(x, "function", "", x.func)
        elif isinstance(x, contextvars.ContextVar):
            self._edge(x, "attribute", "value", x.get(None))
        elif isinstance(x, operator.attrgetter):
            self._names |= {n for path in x.__reduce__()[1] for n in path.split(".")}
        elif isinstance(x, type | types.ModuleType):
            if not self._library(x):
                self._by_name[id(x)] = (x, set())
        else:
            try:
                inner = getattr(x, "__wrapped__", None)  # of jax.jit, functools.cache, NumPyro's handlers
            except Exception:  # a __getattr__ of the user's own that knows no such name
                inner = None
            if callable(inner):
                self._edge(x, "function", "", inner)
            self._attributes(x)

    def _function(self, fn: types.FunctionType) -> None:
        code = fn.__code__
        for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            try:
                self._edge(fn, "closure", name, cell.cell_contents)
            except ValueError:  # not yet filled
                self._edge(fn, "closure", name, None)
        for i, value in enumerate(fn.__defaults__ or ()):
            self._edge(fn, "default", i, value)
        for name, value in (fn.__kwdefaults__ or {}).items():
            self._edge(fn, "default", name, value)
        if fn.__dict__:
            self._by_name[id(fn)] = (fn, set())
        package = package_of(code.co_filename)
        if package is not None and package not in self._own:
            return
        read = names_in(code)
        self._names |= read.attributes
        self._dynamic |= read.dynamic
        for name in read.globals:
            if name in fn.__globals__:
                self._edge(fn, "global", name, fn.__globals__[name])
        for name in read.modules:
            if name in sys.modules:
                self._edge(fn, "module", name, sys.modules[name])

    def _attributes(self, x: Any) -> None:
        kind = type(x)
        classes = [c for c in kind.__mro__ if c is not object]
        own = [c for c in classes if not self._library(c)]
        for c, name in _WRAPPED.items():
            if isinstance(x, c):
                self._edge(x, "attribute", name, getattr(x, name))
        if not own and kind.__module__.partition(".")[0] in ("jax", "jaxlib"):
            return
        if not own and (kind is types.SimpleNamespace or package_of(_file(kind)) == "python"):
            self._by_name[id(x)] = (x, set())
            return
        if own and all(
            c in own or c.__module__ in ("abc", "typing", "builtins", "collections") for c in classes
        ):
            self._by_name[id(x)] = (x, set())
            return
        for name in list(getattr(x, "__dict__", ())):
            self._edge(x, "attribute", name, x.__dict__.get(name))
        for name in _slots(classes):
            self._edge(x, "attribute", name, getattr(x, name, None))
        for c in own:
            self.classes[id(c)] = c
            for name, value in list(vars(c).items()):
                if name not in _NOT_DATA:
                    self._edge(c, "attribute", name, value)

    def _named(self) -> bool:
        """Follow the attributes whose names the code reads; whether there was one that had not been
        followed.
        """
        before = len(self.edges), len(self._todo)
        for x, done in list(self._by_name.values()):
            found = getattr(x, "__dict__", {})
            slots = (
                () if isinstance(x, type | types.ModuleType | types.FunctionType) else _slots(type(x).__mro__)
            )
            # A node of JAX's trees is read by the function that takes it apart.
            whole = not isinstance(x, types.ModuleType) and (
                self._dynamic or not jax.tree_util.all_leaves([x])
            )
            wanted = (set(found) | set(slots)) if whole else self._names
            new = [n for n in (*found, *slots) if n in wanted and n not in done and n not in _NOT_DATA]
            done.update(new)
            for name in new:
                value = found[name] if name in found else getattr(x, name, None)
                self._edge(x, "attribute", name, value)
            if isinstance(x, types.ModuleType | types.FunctionType):
                continue
            for c in x.__mro__ if isinstance(x, type) else type(x).__mro__:
                if c is not object and not self._library(c):
                    self.classes[id(c)] = c
                    for name, value in list(vars(c).items()):
                        read = (
                            name in wanted
                            or name in self._names
                            or _is_implied(name, value, isinstance(x, type))
                        )
                        if read and (c, name) not in done and name not in _NOT_DATA:
                            done.add((c, name))
                            self._edge(c, "attribute", name, value)
        return (len(self.edges), len(self._todo)) != before


def _is_implied(name: str, value: Any, of_class: bool) -> bool:
    """Whether an attribute of a class is read though no code says so: operators, ``with``, ``for``,
    ``__getattr__``, descriptors; what makes an object only where the class itself is at hand."""
    if (
        not (name.startswith("__") and name.endswith("__"))
        or name in _NOT_IMPLIED
        or (name in _OF_MAKING and not of_class)
    ):
        return False
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    return code is not None and code.co_filename != "<string>"  # made by ``dataclass``, it reads every field


def wording(edge: Edge, walk: Walk) -> str:
    """An edge in the user's words."""
    owner, (part, name) = walk.seen.get(edge[0]), edge[1]
    of = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None) or type(owner).__name__
    if isinstance(owner, functools.partial):
        of = getattr(owner.func, "__name__", "partial")
    what = {
        "closure": f"what '{of}' reads as '{name}' from the function around it",
        "default": f"a default of '{of}'",
        "global": f"the global '{name}' that '{of}' reads",
        "module": f"the module '{name}' that '{of}' imports",
        "argument": f"the argument {name!r} in the partial of '{of}'",
        "attribute": f"attribute '{name}' of {of}, which the program reads,",
        "item": f"the item {name[-1]!r} of a dict that the program reads"
        if isinstance(name, tuple)
        else "an item of a dict",
        "items": "a list that the program reads",
        "keys": "a dict that the program reads",
    }
    return what.get(part, f"what '{of}' calls")


_FROM: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


def _from(thing: type | types.ModuleType) -> str:
    """The installed package of a class or module, or "yours"."""
    module = thing if isinstance(thing, types.ModuleType) else sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        built_in = (
            module is not None
            and module.__name__ in sys.builtin_module_names
            and module.__name__ != "__main__"
        )
        package = "python" if built_in else "yours"
    else:
        package = package_of(file) or "yours"
    _FROM[thing] = package
    return package


def _slots(classes: Iterable[type]) -> list[str]:
    found = []
    for c in classes:
        slots = vars(c).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return [n for n in found if n not in _NOT_DATA]


def _file(kind: type) -> str | None:
    return getattr(sys.modules.get(kind.__module__), "__file__", None)


def _home(root: Any) -> str | None:
    """The installed package that a program is of."""
    fn = getattr(root, "__func__", root)
    code = getattr(fn, "__code__", None)
    return package_of(code.co_filename) if code is not None else package_of(_file(type(root)))
