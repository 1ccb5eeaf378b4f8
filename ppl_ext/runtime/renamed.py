"""Public names that have changed: the old ones work for one release, and say the new one."""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


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
