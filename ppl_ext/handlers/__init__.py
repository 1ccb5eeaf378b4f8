"""Effect handlers, one a file: immutable values around a program (see :mod:`ppl_ext.handlers.handler`)."""

from importlib import import_module
from typing import TYPE_CHECKING

from ppl_ext.handlers.detach import detach
from ppl_ext.handlers.fixed_support import fixed_support
from ppl_ext.handlers.gradient import gradient
from ppl_ext.handlers.handler import Handler
from ppl_ext.handlers.reparameterized import reparameterized
from ppl_ext.handlers.unobserved import unobserved
from ppl_ext.handlers.vmapped import vmapped

if TYPE_CHECKING:
    from ppl_ext.handlers.noise_on_data import perturb
    from ppl_ext.handlers.subsampling import subsample

__all__ = [
    "Handler",
    "detach",
    "fixed_support",
    "gradient",
    "perturb",
    "reparameterized",
    "subsample",
    "unobserved",
    "vmapped",
]


def __getattr__(name: str):
    if name == "perturb":  # few programs need it
        return import_module("ppl_ext.handlers.noise_on_data").perturb
    if name == "subsample":
        return import_module("ppl_ext.handlers.subsampling").subsample
    raise AttributeError(f"module 'ppl_ext.handlers' has no attribute '{name}'")
