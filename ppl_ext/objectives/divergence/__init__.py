"""Divergences between laws in closed form, for objectives and for reports."""

from ppl_ext.objectives.divergence.gaussian_mixtures import cs_divergence, cs_mutual_information

__all__ = ["cs_divergence", "cs_mutual_information"]
