"""What goes wrong, in the user's words: each error names the site or argument, what was expected, and what to
do.

Every type is also a ``ValueError`` or ``TypeError`` (a missing extra an ``ImportError``, a lost process a
``RuntimeError``), so code that catches those keeps working.
"""

from typing import Any


class PplExtError(Exception):
    """Base of every error this library raises on purpose."""


class ModelError(PplExtError, ValueError):
    """A model, a guide or one of their sites is not what the operation needs."""


class ProgramError(ModelError):
    """A program failed while it ran, with an error of JAX, NumPyro or NumPy: its cause."""


class ArgumentError(PplExtError, ValueError):
    """An argument has a value that cannot be used.

    >>> from ppl_ext.objectives import ELBO
    >>> try:
    ...     ELBO(num_particles=0)
    ... except ArgumentError as error:  # or ValueError
    ...     print(error)
    ELBO(num_particles=...) must be a positive integer, got 0.
    """


class ArgumentTypeError(PplExtError, TypeError):
    """An argument is the wrong kind of object."""


class StrategyError(PplExtError, ValueError):
    """A gradient strategy cannot serve a site.

    >>> import numpyro.distributions as dist
    >>> from ppl_ext.gradients import Reparameterize
    >>> Reparameterize().check("z", dist.Bernoulli(0.5))
    Traceback (most recent call last):
    ppl_ext.errors.StrategyError: Reparameterize() cannot serve site 'z' (BernoulliProbs). Strategies ...
    """


class DirectionError(PplExtError, ValueError):
    """An estimated density errs to the wrong side, so that what is computed from it would not be a bound."""


class HandlerError(PplExtError, ValueError):
    """An effect handler is open where it would be ignored or baked in."""


class NonFiniteError(PplExtError, ValueError):
    """A density, loss or gradient stopped being finite. ``result`` holds the last good state of a run that
    had begun.
    """

    result: Any = None


class ProcessError(PplExtError, RuntimeError):
    """Another process of a run over several is gone. The message says how to go on."""


class MissingExtraError(PplExtError, ImportError):
    """An optional dependency is not installed. The message names the extra that brings it."""
