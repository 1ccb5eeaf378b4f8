"""Errors that JAX, NumPyro or NumPy raise while a program runs, in the user's words.

Such an error names shapes and tracers, at a line deep inside a library; here it is given the name of the program and the site at which the
program stood. What the user's own code raises goes through as it is.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import _PYRO_STACK

from ppl_ext.errors import ModelError, ProgramError

_NOT_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_FOREIGN = ("jax", "jaxlib", "numpyro", "numpy", "equinox", "funsor", "optax", "ppl_ext")


@contextmanager
def explained(program: Any, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Say which program failed, at which site, if what it raises is not its own.

    :param where: says where the program stands: "at site 'z'", "after site 'mu'".
    :raises ProgramError: instead of an error of JAX, NumPyro or NumPy.
    """
    try:
        yield
    except Exception as error:
        if not is_foreign(error):
            raise
        what = "The program" if program is None else f"The program '{name_of(program)}'"
        what = getattr(error, "_ppl_ext_where", f"{what} failed {where()}".rstrip())  # an inner program's word goes first
        if isinstance(error, _NOT_CONCRETE) and any(getattr(h, "brings_keys", False) for h in _PYRO_STACK):
            # The expectation that runs the program may know what to do where Python branches on a value, if it sees JAX's own error.
            error._ppl_ext_where = what  # type: ignore[union-attr]
            raise
        raise ProgramError(f"{what}: {in_one_line(error)}{_hint(error)}") from error


def is_foreign(error: BaseException) -> bool:
    """Whether an error was raised by a library below the user's code, and not by that code itself or by us on purpose."""
    if type(error).__module__.split(".")[0] == "ppl_ext" or isinstance(error, Warning):  # a warning that was made an error
        return False
    if type(error).__module__.split(".")[0] in _FOREIGN:
        return True
    # JAX may cut its own frames off the traceback; then they are in the cause.
    if type(error.__cause__).__module__.split(".")[0] in _FOREIGN and error.__cause__ is not None:
        return True
    return _innermost(error.__traceback__).split(".")[0] in _FOREIGN


def _innermost(traceback: TracebackType | None) -> str:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")


def in_one_line(error: BaseException) -> str:
    """Its type and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')}." if lines else type(error).__name__


def _hint(error: BaseException) -> str:
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return (
            " NumPy cannot work on values that JAX traces. If data are indexed there, say by a plate's indices, make them a JAX array: "
            "jnp.asarray(data)[indices]."
        )
    if isinstance(
        error, jax.errors.TracerBoolConversionError | jax.errors.ConcretizationTypeError | jax.errors.TracerIntegerConversionError
    ):
        return (
            " Python's `if`, `for` and sizes need known numbers: use jnp.where, numpyro's cond and scan, or pass sizes as Python integers."
        )
    if isinstance(error, jax.errors.UnexpectedTracerError) and "BatchTracer" in str(error):
        return (
            " If a site is sampled inside jax.vmap, NumPyro's own handlers lose it: wrap the program in ppl_ext.handlers.vmapped, or use "
            "numpyro.plate."
        )
    if "pandas" in str(error):
        return " Pass .to_numpy() of a table of pandas."
    if (site := discrete_site(error)) is not None:
        return (
            f" An automatic guide has continuous sites only. Hide that one, AutoNormal(numpyro.handlers.block(model, hide=['{site}'])), "
            f"and sample '{site}' in a guide function that calls the automatic one too."
        )
    return ""


def discrete_site(error: BaseException) -> str | None:
    """The site that an automatic guide of NumPyro complains of."""
    found = re.search(r"Continuous inference cannot handle discrete sample site '(.*)'", str(error))
    return found[1] if found else None


def name_of(program: Any) -> str:
    """A function's name; of a wrapped one, that of the function inside; else its type's."""
    for _ in range(20):
        name = getattr(program, "__name__", None)
        if isinstance(name, str):
            return name
        inner = next((getattr(program, a) for a in ("fn", "func", "program") if callable(getattr(program, a, None))), None)
        if inner is None or isinstance(program, AutoGuide):
            break
        program = inner
    return type(program).__name__


class InsideError(ModelError):
    """A site is sampled inside a transformation of JAX within its program."""


# Part of the key of every cache of traces: a jitted function that was traced elsewhere, its sites under other handlers, is traced anew.
_here = jax.make_user_context(default_value=False)


def past_inner_jits(run: Callable[[], Any], again: bool = True, checked: bool = True) -> Any:
    """What ``run()`` returns. If a site of it lies inside a ``jax.jit``, it runs again (if it may) with every such ``jit`` left away.

    JAX then unrolls the program's ``jax.lax`` loops too; those of NumPyro and our own stay (:func:`rolled`).

    :param checked: every site met here is checked by :func:`ppl_ext.vmapped.sent_out`, so that no trace with a site in it is ever kept.
    """
    with _here(checked):
        try:
            return run()
        except (InsideError, ProgramError, jax.errors.UnexpectedTracerError) as error:
            other = isinstance(error, ProgramError) and not isinstance(error.__cause__, jax.errors.UnexpectedTracerError)
            if other or not again or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
                raise
        with jax.disable_jit():
            return run()


def rolled(loop: Callable, body: Callable, *args, **kwargs) -> Any:
    """``loop(body, ...)`` as a loop even where ``jit`` is left away, as it goes on to be in the body."""
    disabled = jax.config.jax_disable_jit  # type: ignore[attr-defined]

    def as_outside(*args):
        with jax.disable_jit(disabled):
            return body(*args)

    with jax.disable_jit(False):
        return loop(as_outside, *args, **kwargs)


trace_state = get_opaque_trace_state
