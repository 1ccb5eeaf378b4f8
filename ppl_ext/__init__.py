"""Inference for NumPyro programs: effect handlers and program transformations that compose."""

from importlib import import_module
from typing import TYPE_CHECKING

from ppl_ext.densities.log_density import LogDensity, log_mean_exp, lower_bound, per_element, upper_bound
from ppl_ext.expectations.expectation import expectation

# Imported here and not lazily: loading the module ppl_ext.expectation would otherwise hide the function of
# that name.
from ppl_ext.expectations.objective import carried, objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.program import Draw, Program, log_density, simulate
from ppl_ext.runtime.results import Result

if TYPE_CHECKING:
    from ppl_ext import (
        algorithms,
        designs,
        diagnostics,
        errors,
        gradients,
        handlers,
        infer,
        meta,
        objectives,
        priors,
        scores,
        smoothing,
        transport,
    )
    from ppl_ext.algorithms import marginal, normalize
    from ppl_ext.result import predict, to_arviz

__version__ = "0.2.0"

__all__ = [
    "Draw",
    "LogDensity",
    "Program",
    "Result",
    "algorithms",
    "carried",
    "designs",
    "diagnostics",
    "errors",
    "expectation",
    "gradients",
    "handlers",
    "infer",
    "log_density",
    "log_mean_exp",
    "lower_bound",
    "marginal",
    "meta",
    "normalize",
    "objective",
    "objectives",
    "per_element",
    "predict",
    "priors",
    "replicate",
    "scores",
    "simulate",
    "smoothing",
    "to_arviz",
    "transport",
    "upper_bound",
]


def __getattr__(name: str):
    if name in ("marginal", "normalize"):
        return getattr(import_module("ppl_ext.algorithms"), name)
    if name in ("predict", "to_arviz"):  # ArviZ takes seconds to import
        return getattr(import_module("ppl_ext.result"), name)
    if name in __all__:
        return import_module(f"ppl_ext.{name}")
    raise AttributeError(f"module 'ppl_ext' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
