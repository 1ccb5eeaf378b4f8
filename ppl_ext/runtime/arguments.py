"""Checks of arguments at the public edge: what was expected, what came, what to do. Each names the argument,
and costs microseconds.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.elbo import ELBO

from ppl_ext.errors import ArgumentError, ArgumentTypeError


def described(x: Any) -> str:
    """What an object is, in a few words.

    >>> described(np.zeros((2, 3))), described("abc"), described(None)
    ('a float64 array of shape (2, 3)', "'abc'", 'None')
    """
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if isinstance(x, jax.Array | np.ndarray):
        return _with_article(f"{_dtype_name(x)} array of shape {tuple(x.shape)}")
    if hasattr(x, "to_numpy"):
        return f"a {type(x).__module__.split('.')[0]} {type(x).__name__}"
    if x is None or isinstance(x, str | bool | int | float | complex):
        text = repr(x)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return _with_article(type(x).__name__)


def _with_article(words: str) -> str:
    return f"an {words}" if words[0].lower() in "aeio" else f"a {words}"


def _dtype_name(x) -> str:
    return "random-key" if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else str(x.dtype)


def check_program(where: str, program: Any) -> None:
    """``where`` names the call and the argument, as ``"fit: model"``."""
    # an objective of ours can be called, but by another objective
    if not callable(program) or isinstance(program, type | ELBO):
        raise ArgumentTypeError(
            f"{where} must be a NumPyro program (a callable with sample sites), got {described(program)}."
        )


def check_function(where: str, fn: Any) -> None:
    if not callable(fn):
        raise ArgumentTypeError(f"{where} must be a function, got {described(fn)}.")


def check_call(where: str, program: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Whether a program takes these arguments, before it runs."""
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):  # written in C, or says nothing of itself
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(program, "__name__", type(program).__name__)
        raise ArgumentError(
            f"{where} '{name}' takes {signature}, which the arguments given do not fit: {error}."
        ) from None


def check_key(where: str, key: Any) -> None:
    """A single random key, of either kind; a tracer of one is fine."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    wanted = f"{where} must be one random key, such as jax.random.key(0), got {described(key)}."
    if dtype is None or shape is None or not isinstance(key, jax.Array | np.ndarray):
        raise ArgumentTypeError(wanted)
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and dtype != np.uint32:
        raise ArgumentTypeError(wanted)
    if (shape != ()) if typed else (shape not in ((2,), (4,))):
        raise ArgumentError(wanted)


def check_count(where: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{where} must be a positive integer, got {described(value)}.")


def check_flag(where: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise ArgumentTypeError(f"{where} must be True or False, got {described(value)}.")


def check_number(where: str, value: Any, at_least: float = -math.inf) -> None:
    """A real number that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ArgumentTypeError(f"{where} must be a real number, got {described(value)}.")
    if not value >= at_least:
        bound = f" of at least {at_least:g}" if math.isfinite(at_least) else ""
        raise ArgumentError(f"{where} must be a real number{bound}, got {described(value)}.")


def check_mapping(where: str, value: Any, of: str) -> None:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{where} must be a dict {of}, got {described(value)}.")
    for name in value:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{where} must be a dict {of}; its key {name!r} is no string.")


def check_values(where: str, values: Any) -> None:
    """A dict from site names to numbers: arrays, numbers, nested lists of them, or trees of these."""
    check_mapping(where, values, "from site names to arrays")
    for name, value in values.items():
        if not _is_numeric(value):
            raise ArgumentTypeError(
                f"{where}: the value of site '{name}' must be an array of numbers, got {_told_inside(value)}."
            )


def check_array(where: str, value: Any, tables: bool = False) -> None:
    """One array of real numbers, or what becomes one: a number, or a regular list of numbers. A tracer is
    fine.

    :param tables: so is a column of a table of pandas.
    """
    value = (
        value.to_numpy() if tables and hasattr(value, "to_numpy") and not isinstance(value, type) else value
    )
    array = hasattr(value, "dtype") or isinstance(value, bool | int | float | list | tuple)
    if (
        not array
        or not _is_numeric(value)
        or (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.complexfloating))
    ):
        raise ArgumentTypeError(f"{where} must be an array of numbers, got {_told_inside(value)}.")


def _is_numeric(value: Any) -> bool:
    if isinstance(value, type):  # a class has its objects' attributes, unbound
        return False
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return not hasattr(value, "to_numpy") and (
            jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool
        )
    if isinstance(value, bool | int | float | complex):
        return True
    if isinstance(value, list | tuple):
        try:
            return np.asarray(value).dtype.kind in "biufc"
        except Exception:  # ragged, or a list of tracers: look inside
            pass
    leaves = jax.tree.leaves(value, is_leaf=lambda x: x is None)
    return (
        bool(leaves)
        and all(leaf is not value and _is_numeric(leaf) for leaf in leaves)
        and not isinstance(value, list | tuple)
    )


def _told_inside(value: Any) -> str:
    return (
        described(value)
        if not isinstance(value, list | tuple)
        else f"a {type(value).__name__} that is no regular array of numbers"
    )


def check_data(where: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Arguments of a program must be what JAX can trace; tables of pandas and arrays of objects are not, and
    fail far from here.
    """
    for which, value in [
        *((f"argument {i}", a) for i, a in enumerate(args)),
        *((f"argument '{k}'", v) for k, v in kwargs.items()),
    ]:
        for leaf in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "to_numpy")):
            if hasattr(leaf, "to_numpy"):
                raise ArgumentTypeError(
                    f"{where} {which} is {described(leaf)}, which JAX cannot trace; pass .to_numpy() instead."
                )
            if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "biufcV":
                raise ArgumentTypeError(
                    f"{where} {which} is {described(leaf)}, which JAX cannot trace; pass an array of numbers."
                )


def check_positive(where: str, value: Any) -> None:
    check_number(where, value)
    if not 0.0 < value < float("inf"):
        raise ArgumentError(f"{where} must be positive and finite, got {described(value)}.")
