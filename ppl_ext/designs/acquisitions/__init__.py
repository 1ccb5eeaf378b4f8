"""Where to measure next: how much each candidate would tell, by what is believed of a function."""

from ppl_ext.designs.acquisitions.conditioning import condition
from ppl_ext.designs.acquisitions.entropy import EntropySearch, PredictiveEntropy
from ppl_ext.designs.acquisitions.greedy import next_measurements
from ppl_ext.designs.acquisitions.improvement import ExpectedImprovement, NoisyExpectedImprovement
from ppl_ext.designs.acquisitions.knowledge_gradient import KnowledgeGradient

__all__ = [
    "EntropySearch",
    "ExpectedImprovement",
    "KnowledgeGradient",
    "NoisyExpectedImprovement",
    "PredictiveEntropy",
    "condition",
    "next_measurements",
]
