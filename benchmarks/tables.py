"""The page of the benchmarks, ``docs/benchmarks.md``, from the saved results:
``python -m benchmarks.tables``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.reference.page import posteriors
from benchmarks.rows.inference import (
    amortised,
    first_number,
    fresh_process,
    runner,
    scaling,
    sgmcmc,
    smc,
    sparse_subspace,
    subsampling,
)
from benchmarks.rows.meta import meta_digits, meta_regression, meta_stream
from benchmarks.rows.processes import chain_support, dpp, functional_priors, markov, smoothing, tracking
from benchmarks.rows.variational import air, bernoullis, chains, cone, vae

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def hardware(report: dict[str, Any]) -> str:
    """In words, with the versions that matter."""
    cores, versions = report["hardware"]["cores"], report["versions"]
    where = "CPU" if report["hardware"]["backend"] == "cpu" else report["hardware"]["device"]
    count = _NUMBERS[cores] if cores < len(_NUMBERS) else cores
    return f"On {count} {where} cores; jax {versions['jax']}, numpyro {versions['numpyro']}."


SECTIONS: dict[str, tuple[str, str, Callable]] = {
    "vae": (
        "Overhead: the gradient of a VAE",
        "The median of at least 100 blocked and interleaved calls.",
        vae,
    ),
    "cone": (
        "The cone of Becker et al. 2024",
        "Each bound trained to convergence, then evaluated on fresh draws.",
        cone,
    ),
    "bernoullis": (
        "A thousand local Bernoullis under one global latent",
        "Charged with the whole cost, a coin's gradient drowns; charged with its own slice of the plate it "
        "does not, for nearly the same time.",
        bernoullis,
    ),
    "chains": (
        "Chains of dependent flips, beside genjax 0.10.3",
        "As a `scan`, whose size does not grow with the chain; in genjax, which has no strategies inside "
        "its own, as a Python loop. (XLA's CPU compiler takes more than linear time for a chain written as "
        "a Python loop, ours too: see `results/chains.json`.) The head of `benchmarks/chains.py` says how "
        "to make genjax's environment.",
        chains,
    ),
    "air": (
        "Attend, infer, repeat",
        "Digits counted, found and redrawn; the estimators differ in what they do with the coins that say "
        "whether there is another digit. The paper's figures are on its own data and hardware.",
        air,
    ),
    "meta_regression": (
        "Few-shot regression: sines and lines",
        "A shared network with a Normal-Inverse-Wishart head beside MAML and a neural process, at equal "
        "wall time.",
        meta_regression,
    ),
    "meta_digits": (
        "Few-shot classification: digits",
        "Five new classes of digits and their rotations; the same features, tasks and steps for all.",
        meta_digits,
    ),
    "smoothing": (
        "Particle filters and PaRIS",
        "Beside a filter written by hand in JAX, cuthbert 0.1, and particles 0.4 (NumPy), whose environment "
        "the head of `benchmarks/peers/particles_smoothing.py` describes.",
        smoothing,
    ),
    "functional_priors": (
        "Tuned priors on data",
        "The fixed prior has variance 1/fan-in; the two others are tuned to a hierarchical Gaussian "
        "process, by the default distance and by the published critic (Tran et al. 2022), which takes so "
        "long that it gets the first splits alone.",
        functional_priors,
    ),
    "sgmcmc": (
        "Stochastic gradient MCMC",
        "Beside a loop by hand and blackjax, at as many gradients of as many rows.",
        sgmcmc,
    ),
    "smc": (
        "Tempered SMC",
        "Beside blackjax, with a random walk of fixed covariance, and particles 0.4 (NumPy), where both fit "
        "it to the particles; same particles, temperatures and number of steps.",
        smc,
    ),
    "posteriors": (
        "Verdicts against the truth",
        "Posteriors of the kinds that posteriordb has, each by every method: is the verdict right?",
        posteriors,
    ),
    "runner": (
        "The runner",
        "`fit` with its progress bar beside a bare jitted scan of the same steps, and NumPyro's `SVI.run`.",
        runner,
    ),
    "first_number": (
        "The first number",
        "Calls that find nothing compiled: traced, compiled and run from nothing.",
        first_number,
    ),
    "fresh_process": (
        "The first number of a process",
        "The same fits in processes that have just begun, where the operations of JAX are not compiled yet "
        "either. Imports are left out.",
        fresh_process,
    ),
    "markov": (
        "Gaussian processes over time",
        "`priors.markov`, whose `scan` the exact filter sums out, beside tinygp's `QuasisepSolver`: log "
        "evidence and its gradient, compiled once.",
        markov,
    ),
    "dpp": (
        "Projection DPPs",
        "`ProjectionDPP` beside DPPy and a NumPy loop by hand, all by the chain rule; the head of "
        "`benchmarks/peers/dppy_draws.py` describes the environment of DPPy.",
        dpp,
    ),
    "chain_support": (
        "Chains of switches",
        "`priors.Support` with neighbours that are alike: marginals, summed over all patterns exactly.",
        chain_support,
    ),
    "sparse_subspace": (
        "Few of a network's weights",
        "`SparseSubspace` with a twentieth of the weights beside NumPyro's `AutoNormal` with all, in `fit`.",
        sparse_subspace,
    ),
    "light_bridge": (
        "Schrödinger bridges",
        "`fit` of `light_sb` beside the same steps written out in JAX and optax, as one compiled loop.",
        runner,
    ),
    "amortised": (
        "A prior-fitted network",
        "`infer.amortise` trained on a Gaussian process, beside NUTS: data sets whose predictive is known.",
        amortised,
    ),
    "tracking": (
        "Many targets",
        "The Poisson multi-Bernoulli filter beside two of NumPy with the same numbers: lists and loops, and "
        "arrays of the size that is needed.",
        tracking,
    ),
    "subsampling": (
        "Uneven rows",
        "`handlers.subsample` by leverage beside NumPyro's uniform rows, both in its `HMCECS`, on a "
        "regression in which a hundred rows lie far out.",
        subsampling,
    ),
    "scaling": (
        "Scaling over host devices",
        "Strong: the same work on more devices. Weak: as many times the work as there are devices. More "
        "devices than cores share these, so that a speed-up of theirs is no more than that of as many "
        "devices as cores.",
        scaling,
    ),
    "meta_stream": (
        "InstEval as a stream",
        "2,972 students, each seen once, against all of them in every step.",
        meta_stream,
    ),
}


def main() -> None:
    parts = [
        "# Benchmarks\n\nMade by `python -m benchmarks.tables` from `benchmarks/results/`. Under each table "
        "stands the command that measures it again. Aims and peers are the project's own; a ratio under 1 "
        "is in our favour."
    ]
    for name, (title, about, make) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            report = json.loads(path.read_text())
            parts.append(
                f"## {title}\n\n{about}\n\n{make(report)}\n\n`python -m benchmarks {name}`: "
                f"{report['description']}. {hardware(report)}"
            )
    PAGE.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
