"""Designs: where to measure, and which rows to take. A design is a distribution over rows of a table of
candidates, given by features of them.
"""

from ppl_ext.designs.private_moments import PrivateMoments, private_moments
from ppl_ext.designs.projection_dpp import ProjectionDPP
from ppl_ext.designs.repeated import Repeated, repeated
from ppl_ext.designs.scores_of_rows import gradient_scores, leverage, lewis
from ppl_ext.designs.volume_rescaled import VolumeRescaled, volume_rescaled

__all__ = [
    "PrivateMoments",
    "ProjectionDPP",
    "Repeated",
    "VolumeRescaled",
    "gradient_scores",
    "leverage",
    "lewis",
    "private_moments",
    "repeated",
    "volume_rescaled",
]
