"""Pictures of results. Each takes axes and returns them; Matplotlib, the extra ``plots``, is loaded when one
is drawn.
"""

from ppl_ext.diagnostics.plots.calibration import plot_calibration
from ppl_ext.diagnostics.plots.elbo import plot_elbo
from ppl_ext.diagnostics.plots.ess import plot_ess
from ppl_ext.diagnostics.plots.forest import plot_forest
from ppl_ext.diagnostics.plots.function_draws import plot_function_draws
from ppl_ext.diagnostics.plots.functions import plot_functions
from ppl_ext.diagnostics.plots.khat import plot_khat
from ppl_ext.diagnostics.plots.smoothing import plot_smoothing

__all__ = [
    "plot_calibration",
    "plot_elbo",
    "plot_ess",
    "plot_forest",
    "plot_function_draws",
    "plot_functions",
    "plot_khat",
    "plot_smoothing",
]
