"""Designs: where to measure. A design is a distribution over rows of a table of candidates, given by features
of them.
"""

from ppl_ext.designs.projection_dpp import ProjectionDPP
from ppl_ext.designs.repeated import Repeated, repeated
from ppl_ext.designs.volume_rescaled import VolumeRescaled, volume_rescaled

__all__ = ["ProjectionDPP", "Repeated", "VolumeRescaled", "repeated", "volume_rescaled"]
