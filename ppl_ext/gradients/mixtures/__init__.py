"""A biased strategy for mixtures: components by their paths, weights by how often each component wins."""

from ppl_ext.gradients.mixtures.frequency import ComponentFrequency

__all__ = ["ComponentFrequency"]
