"""Public names and arguments that have changed: the old ones work for one release, and say the new one."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ppl_ext.errors import ArgumentError

F = TypeVar("F", bound=Callable)


def old_names(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that knows its old names.

    :param names: from old to new.

    >>> import warnings, ppl_ext.gradients
    >>> with warnings.catch_warnings(action="ignore"):
    ...     ppl_ext.gradients.Learned is ppl_ext.gradients.LearnedBaseline
    True
    """

    def named(name: str) -> Any:
        if name in names:
            new = names[name]
            warnings.warn(
                f"{package}.{name} is called {package}.{new} now; the old name goes with the next release.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(sys.modules[package], new)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return named


def old_arguments(**names: str) -> Callable[[F], F]:
    """A function, or ``__init__``, that takes arguments by their old names too.

    :param names: from old to new.
    :raises ArgumentError: by the function, if it is given both.

    >>> @old_arguments(optimizer="optim")
    ... def climb(optim):
    ...     return optim
    >>> with warnings.catch_warnings(action="ignore"):
    ...     climb(optimizer=3.0)
    3.0
    """

    def wrap(fn: F) -> F:
        @functools.wraps(fn)
        def taken(*args, **kwargs):
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise ArgumentError(f"{fn.__qualname__}: {old} is called {new} now; give it once.")
                    warnings.warn(
                        f"{fn.__qualname__}: {old}= is called {new}= now; the old name goes with the next "
                        "release.",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    kwargs[new] = kwargs.pop(old)
            return fn(*args, **kwargs)

        return taken  # type: ignore[return-value]

    return wrap
