"""Which arguments of a program are traced, and which are constants of the compilation: one rule for every
verb.

Arrays and real numbers are traced, so that other values do not compile again. Everything else (sizes, flags,
strings, functions, objects, arrays of strings) is a constant, told apart by its content. If Python needs the
value of a traced argument (a size read off data by ``int(np.max(labels)) + 1``, ``if rate == 0.0``), as few
of them as will do become constants too, as they all are in NumPyro's ``SVI.run``.
"""

import dataclasses
import functools
import hashlib
import itertools
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentTypeError, ProgramError
from ppl_ext.runtime.arguments import check_data, described
from ppl_ext.runtime.explain import is_foreign
from ppl_ext.runtime.outside import Outside

_DEEP = 16  # levels of objects that are looked into
# traced arguments that are tried, one by one, whether they may stay so; of more, the smallest are held
_TRIALS = 16
_NUMERIC = "biufcV"
# how errors of JAX, and Python's about its objects, tell that a value is not known
_WANTED = ("Tracer", "concrete", "Traced<")


class Constants:
    """The arguments that are not traced, and where they stand: a static argument of a ``jit``, equal where
    their contents are.

    >>> import dataclasses
    >>> Config = dataclasses.make_dataclass("Config", ["width"])  # has no hash
    >>> split((jnp.ones(2), Config(3)), {})[1] == split((jnp.zeros(2), Config(3)), {})[1]
    True
    >>> split((Config(3),), {})[1] == split((Config(4),), {})[1]
    False
    """

    def __init__(self, structure: Any, leaves: list, held: frozenset[int]):
        self.structure, self.leaves, self.held = structure, leaves, held
        self._key = (
            held,
            _hashable(structure),
            tuple([(i, content(x)) for i, x in enumerate(leaves) if x is not None]),
        )
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Constants) and self._hash == other._hash and self._key == other._key
        )

    def __hash__(self) -> int:
        return self._hash


def split(
    args: tuple, kwargs: Mapping[str, Any], held: frozenset[int] = frozenset(), numbers: bool = False
) -> tuple[list, Constants]:
    """What is traced, with None where nothing is, and the rest.

    :param held: places of arguments (among the leaves) that are constants though they could be traced.
    :param numbers: integers and flags of Python are traced too, as what a stream observes may be one.

    >>> data, constants = split((jnp.ones(2), 3), {"rate": 0.5})
    >>> [x is None for x in data], join(data, constants)[1]
    ([False, True, False], {'rate': 0.5})
    """
    return _split(*jax.tree.flatten((args, kwargs)), held, numbers)


def _split(leaves: list, structure: Any, held: frozenset[int], numbers: bool) -> tuple[list, Constants]:
    traced = [i not in held and _traceable(x, numbers) for i, x in enumerate(leaves)]
    data = [x if t else None for x, t in zip(leaves, traced, strict=True)]
    return data, Constants(structure, [None if t else x for x, t in zip(leaves, traced, strict=True)], held)


def join(data: list, constants: Constants) -> tuple[tuple, dict]:
    """The arguments and the keywords that :func:`split` took apart."""
    return jax.tree.unflatten(
        constants.structure, [c if d is None else d for d, c in zip(data, constants.leaves, strict=True)]
    )


_ALWAYS: set[type] = {float}
"""Types that are traced whatever the value; a stream's step has no time to ask anew."""


def _traceable(x: Any, numbers: bool) -> bool:
    kind = type(x)
    if kind in _ALWAYS:
        return True
    if isinstance(x, np.ndarray):
        return x.dtype.kind in _NUMERIC
    if isinstance(x, jax.Array | float | np.floating):
        _ALWAYS.add(kind)
        return True
    return numbers and isinstance(x, int | complex | np.generic)


_NONE: frozenset[int] = frozenset()
_plans: "WeakKeyDictionary[Outside, dict]" = WeakKeyDictionary()


def taken(
    outside: Outside,
    run: Callable[[list, Constants], Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    look: Callable[[list, Constants], Any] | None = None,
    numbers: bool = False,
    fixed: int = 0,
) -> Any:
    """``run(data, constants)`` with as little held as the program allows; what that is is remembered with its
    outside.

    :param run: compiles a program's run, and runs it.
    :param look: only traces it, to find out what must be held; ``run`` by default.
    :param numbers: see :func:`split`; then only numbers of Python are ever held, since the rest is what the
        stream observes.
    :param fixed: so many of the first leaves are traced whatever comes: there is a gradient by them.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    plans = _plans.setdefault(outside, {})
    # most programs need nothing to be held
    held = plans.get(_kind(leaves, structure, numbers), _NONE) if plans else _NONE
    try:
        return run(*_split(leaves, structure, held, numbers))
    except Exception as error:
        may = {
            i
            for i, x in enumerate(leaves)
            if i >= fixed and i not in held and _traceable(x, numbers) and _known(x)
        }
        if numbers:
            may = {i for i in may if not hasattr(leaves[i], "dtype")}
        if not may or not wants_values(error):
            raise
        find = _fewest if numbers else _least
        held = find(look or run, lambda at: _split(leaves, structure, at, numbers), held, may, leaves, error)
        plans[_kind(leaves, structure, numbers)] = held
    return run(*_split(leaves, structure, held, numbers))


def _kind(leaves: list, structure: Any, numbers: bool) -> tuple:
    return (
        _hashable(structure),
        numbers,
        tuple(np.shape(x) if hasattr(x, "dtype") else type(x) for x in leaves),
    )


def _least(
    look: Callable, parts: Callable, held: frozenset[int], may: set[int], leaves: list, error: Exception
) -> frozenset[int]:
    """A set of arguments to hold of which none can be left out, the largest arrays tried first.

    :raises Exception: the first error, if it does not help to hold them all: then it is another value that
        Python asks for.
    """
    held = held | may
    try:
        look(*parts(held))
    except Exception as other:
        raise error if wants_values(other, error) else other from None
    for i in sorted(may, key=lambda i: -np.size(leaves[i]))[:_TRIALS]:
        try:
            look(*parts(held - {i}))
        except Exception:
            continue
        held -= {i}
    return held


def _fewest(
    look: Callable, parts: Callable, held: frozenset[int], may: set[int], leaves: list, error: Exception
) -> frozenset[int]:
    """Hold for a stream, where what is observed must not be held: the fewest that will do, flags and
    integers before real numbers.
    """
    order = sorted(may, key=lambda i: (not isinstance(leaves[i], bool), isinstance(leaves[i], float)))
    subsets = (frozenset(some) for n in range(1, len(order) + 1) for some in itertools.combinations(order, n))
    for some in itertools.islice(subsets, 2 * _TRIALS):
        try:
            look(*parts(held | some))
        except Exception:
            continue
        return held | some
    raise error


def wants_values(error: BaseException | None, before: BaseException | None = None) -> bool:
    """Whether something failed because Python asked for a number that was traced.

    :param before: an error that was being dealt with meanwhile, and is none of its causes.
    """
    while error is not None and error is not before:
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError) and not isinstance(
            error, jax.errors.UnexpectedTracerError
        ):
            return True
        if isinstance(error, TypeError | ValueError | IndexError | KeyError | AttributeError) and any(
            w in str(error) for w in _WANTED
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _known(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


class compiled:
    """``jax.jit`` of a function that runs a program on arguments of its, among others:
    ``fn(outside, ..., args, kwargs, ...)``.

    :param at: the place of ``args``; ``kwargs`` come next, and the first argument is the program's outside.
    :param static_argnums: places of other constants.
    :param donate: the place of an argument whose memory may be reused.
    :param slices: what is made of the traced arguments of one time of a stream, where an integer or a flag is
        data like any other.
    """

    def __init__(
        self,
        fn: Callable,
        at: int,
        static_argnums: tuple[int, ...] = (),
        donate: int | None = None,
        slices: Callable | None = None,
    ):
        self._fn, self._at, self._slices, self._plain = fn, at, slices, slices is not None
        places = [
            2 + (i if i < at else i - 2) for i in (*static_argnums, *(() if donate is None else (donate,)))
        ]
        given = () if donate is None else (places[-1],)
        self._jit = jax.jit(
            self._joined, static_argnums=(0, 2, *places[: len(static_argnums)]), donate_argnums=given
        )
        if slices is not None:
            self._as_it_is = jax.jit(
                self._sliced,
                static_argnums=(0, *static_argnums),
                donate_argnums=() if donate is None else (donate,),
            )

    def __call__(self, outside: Outside, *rest):
        given = (outside, *rest)
        args, kwargs, others = (
            given[self._at],
            given[self._at + 1],
            (*given[: self._at], *given[self._at + 2 :]),
        )
        # A stream steps too often for more than this.
        if self._plain and all(_traceable(x, True) for x in jax.tree.leaves((args, kwargs))):
            try:
                return self._as_it_is(*given)
            except Exception as error:
                if not wants_values(error):
                    raise
                self._plain = False

        def look(data, constants):
            return self._jit.eval_shape(constants, data, *others)

        return taken(
            outside,
            lambda data, constants: self._jit(constants, data, *others),
            args,
            kwargs,
            look,
            self._slices is not None,
        )

    def arguments(self, outside: Outside, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
        """Those that the function is called with."""
        return taken(outside, self._arguments, args, kwargs, numbers=self._slices is not None)

    def _arguments(self, data: list, constants: Constants) -> tuple[tuple, dict]:
        return join(data if self._slices is None else self._slices(data), constants)

    def _joined(self, constants: Constants, data: list, *others):
        return self._fn(*others[: self._at], *self._arguments(data, constants), *others[self._at :])

    def _sliced(self, *given):
        assert self._slices is not None
        return self._fn(
            *given[: self._at], *self._slices(given[self._at : self._at + 2]), *given[self._at + 2 :]
        )


class odd_data_blamed:
    """Where a program fails in a library, what is no number among its arguments is a likely cause, and told.

    :raises ArgumentTypeError: for a table of pandas or an array of objects, which few programs can read; for
        a series of pandas at once: as a constant it would compile anew for each that comes, and its
        ``to_numpy()`` is data.
    """

    def __init__(self, where: str, args: tuple, kwargs: Mapping[str, Any]):
        self.where, self.args, self.kwargs = where, args, kwargs

    def __enter__(self) -> None:
        for leaf in jax.tree.leaves((self.args, self.kwargs)):
            if type(leaf) not in _ALWAYS and hasattr(leaf, "to_numpy") and np.ndim(leaf) == 1:
                check_data(self.where, self.args, self.kwargs)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, Exception) or (
            not isinstance(error, ProgramError | Warning) and not is_foreign(error)
        ):
            return
        try:
            check_data(self.where, self.args, self.kwargs)
        except ArgumentTypeError as blame:
            raise blame from error
        if (odd := _odd(self.args, self.kwargs, str(error))) is not None:
            raise ProgramError(f"{error} ({self.where} {odd}, which is no array.)") from error


def _odd(args: tuple, kwargs: Mapping[str, Any], error: str) -> str | None:
    """The first argument that is neither an array nor a likely setting; a string is one, unless the error
    speaks of strings.
    """
    settings = callable if "'str'" in error else lambda x: isinstance(x, str) or callable(x)
    for which, value in [
        *((f"argument {i}", a) for i, a in enumerate(args)),
        *((f"argument '{k}'", v) for k, v in kwargs.items()),
    ]:
        for leaf in jax.tree.leaves(value):
            if not _traceable(leaf, True) and not settings(leaf) and not dataclasses.is_dataclass(leaf):
                return f"{which} is {described(leaf)}"
    return None


class Same:
    """An object that counts by identity, kept alive for as long as it is part of a key."""

    def __init__(self, x: Any):
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


def content(x: Any, _within: tuple[int, ...] = ()) -> Any:
    """What stands for a constant: two of the same type and content are the same constant, though one of them
    is new.

    Arrays count by their bytes; dataclasses, containers and objects without an order of their own by their
    parts; functions, classes and what cannot be looked into by identity.
    """
    kind = type(x)
    if x is None or kind in (bool, int, str, bytes) or isinstance(x, Enum):
        return kind, x
    if kind in (float, complex):
        return kind, repr(x)
    if isinstance(x, np.ndarray | np.generic | jax.Array) and _known(x):
        return _of_array(x)
    if (
        isinstance(
            x, type | types.FunctionType | types.BuiltinFunctionType | types.ModuleType | functools.partial
        )
        or len(_within) > _DEEP
    ):
        return Same(x)
    if id(x) in _within:
        return "within", _within.index(id(x))
    within = (*_within, id(x))
    if hasattr(kind, "to_numpy"):  # a table of pandas: its values, and the labels of its axes
        return kind, _of_array(np.asarray(x)), tuple(_of_array(np.asarray(a)) for a in getattr(x, "axes", ()))
    if isinstance(x, Mapping):
        return kind, tuple((_hashable(k), content(v, within)) for k, v in x.items())
    if isinstance(x, list | tuple):
        return kind, tuple(content(v, within) for v in x)
    if isinstance(x, set | frozenset):
        return kind, frozenset(content(v, within) for v in x)
    if dataclasses.is_dataclass(x):
        return kind, tuple(content(getattr(x, f.name, None), within) for f in dataclasses.fields(x))
    if getattr(kind, "__hash__", None) not in (None, object.__hash__):
        return _hashable(x)
    if isinstance(getattr(x, "__dict__", None), dict) and not hasattr(kind, "__slots__"):
        return kind, tuple((name, content(v, within)) for name, v in vars(x).items())
    return Same(x)


def _of_array(x: Any) -> tuple:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return "key", _of_array(jax.random.key_data(x))
    array = np.asarray(x)
    held = repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
    return (
        type(x) if isinstance(x, np.generic) else "array",
        array.shape,
        array.dtype.str,
        hashlib.sha256(held).digest(),
    )


def _hashable(x: Any) -> Any:
    try:
        hash(x)
    except TypeError:  # what it shows of itself may leave parts out
        return Same(x)
    return x
