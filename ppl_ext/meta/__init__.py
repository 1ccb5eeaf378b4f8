"""Normal-Inverse-Wishart meta-learning: any episode model lifted into a hierarchy over a stream of
episodes.
"""

from ppl_ext.meta.adapt import Adapted
from ppl_ext.meta.arviz_report import adapted_to_arviz
from ppl_ext.meta.distributions.niw import NIW
from ppl_ext.meta.fitted import MetaFit
from ppl_ext.meta.head import head
from ppl_ext.meta.kinds import Kinds, kinds
from ppl_ext.meta.lift import lift
from ppl_ext.meta.modes import mass_elsewhere
from ppl_ext.meta.plots import plot_episodes
from ppl_ext.meta.scores import Scores, evaluate, expected_calibration_error
from ppl_ext.meta.solvers.laplace import ExactLinearGaussian, LaplaceGGN
from ppl_ext.meta.solvers.local import LocalSolver, Quadratic
from ppl_ext.meta.solvers.sgld import LangevinLocal
from ppl_ext.meta.solvers.variational import VariationalLocal
from ppl_ext.meta.streams.arriving import ArrivingStream
from ppl_ext.meta.streams.stream import EpisodeStream, SimulatedStream
from ppl_ext.runtime.renamed import old_names

__all__ = [
    "NIW",
    "Adapted",
    "ArrivingStream",
    "EpisodeStream",
    "LangevinLocal",
    "ExactLinearGaussian",
    "Kinds",
    "LaplaceGGN",
    "LocalSolver",
    "MetaFit",
    "Quadratic",
    "SimulatedStream",
    "VariationalLocal",
    "Scores",
    "adapted_to_arviz",
    "evaluate",
    "head",
    "expected_calibration_error",
    "kinds",
    "lift",
    "mass_elsewhere",
    "plot_episodes",
]

__getattr__ = old_names("ppl_ext.meta", {"SGLD": "LangevinLocal"})
