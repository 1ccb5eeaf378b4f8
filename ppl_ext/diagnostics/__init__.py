"""What is wrong with a fit: importance weights, calibration, log likelihoods that sum discrete sites out, and
pictures of it all.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ppl_ext.diagnostics.likelihood import log_likelihood
from ppl_ext.diagnostics.psis import PSIS, importance_ess, pareto_k_threshold, psis
from ppl_ext.diagnostics.verdicts.verdict import verdict
from ppl_ext.runtime.verdict import Reason, Verdict, judged

if TYPE_CHECKING:
    from ppl_ext.diagnostics.calibration.calibrate import Calibration, calibrate
    from ppl_ext.diagnostics.capacity.collapse import Collapse, collapse
    from ppl_ext.diagnostics.capacity.units import Units
    from ppl_ext.diagnostics.diverse import diverse_subset
    from ppl_ext.diagnostics.forward_validation import LeaveFutureOut, leave_future_out
    from ppl_ext.diagnostics.leave_one_out import loo
    from ppl_ext.diagnostics.plots import (
        plot_calibration,
        plot_elbo,
        plot_ess,
        plot_forest,
        plot_function_draws,
        plot_functions,
        plot_khat,
        plot_smoothing,
    )
    from ppl_ext.diagnostics.regimes import WeightRegime, weight_regime

__all__ = [
    "Calibration",
    "Collapse",
    "LeaveFutureOut",
    "PSIS",
    "Reason",
    "Units",
    "Verdict",
    "WeightRegime",
    "calibrate",
    "collapse",
    "diverse_subset",
    "importance_ess",
    "judged",
    "leave_future_out",
    "log_likelihood",
    "loo",
    "pareto_k_threshold",
    "plot_calibration",
    "plot_elbo",
    "plot_ess",
    "plot_forest",
    "plot_function_draws",
    "plot_functions",
    "plot_khat",
    "plot_smoothing",
    "psis",
    "verdict",
    "weight_regime",
]


# By module: a fit needs none of them.
_ASKED_FOR = {
    "calibration.calibrate": ("Calibration", "calibrate"),
    "capacity.collapse": ("Collapse", "collapse"),
    "capacity.units": ("Units",),
    "diverse": ("diverse_subset",),
    "forward_validation": ("LeaveFutureOut", "leave_future_out"),
    "leave_one_out": ("loo",),
    "plots": tuple(name for name in __all__ if name.startswith("plot_")),
    "regimes": ("WeightRegime", "weight_regime"),
}


def __getattr__(name: str):
    for module, names in _ASKED_FOR.items():
        if name in names:
            return getattr(import_module(f"ppl_ext.diagnostics.{module}"), name)
    raise AttributeError(f"module 'ppl_ext.diagnostics' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
