"""The small programs every objective is judged on, each beside its own densities written by hand.

A ``Problem`` is a NumPyro model and guide with a point in parameter space, and the ``Oracle`` that knows the
exact answer there. Each stands for one way an estimator can go wrong: a scale that leaks into a score, a
plate whose elements are not independent after all, a time step that forgets its future. Probabilities stay
well inside (0, 1), so that 20,000 replicates see every outcome often enough for a standard error to be
meaningful.
"""

from tests.problems import plates, sites, steps, supports, terms
from tests.problems.problem import Problem
from tests.problems.routes import ROUTES, routed

__all__ = ["PROBLEMS", "ROUTED", "Problem"]

BUILDERS = (
    sites.one_bernoulli,
    sites.chain,
    sites.triple,
    sites.normal_then_bernoulli,
    sites.bernoulli_then_normal,
    sites.coin_normal_coin,
    sites.score_normal,
    sites.reparam_normal,
    plates.plated,
    plates.plated_local,
    plates.nested_plates,
    plates.subsampled,
    plates.subsampled_local,
    terms.scaled,
    terms.masked,
    terms.masked_data,
    steps.scanned,
    terms.factors,
    plates.coupled_plate,
    plates.relayed,
    plates.crossed_plates,
    steps.scanned_backwards,
    steps.scan_output,
    steps.scanned_plate,
    steps.conditional_site,
    supports.nonlinear,
    supports.truncated,
    supports.counts,
    supports.many_coins,
)
PROBLEMS = {problem.name: problem for problem in (build() for build in BUILDERS)}
ROUTED = {problem.name: problem for problem in (routed(route) for route in ROUTES)}
