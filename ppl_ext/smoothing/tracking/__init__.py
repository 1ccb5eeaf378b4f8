"""Tracking of many targets among missed and false measurements, by a Poisson multi-Bernoulli filter.

========================= ====================================================================================
``Tracker``               the filter: from a step of one target, births, clutter and detection
``PoissonTargets``        targets of a Poisson process, as births or at the start
``BernoulliTargets``      targets that exist with a probability, as births or at the start
``Tracks``                what it returns
``association_marginals`` who has which measurement, by loopy belief propagation
``gospa``                 how far an estimated set is from the true one
``draw_scene``            targets and measurements from the tracker's own model
========================= ====================================================================================
"""

from ppl_ext.smoothing.tracking.associations import Associations, association_marginals
from ppl_ext.smoothing.tracking.filtering import TrackState
from ppl_ext.smoothing.tracking.gospa import Gospa, gospa
from ppl_ext.smoothing.tracking.scene import Scene, draw_scene
from ppl_ext.smoothing.tracking.target_sets import BernoulliTargets, PoissonTargets
from ppl_ext.smoothing.tracking.tracker import Tracker
from ppl_ext.smoothing.tracking.tracks import Tracks

__all__ = [
    "Associations",
    "BernoulliTargets",
    "Gospa",
    "PoissonTargets",
    "Scene",
    "TrackState",
    "Tracker",
    "Tracks",
    "association_marginals",
    "draw_scene",
    "gospa",
]
