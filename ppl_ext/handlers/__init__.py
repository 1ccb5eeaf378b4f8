"""Effect handlers, one a file: immutable values around a program (see :mod:`ppl_ext.handlers.handler`)."""

from ppl_ext.handlers.detach import detach
from ppl_ext.handlers.gradient import gradient
from ppl_ext.handlers.handler import Handler

__all__ = ["Handler", "detach", "gradient"]
