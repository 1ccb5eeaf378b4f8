"""What every result does, whatever made it: a report, a summary in words, and a look at it in a notebook."""

from html import escape
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ppl_ext.runtime.verdict import Verdict

NUM_SAMPLES = 1000
"""Draws (a chain) that a result makes where nobody says how many."""


@runtime_checkable
class Result(Protocol):
    """What this library returns: it reports itself to ArviZ, and says in words whether to believe it.

    ``to_arviz(...)`` gives the ArviZ report, or refuses with the reason where one would mislead;
    ``print_summary()`` prints a table and a verdict. ``repr`` is one short line, and a notebook shows the
    summary, without drawing anything for it. :func:`ppl_ext.to_arviz` takes every object of this kind, one's
    own included.

    >>> class Coin:
    ...     def to_arviz(self):
    ...         return {"posterior": {"p": 0.5}}
    ...     def print_summary(self):
    ...         print("p = 0.5, by symmetry")
    >>> isinstance(Coin(), Result), isinstance(0.5, Result)
    (True, False)
    """

    def to_arviz(self, *args: Any, **options: Any) -> Any: ...

    def print_summary(self, *args: Any, **options: Any) -> None: ...


class Summarised:
    """A result whose summary and verdict cost nothing to make: they are printed, and shown in notebooks."""

    def summary(self) -> str:
        """The summary as text."""
        raise NotImplementedError

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        raise NotImplementedError

    def print_summary(self) -> None:
        """Print a table of what was found, in words what is known of its quality, and a verdict."""
        print(f"{self.summary()}\n{self.verdict()}")

    def _repr_html_(self) -> str:
        return as_html(f"{self.summary()}\n{self.verdict()}")


def as_html(text: str) -> str:
    """Text as a notebook shows it.

    >>> as_html("p < 0.01")
    '<pre>p &lt; 0.01</pre>'
    """
    return f"<pre>{escape(text)}</pre>"


def number(x: Any) -> str:
    """A number in a ``repr``, which must not fail: of an array its shape, of what is traced that it is.

    >>> number(2.0), number([1.0, 2.0])
    ('2', 'array (2,)')
    """
    if shape := np.shape(x):
        return f"array {shape}"
    try:
        return f"{float(x):.4g}"
    except Exception:  # JAX's errors for tracers share no public base
        return "traced"
