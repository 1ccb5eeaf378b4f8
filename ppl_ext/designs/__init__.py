"""Designs: where to measure, and which rows to take. A design is a distribution over rows of a table of
candidates, given by features of them; an acquisition tells how much each candidate would say, by what is
believed of the function so far.
"""

from ppl_ext.designs.acquisitions.conditioning import condition
from ppl_ext.designs.acquisitions.entropy import EntropySearch, PredictiveEntropy
from ppl_ext.designs.acquisitions.greedy import next_measurements
from ppl_ext.designs.acquisitions.improvement import ExpectedImprovement, NoisyExpectedImprovement
from ppl_ext.designs.acquisitions.knowledge_gradient import KnowledgeGradient
from ppl_ext.designs.private_moments import PrivateMoments, private_moments
from ppl_ext.designs.projection_dpp import ProjectionDPP
from ppl_ext.designs.repeated import Repeated, repeated
from ppl_ext.designs.scores_of_rows import gradient_scores, leverage, lewis
from ppl_ext.designs.volume_rescaled import VolumeRescaled, volume_rescaled

__all__ = [
    "EntropySearch",
    "ExpectedImprovement",
    "KnowledgeGradient",
    "NoisyExpectedImprovement",
    "PredictiveEntropy",
    "PrivateMoments",
    "ProjectionDPP",
    "Repeated",
    "VolumeRescaled",
    "condition",
    "gradient_scores",
    "leverage",
    "lewis",
    "next_measurements",
    "private_moments",
    "repeated",
    "volume_rescaled",
]
