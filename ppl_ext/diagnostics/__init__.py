"""What is wrong with a fit: importance weights with their tail, and log likelihoods that sum discrete sites out."""

from ppl_ext.diagnostics.likelihood import log_likelihood
from ppl_ext.diagnostics.psis import PSIS, importance_ess, pareto_k_threshold, psis

__all__ = ["PSIS", "importance_ess", "log_likelihood", "pareto_k_threshold", "psis"]
