"""What a handler is here: an immutable value around a program, which opens a fresh NumPyro Messenger at each
call.

A Messenger opened with ``with`` lives on a global stack that a JIT cache cannot see. A value can be passed
through ``jit``, ``vmap`` and ``grad`` instead: its arrays are leaves, and it retraces only when its structure
changes.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
from numpyro.primitives import Messenger

from ppl_ext.runtime.arguments import check_program


class Handler(eqx.Module):
    """A program under an effect; it is again a program, and nests with NumPyro's handlers in both directions.

    :raises ArgumentTypeError: if ``program`` is no program.

    >>> import numpyro
    >>> from numpyro.primitives import Messenger
    >>> class Doubled(Messenger):
    ...     def postprocess_message(self, msg):
    ...         msg["value"] = 2 * msg["value"] if msg["type"] == "param" else msg["value"]
    >>> class doubled(Handler):
    ...     def messenger(self):
    ...         return Doubled()
    >>> doubled(doubled(lambda: numpyro.param("a", 1.0)))()
    4.0
    """

    program: Callable

    def __check_init__(self):
        check_program(f"{type(self).__name__}: program", self.program)

    @abstractmethod
    def messenger(self) -> Messenger:
        """A fresh Messenger with this handler's effect."""

    def __call__(self, *args, **kwargs):
        with self.messenger():
            return self.program(*args, **kwargs)
