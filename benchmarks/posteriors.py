"""Verdicts against the truth: posteriors that are known by long NUTS, each by every method, and whether the
verdict on what came out is right.

``python -m benchmarks posteriors`` prints a row for each model and method: by how much the worst mean and
standard deviation are off, in the reference's standard deviations; seconds, and those of the verdict; the
verdict, and whether it is right. It takes an hour or more, so that plain ``python -m benchmarks`` runs three
models, as ``--quick`` does; a run that was broken off goes on from its saved rows.

``python -m benchmarks.posteriors`` takes ``--only MODEL`` and ``--method METHOD`` (several times),
``--seed``, ``--count`` to count the saved rows, and ``--reference``, which makes
``benchmarks/reference/posteriors.json``. Most of the time is compiling: ``JAX_DISABLE_MOST_OPTIMIZATIONS=1``
halves it.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal

from benchmarks import harness
from benchmarks.reference import truth
from benchmarks.reference.counting import aims, counted, in_words
from benchmarks.reference.problem import Problem
from benchmarks.reference.registry import PROBLEMS
from ppl_ext.diagnostics import verdict
from ppl_ext.errors import PplExtError
from ppl_ext.infer import SMC, Fit, ParticleGibbs, fit
from ppl_ext.objectives import ELBO, IWELBO, Renyi

QUICK = ["eight_schools_noncentered", "kilpisjarvi", "bioassay"]
RESTARTS, DRAWS = 4, 4000
"""Of a fit, draws of each restart, unweighted, as its report has them."""


def by_nuts(problem: Problem, key: jax.Array):
    mcmc = MCMC(
        NUTS(problem.model, init_strategy=problem.start), num_warmup=500, num_samples=500, num_chains=4, **HOW
    )
    mcmc.run(key, *problem.data(), extra_fields=("diverging", "energy"))
    return mcmc, mcmc.get_samples(group_by_chain=True)


def by_gibbs(problem: Problem, key: jax.Array):
    kernel = ParticleGibbs(problem.model, num_particles=30)
    mcmc = MCMC(kernel, num_warmup=500, num_samples=1000, num_chains=4, **HOW)
    mcmc.run(key, *problem.data(), extra_fields=("renewed",))
    return mcmc, mcmc.get_samples(group_by_chain=True)


HOW: dict[str, Any] = {"chain_method": "sequential", "progress_bar": False}


def by_smc(problem: Problem, key: jax.Array):
    result = SMC(problem.model, num_particles=2000, progress_bar=False).run(key, *problem.data())
    return result, {n: x[None] for n, x in result.values.items()}


def by_fit(guide: Callable, objective: Any, num_steps: int, rate: float, problem: Problem, key: jax.Array):
    optim = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    optim = optax.chain(optax.clip_by_global_norm(10.0), optim)
    options = {"num_chains": RESTARTS, "progress_bar": False, "stable_update": True}
    data = problem.data()
    guide = flow(problem, data) if guide is AutoIAFNormal else guide(problem.model, init_loc_fn=problem.start)
    result = fit(key, problem.model, guide, objective, optim, num_steps, *data, **options)
    return result, result.sample(num_samples=DRAWS).values


def flow(problem: Problem, data: tuple) -> AutoIAFNormal:
    with trace() as record:
        seed(problem.model, jax.random.key(0))(*data)
    latent = [s for s in record.values() if s["type"] == "sample" and not s["is_observed"]]
    width = max(16, sum(s["value"].size for s in latent))
    return AutoIAFNormal(problem.model, num_flows=2, hidden_dims=[width, width], init_loc_fn=problem.start)


METHODS: dict[str, Callable] = {
    "NUTS": by_nuts,
    "SMC": by_smc,
    "ELBO": partial(by_fit, AutoNormal, ELBO(), 6000, 0.03),
    "IWELBO": partial(by_fit, AutoNormal, IWELBO(8), 4000, 0.03),
    "Renyi": partial(by_fit, AutoNormal, Renyi(0.5, 8), 4000, 0.03),
    "full rank": partial(by_fit, AutoMultivariateNormal, ELBO(), 8000, 0.02),
    "flow": partial(by_fit, AutoIAFNormal, ELBO(), 6000, 0.005),
    "particle Gibbs": by_gibbs,
}


def row(name: str, method: str, reference: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """What a method makes of a model: how far off, how long, and what the verdict is."""
    key = jax.random.fold_in(jax.random.key(number), list(METHODS).index(method))
    started = time.perf_counter()
    found: dict[str, Any] = {"model": name, "method": method, "seed": number}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result, values = METHODS[method](PROBLEMS[name], key)
            off = truth.error(values, reference, independent=isinstance(result, Fit))
            made = time.perf_counter()
            said = verdict(result, num_samples=DRAWS) if isinstance(result, Fit) else verdict(result)
        except PplExtError as error:  # told in words, which is as good as "bad"
            return found | {"error": str(error)[:200]}
    return found | {
        "mean": round(off.mean, 3),
        "sd": round(off.sd, 3),
        "noise": round(off.noise, 3),
        "seconds": round(made - started, 1),
        "seconds_of_verdict": round(time.perf_counter() - made, 1),
        "said": said.level,
        "reasons": [f"{r.level}: {r.words}" for r in said.reasons[:2]],
    }


def run(names: list[str], methods: list[str], rows: list[dict[str, Any]], number: int, save: bool) -> None:
    """Make the rows that are not there yet, and print each."""
    references = truth.references()
    done = {(r["model"], r["method"], r["seed"]) for r in rows}
    for name in names:
        for method in methods:
            if (name, method, number) in done or (method == "particle Gibbs" and not PROBLEMS[name].scan):
                continue
            rows.append(row(name, method, references[name], number))
            print(in_words(rows[-1]), flush=True)
            if save:
                _save(rows)
        jax.clear_caches()


def _save(rows: list[dict[str, Any]]) -> None:
    harness.RESULTS.mkdir(exist_ok=True)
    report = {
        "benchmark": "posteriors",
        "description": "verdicts against posteriors that long NUTS knows",
        **harness.environment(),
        "counts": counted(rows),
        "aims": {aim: "met" if met else "missed" for aim, met in aims(counted(rows)).items()},
        "rows": rows,
    }
    (harness.RESULTS / "posteriors.json").write_text(json.dumps(report, indent=1) + "\n")


def saved() -> list[dict[str, Any]]:
    path = harness.RESULTS / "posteriors.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def make_references(names: list[str]) -> None:
    for name in names:
        started = time.perf_counter()
        found = truth.references() | {name: truth.make_reference(PROBLEMS[name])}
        lines = [f"{json.dumps(n)}: {json.dumps(found[n])}" for n in PROBLEMS if n in found]
        truth.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(
            f"{name}: R-hat {found[name]['r_hat']}, ESS {found[name]['ess']}, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
        jax.clear_caches()


def main(
    quick: bool = False, only: list[str] | None = None, methods: list[str] | None = None, number: int = 0
) -> None:
    whole = not (quick or only or methods or number)
    rows = saved() if whole else []
    run(only or (QUICK if quick else list(PROBLEMS)), methods or list(METHODS), rows, number, save=whole)
    print(in_words(counted(rows)))
    harness.verdicts(aims(counted(rows)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posteriors", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three models; prints only")
    parser.add_argument("--only", action="append", choices=list(PROBLEMS), metavar="MODEL")
    parser.add_argument("--method", action="append", choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seed", type=int, default=0, help="another than 0 prints only")
    parser.add_argument("--reference", action="store_true", help="make the references anew, by long NUTS")
    parser.add_argument("--count", action="store_true", help="count the saved rows")
    options = parser.parse_args()
    if options.reference:
        make_references(options.only or list(PROBLEMS))
    elif options.count:
        for each in saved():
            print(in_words(each))
        print(in_words(counted(saved())))
    else:
        main(options.quick, options.only, options.method, options.seed)
