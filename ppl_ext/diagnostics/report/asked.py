"""A result is asked for its report, with the options that it takes and no others."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import described


def another(result: Any, options: Mapping[str, Any]) -> Any:
    """The report of a result that makes its own, or of several that make one together (a dict by label, or a
    list, of what has ``several_to_arviz``); options that are None or False are as good as not given.

    :raises ArgumentError: for an option that this result does not take, naming it and those that it takes; or
        if one that it needs is missing.
    :raises ArgumentTypeError: if this is no result.

    >>> class Found:
    ...     def to_arviz(self, num_samples=1000):
    ...         return f"{num_samples} draws"
    >>> another(Found(), {"num_samples": 3, "inputs": None})
    '3 draws'
    >>> try:
    ...     another(Found(), {"inputs": 3})
    ... except ArgumentError as error:
    ...     print(error)
    to_arviz: the report of a Found has no option 'inputs'; it takes 'num_samples'.
    """
    given = {name: x for name, x in options.items() if x is not None and x is not False}
    if (together := _together(result)) is not None:
        refuse_unknown(f"to_arviz: the report of a {type(result).__name__} of results", given, ())
        return together(result)
    if isinstance(result, type) or not callable(getattr(result, "to_arviz", None)):
        raise ArgumentTypeError(
            "to_arviz: result must be a Fit, a numpyro MCMC or an SVIRunResult, or a result that has a "
            f"to_arviz of its own, got {described(result)}."
        )
    kind, parameters = type(result).__name__, inspect.signature(result.to_arviz).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        refuse_unknown(f"to_arviz: the report of a {kind}", given, [p.name for p in named])
    if missing := [p.name for p in named if p.default is p.empty and p.name not in given]:
        needed = ", ".join(f"{name}=" for name in missing)
        raise ArgumentError(f"to_arviz: the report of a {kind} needs {needed}.")
    return result.to_arviz(**given)


def refuse_unknown(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """:raises ArgumentError: if an option of what is asked for is none of those known."""
    known = list(known)
    if unknown := [name for name in options if name not in known]:
        raise ArgumentError(
            f"{what} has no option {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(map(repr, known)) or 'none'}."
        )


def _together(results: Any) -> Callable | None:
    """How results of one kind make one report."""
    if not isinstance(results, Mapping | list) or hasattr(results, "to_arviz"):
        return None
    kinds = {type(x) for x in (results.values() if isinstance(results, Mapping) else results)}
    return getattr(kinds.pop(), "several_to_arviz", None) if len(kinds) == 1 else None
