"""Subsets without replacement: a distribution, and two biased strategies that go through its sampler."""

from ppl_ext.gradients.subsets.relaxed import SoftTopK, StraightThrough
from ppl_ext.gradients.subsets.subset import Subset

__all__ = ["SoftTopK", "StraightThrough", "Subset"]
