"""Effect handlers, one a file: immutable values around a program (see :mod:`ppl_ext.handlers.handler`)."""

from ppl_ext.handlers.detach import detach
from ppl_ext.handlers.fixed_support import fixed_support
from ppl_ext.handlers.gradient import gradient
from ppl_ext.handlers.handler import Handler
from ppl_ext.handlers.perturb import perturb
from ppl_ext.handlers.reparameterized import reparameterized
from ppl_ext.handlers.unobserved import unobserved
from ppl_ext.handlers.vmapped import vmapped

__all__ = [
    "Handler",
    "detach",
    "fixed_support",
    "gradient",
    "perturb",
    "reparameterized",
    "unobserved",
    "vmapped",
]
