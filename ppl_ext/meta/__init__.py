"""Normal-Inverse-Wishart meta-learning: any episode model lifted into a hierarchy over a stream of episodes."""

from ppl_ext.meta.arriving import ArrivingStream
from ppl_ext.meta.arviz_report import adapted_to_arviz
from ppl_ext.meta.head import head
from ppl_ext.meta.kinds import kinds
from ppl_ext.meta.lift import lift
from ppl_ext.meta.local import LocalSolver, Quadratic
from ppl_ext.meta.modes import mass_elsewhere
from ppl_ext.meta.niw import NIW
from ppl_ext.meta.plots import plot_episodes
from ppl_ext.meta.sampling import SGLD
from ppl_ext.meta.scores import Scores, evaluate, expected_calibration_error
from ppl_ext.meta.solvers import ExactLinearGaussian, LaplaceGGN
from ppl_ext.meta.stream import EpisodeStream, SimulatedStream
from ppl_ext.meta.variational import VariationalLocal

__all__ = [
    "NIW",
    "ArrivingStream",
    "EpisodeStream",
    "SGLD",
    "ExactLinearGaussian",
    "LaplaceGGN",
    "LocalSolver",
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
