"""Functional priors: say what functions a model should produce, tune the prior of its sites until its draws match.

================================ ==========================================================================================
``nngp_kernel``                  covariance of an infinitely wide network
================================ ==========================================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_ext.priors.nngp import nngp_kernel

# By module, so that nobody pays for importing what is not used.
_NAMES = {
    "nngp": ("nngp_kernel",),
}

__all__ = [
    "nngp_kernel",
]


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"ppl_ext.priors.{module}"), name)
    raise AttributeError(f"module 'ppl_ext.priors' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
