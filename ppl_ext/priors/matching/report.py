"""How well functions match, judged by distances that were not optimised, on draws that no step has seen."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from ppl_ext.priors.distances.distance import Functions
from ppl_ext.priors.distances.energy import Energy
from ppl_ext.priors.distances.sliced import SlicedWasserstein
from ppl_ext.runtime.verdict import Reason, Verdict, judged

if TYPE_CHECKING:
    from ppl_ext.priors.lifting import Raw
    from ppl_ext.priors.matching.problem import Matching

NUM_DRAWS = 512
JUDGES = {"Energy": Energy(), "SlicedWasserstein": SlicedWasserstein()}
HEAVY = 1.0
"""Excess kurtosis from which tails count as heavy: a Student-t with 10 degrees of freedom has it."""

WIDER = 1.3
"""A ratio of standard deviations that is too far from one."""


class Report(NamedTuple):
    """What :func:`~ppl_ext.priors.match` achieved, at one fresh measurement set.

    ``distances``: by name, (before, after, floor); the floor is the distance between two sets of draws of the
    target, on average 0 for an estimate without bias. ``judge``: the name of the one that was not optimised.
    ``inputs``: (M,) or (M, d). ``sd_ratio``: (M,), or (M, P), standard deviation of the tuned functions over
    the target's. ``kurtosis``: excess kurtosis, averaged over inputs, of "before", "after" and "target".
    ``crossings``: of the same three, how often a function crosses the target's mean from the smallest input
    to the largest, on average; none where inputs or outputs are several.
    """

    distances: dict[str, tuple[float, float, float]]
    judge: str
    inputs: np.ndarray
    sd_ratio: np.ndarray
    kurtosis: dict[str, float]
    crossings: dict[str, float] | None = None

    def words(self) -> list[str]:
        """The report in sentences, with what to do."""
        before, after, floor = self.distances[self.judge]
        out = [
            f"{self.judge} distance, not optimised: {before:.4g} before, {after:.4g} after; {floor:.2g} "
            "between draws of the target itself."
        ]
        low, high = np.quantile(self.sd_ratio, [0.05, 0.95])
        out.append(
            f"sd of functions over the target's: median {np.median(self.sd_ratio):.3f}, 5 to 95 % of inputs "
            f"{low:.3f} to {high:.3f}."
        )
        k = self.kurtosis
        out.append(
            f"excess kurtosis: {k['before']:.2f} before, {k['after']:.2f} after, {k['target']:.2f} of the "
            "target."
        )
        if (of := self.crossings) is not None:
            out.append(
                f"crossings of the target's mean: {of['before']:.2f} before, {of['after']:.2f} after, "
                f"{of['target']:.2f} of the target."
            )
        if k["target"] > HEAVY and k["after"] < 0.5 * k["target"]:
            out.append(
                "The target's tails are heavier than this prior's: squared distances make its scale too "
                "large. Try ScaleMixture()."
            )
        if after > before:
            out.append(
                "The functions match worse than before: use a smaller step, more draws, or another distance."
            )
        return out


def judge(matched: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.priors.matching.matched.Matched`: on draws that no step has seen."""
    report = matched.report
    if report is None:
        return judged([Reason("bad", "the run broke down")])
    before, after, floor = report.distances[report.judge]
    what = (
        f"{report.judge} distance, not optimised: {before:.4g} before, {after:.4g} after, {floor:.2g} at best"
    )
    if not np.isfinite(after) or after > before:
        return judged([Reason("bad", what)])
    low, high = np.quantile(report.sd_ratio, [0.05, 0.95])
    spread = f"standard deviations over the target's: {low:.2f} to {high:.2f} at 90 % of the inputs"
    found = [Reason("good" if low > 1 / WIDER and high < WIDER else "doubtful", f"{what}; {spread}")]
    if report.kurtosis["target"] > HEAVY and report.kurtosis["after"] < 0.5 * report.kurtosis["target"]:
        found.append(Reason("doubtful", "the target's tails are heavier than this prior's"))
    return judged(found)


def measure(
    matching: "Matching", raws: Any, keys: jax.Array, inputs: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Draws of the network before and after, of the target, and each judge's distances before, after, and of
    the target to itself.

    To be compiled whole: one by one, these operations compile for seconds. They are mapped so that each law's
    draws are compiled once.
    """
    network = lax.map(
        lambda of: matching.network_functions(of[0], of[1], inputs, NUM_DRAWS), (raws, keys[:2])
    )
    target = lax.map(lambda key: matching.target_functions(key, inputs, NUM_DRAWS), keys[2:4])
    against = Functions(target[0].reshape(NUM_DRAWS, -1))

    def distances(draws):
        return {
            name: judge(keys[4], (), Functions(draws.reshape(NUM_DRAWS, -1)), against)
            for name, judge in JUDGES.items()
        }

    return network, target[0], lax.map(distances, jnp.concatenate([network, target[1:]]))


def write_report(
    matching: "Matching", measured: Callable, before: "Raw", after: "Raw", rng_key: jax.Array
) -> Report:
    """``measured``: :func:`measure` of this matching, compiled."""
    of_inputs, *keys = random.split(rng_key, 7)
    inputs = matching.sampler(of_inputs)
    network, target, found = measured(
        jax.tree.map(lambda *x: np.stack(x), before, after), jnp.stack(keys), inputs
    )
    draws = {"before": network[0], "after": network[1], "target": target}
    distances = {name: (float(of[0]), float(of[1]), float(of[2])) for name, of in found.items()}
    kind = type(matching.distance).__name__
    values = {which: np.asarray(x, np.float64) for which, x in draws.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values["after"].std(0) / values["target"].std(0)
    return Report(
        distances=distances,
        judge="SlicedWasserstein" if kind == "Energy" else "Energy",
        inputs=np.asarray(inputs),
        sd_ratio=ratio,
        kurtosis={which: excess_kurtosis(values[which]) for which in ("before", "after", "target")},
        crossings=crossings(np.asarray(inputs), values),
    )


def crossings(inputs: np.ndarray, draws: dict[str, np.ndarray]) -> dict[str, float] | None:
    """How often draws (num_draws, M) cross the mean of those of the "target", going along the inputs."""
    if inputs.size != len(inputs) or draws["target"].ndim != 2:
        return None
    along = np.argsort(inputs.ravel(), kind="stable")
    mean = draws["target"].mean(0)
    above = {which: (x - mean)[:, along] > 0.0 for which, x in draws.items()}
    return {which: float((x[:, 1:] != x[:, :-1]).sum(1).mean()) for which, x in above.items()}


def excess_kurtosis(draws: np.ndarray) -> float:
    """Over draws (the first axis), averaged over the rest; values that do not vary are left out.

    >>> round(excess_kurtosis(np.random.default_rng(0).normal(size=(100_000, 2))), 1)
    0.0
    """
    centred = draws - draws.mean(0)
    m2 = (centred**2).mean(0)
    varies = m2 > 1e-12 * max(float(m2.max(initial=0.0)), 1e-300)
    if not varies.any():
        return 0.0
    return float(((centred**4).mean(0)[varies] / m2[varies] ** 2).mean() - 3.0)
