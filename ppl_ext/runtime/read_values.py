"""How what a program reads counts: as a value, by its content, by its parts, or by its identity and what is
read from it.
"""

import dataclasses
import hashlib
import types
import weakref
from array import array
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import equinox as eqx
import jax
import numpy as np
from numpyro.infer.elbo import ELBO

_VALUES = (bool, int, str, bytes, type(None), type(...), type(NotImplemented), range)
_STRUCTURES = tuple | frozenset | set | types.MappingProxyType | eqx.Module | ELBO
SORTS: "weakref.WeakKeyDictionary[type, str]" = weakref.WeakKeyDictionary()


def sort_of(x: Any) -> str:
    """How the objects of a class count."""
    kind = type(x)
    if kind in _VALUES or isinstance(x, Enum):
        sort = "value"
    elif kind in (float, complex, slice):
        sort = "spelled"
    elif isinstance(x, np.ndarray):
        sort = "array"
    elif isinstance(x, bytearray | memoryview | array):
        sort = "buffer"
    elif isinstance(x, np.generic):
        sort = "scalar"
    elif isinstance(x, jax.Array):
        sort = "jax"
    elif kind is types.MethodType:
        sort = "method"
    elif isinstance(x, _STRUCTURES) or hasattr(kind, "to_numpy") or _is_frozen(kind):
        sort = "parts"
    else:
        sort = "object"
    SORTS[kind] = sort
    return sort


def _is_frozen(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def parts_of(x: Any) -> Iterable[Any]:
    """The parts of a value that is fixed in its structure, or that counts by it."""
    if isinstance(x, tuple | frozenset | set):
        return x
    if isinstance(x, types.MappingProxyType):
        return [p for item in x.items() for p in item]
    if isinstance(x, ELBO):
        named = [p for name, value in sorted(vars(x).items()) for p in (name, _sorted(value))]
        return [*named, getattr(type(x), "body", None)]
    if dataclasses.is_dataclass(x):
        return [getattr(x, f.name, None) for f in dataclasses.fields(x)]
    columns, kind = getattr(x, "columns", None), type(x)  # of pandas and its like
    parts = [x.to_numpy()] if columns is None else [p for c in columns for p in (c, x[c].to_numpy())]
    parts += [x.attrs] if hasattr(kind, "attrs") else []
    if hasattr(kind, "coords"):  # of xarray
        return [*parts, *(p for name, c in x.coords.items() for p in (name, c.to_numpy()))]
    return [*parts, x.index] if hasattr(kind, "index") or hasattr(x, "_mgr") else parts


def _sorted(value: Any) -> Any:
    return (
        tuple(sorted(value.items()))
        if isinstance(value, dict) and all(isinstance(k, str) for k in value)
        else value
    )


def content_of(key: Callable[[Any], Any], x: np.ndarray) -> tuple:
    if isinstance(x, np.ma.MaskedArray):
        return "masked", content_of(key, np.asarray(x.data)), content_of(key, np.ma.getmaskarray(x))
    if x.dtype.hasobject:
        return "array", x.shape, tuple(key(v) for v in x.ravel().tolist())
    digest = hashlib.blake2b(
        np.ascontiguousarray(x).view(np.uint8).data if x.size else b"", digest_size=16
    ).digest()
    return "array", x.shape, x.dtype.str, digest
