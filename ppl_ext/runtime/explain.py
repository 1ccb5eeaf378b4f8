"""Errors that JAX, NumPyro or NumPy raise while a program runs, in the user's words.

Such an error names shapes and tracers, at a line deep inside a library; here it is given the name of the
program and the site at which the program stood. What the user's own code raises goes through as it is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import jax
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import _PYRO_STACK

from ppl_ext.errors import ArgumentError, ProgramError

NOT_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_FOREIGN = ("jax", "jaxlib", "numpyro", "numpy", "equinox", "funsor", "optax", "ppl_ext")


@contextmanager
def explained(
    program: Any, where: Callable[[], str] = lambda: "", site: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Say which program failed, at which site, if what it raises is not its own.

    :param where: says where the program stands: "at site 'z'", "after site 'mu'".
    :param site: the message of the site in hand, if there is one. An error of shapes is told with those of
        its value and of its law.
    :raises ProgramError: instead of an error of JAX, NumPyro or NumPy. An :class:`ArgumentError` of a law
        keeps its type, with a note of where the program stood.
    """
    try:
        yield
    except Exception as error:
        what = "The program" if program is None else f"The program '{name_of(program)}'"
        if not is_foreign(error):
            if isinstance(error, ArgumentError) and (stands := where()):  # a law is made before its site
                error.add_note(f"{what} stood {stands}.")
            raise
        in_plate = _in_a_plate(error) if site is None else None
        stands = where() if in_plate is None else f"at site '{in_plate['name']}'"
        if not stands and (drawn := getattr(error, "_ppl_ext_drawn", None)) is not None:
            stands = f"at site '{drawn}'"
        # an inner program's word goes first
        what = getattr(error, "_ppl_ext_where", f"{what} failed {stands}".rstrip())
        if isinstance(error, NOT_CONCRETE) and any(getattr(h, "brings_keys", False) for h in _PYRO_STACK):
            # The expectation that runs the program may know what to do where Python branches on a value, if
            # it sees JAX's own error.
            error._ppl_ext_where = what  # type: ignore[union-attr]
            raise
        told = site if in_plate is None else in_plate
        hint = _hint(error) or (_shapes(told) if told is not None and _SHAPES.search(str(error)) else "")
        raise ProgramError(f"{what}: {in_one_line(error)}{hint}") from error


def where_density(name: str) -> str:
    """Where a program stands when the density of a site fails."""
    return f"where the density of site '{name}' is taken"


def is_foreign(error: BaseException) -> bool:
    """Whether an error was raised by a library below the user's code, and not by that code itself or by us on
    purpose.
    """
    # a warning that was made an error
    if type(error).__module__.split(".")[0] == "ppl_ext" or isinstance(error, Warning):
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
    """An error's type and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')}." if lines else f"{type(error).__name__}."


def _hint(error: BaseException) -> str:
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return (
            " NumPy cannot work on values that JAX traces. If data are indexed there, say by a plate's "
            "indices, make them a JAX array: jnp.asarray(data)[indices]."
        )
    if isinstance(
        error,
        jax.errors.TracerBoolConversionError
        | jax.errors.ConcretizationTypeError
        | jax.errors.TracerIntegerConversionError,
    ):
        return (
            " Python's `if`, `for` and sizes need known numbers: use jnp.where, numpyro's cond and scan, or "
            "pass sizes as Python integers."
        )
    if isinstance(error, jax.errors.UnexpectedTracerError) and "BatchTracer" in str(error):
        return (
            " If a site is sampled inside jax.vmap, NumPyro's own handlers lose it: wrap the program in "
            "ppl_ext.handlers.vmapped, or use numpyro.plate."
        )
    if (law := _without_sampler(error)) is not None:
        return (
            f" Nothing can be drawn of {law}: give the site a value, by a guide or "
            "numpyro.handlers.substitute, or another law."
        )
    if "pandas" in str(error):
        return " Pass .to_numpy() of a table of pandas."
    if (site := discrete_site(error)) is not None:
        return (
            " An automatic guide has continuous sites only. Hide that one, "
            f"AutoNormal(numpyro.handlers.block(model, hide=['{site}'])): marked infer={{'enumerate': "
            f"'parallel'}} in the model, '{site}' is summed out; or sample it in a guide function that "
            "calls the automatic one too."
        )
    return ""


def _without_sampler(error: BaseException) -> str | None:
    """The law that was to be drawn from and cannot be, as an improper one."""
    traceback = error.__traceback__ if isinstance(error, NotImplementedError) else None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_qualname == "Distribution.sample" and frame.f_globals.get(
            "__name__", ""
        ).startswith("numpyro.distributions"):
            return type(frame.f_locals["self"]).__name__
        traceback = traceback.tb_next
    return None


_SHAPES = re.compile("broadcast|shape", re.IGNORECASE)


def _in_a_plate(error: BaseException) -> dict[str, Any] | None:
    """The site whose law could not be brought to the size of a plate around it: NumPyro's plate raises before
    the message is sent on.
    """
    traceback, found = error.__traceback__, None
    while traceback is not None:
        frame = traceback.tb_frame
        if (
            frame.f_code.co_qualname == "plate.process_message"
            and frame.f_globals.get("__name__") == "numpyro.primitives"
        ):
            msg = frame.f_locals.get("msg", {})
            found = msg if msg.get("type") == "sample" else found
        traceback = traceback.tb_next
    return found


def _shapes(site: Mapping[str, Any]) -> str:
    """The shapes of a site's value and law, and what to change where they do not fit."""
    fn, value, plates = site["fn"], site.get("value"), {f.name: f for f in site.get("cond_indep_stack", ())}
    batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
    # what plates, to_event and mask make of a law
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    told = f" The law, {type(fn).__name__}, has batch shape {batch} and event shape {event}"
    wrong = {
        name: f for name, f in plates.items() if len(batch) >= -f.dim and batch[f.dim] not in (1, f.size)
    }
    if wrong:
        sizes = " and ".join(f"plate '{name}' has size {f.size} on axis {f.dim}" for name, f in wrong.items())
        return (
            f"{told}, and {sizes}: give the plate the law's size, or count axes that belong to one draw to "
            "the event with .to_event(n)."
        )
    if value is None or not hasattr(value, "shape"):
        return f"{told}."
    shape = tuple(value.shape)
    told += f"; the value has shape {shape}. A value must broadcast with {batch + event}: "
    if event and shape[-len(event) :] != event:
        return (
            f"{told}its last {'axis is' if len(event) == 1 else f'{len(event)} axes are'} one draw, {event}."
        )
    advice = "give the data that shape, or the law's parameters the shape of the data"
    if plates:
        first = next(iter(plates))
        advice += f", and plate '{first}' the data's size, as numpyro.plate('{first}', data.shape[0]) does"
    return f"{told}{advice}."


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
        inner = next(
            (getattr(program, a) for a in ("fn", "func", "program") if callable(getattr(program, a, None))),
            None,
        )
        if inner is None or isinstance(program, AutoGuide):
            break
        program = inner
    return type(program).__name__
