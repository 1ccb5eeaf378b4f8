"""What goes wrong, in the user's words: each error names the site or argument, what was expected, and what to do.

Every type is also a ``ValueError`` or ``TypeError``, so code that catches those keeps working.
"""

from typing import Any


class PplExtError(Exception):
    """Base of every error this library raises on purpose."""


class ModelError(PplExtError, ValueError):
    """A model, a guide or one of their sites is not what the operation needs."""


class ArgumentError(PplExtError, ValueError):
    """An argument has a value that cannot be used."""


class ArgumentTypeError(PplExtError, TypeError):
    """An argument is the wrong kind of object."""


class StrategyError(PplExtError, ValueError):
    """A gradient strategy cannot serve a site."""


class HandlerError(PplExtError, ValueError):
    """An effect handler is open where it would be ignored or baked in."""


class NonFiniteError(PplExtError, ValueError):
    """A density, loss or gradient stopped being finite. ``result`` holds the last good state of a run that had begun."""

    result: Any = None
