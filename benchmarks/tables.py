"""The page of the benchmarks, ``docs/benchmarks.md``, from the saved results:
``python -m benchmarks.tables``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.reference.page import posteriors

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def hardware(report: dict[str, Any]) -> str:
    """In words, with the versions that matter."""
    cores, versions = report["hardware"]["cores"], report["versions"]
    where = "CPU" if report["hardware"]["backend"] == "cpu" else report["hardware"]["device"]
    count = _NUMBERS[cores] if cores < len(_NUMBERS) else cores
    return f"On {count} {where} cores; jax {versions['jax']}, numpyro {versions['numpyro']}."


def vae(report):
    rows = []
    for name, case in report["cases"].items():
        run = {r["against"]: r["median"] for r in case["ratios"] if r["what"] == "run"}
        rows.append(
            [
                name,
                f"{case['median_seconds']['run']['ppl_ext'] * 1e3:.2f} ms",
                f"{run['hand-coded']:.2f}",
                f"{run['numpyro']:.2f}",
            ]
        )
    return table(["", "ours", "over hand-coded JAX", "over NumPyro's Trace_ELBO"], rows)


def cone(report):
    rows = [
        [name, f"{b['value']:.3f} ± {b['standard_error']:.3f}", b["paper"], b["verdict"]]
        for name, b in report["bounds"].items()
    ]
    return (
        table(["bound", "ours", "paper", "aim"], rows)
        + f"\n\nThe log evidence is {report['log_evidence']:.4f}."
    )


def bernoullis(report):
    (case,) = report["cases"].values()
    ratios = {r["contender"]: r for r in case["ratios"]}
    rows = []
    for name, sd in report["gradient_sd"].items():
        ratio = ratios.get(name)
        rows.append(
            [
                name,
                sd["rms"],
                sd.get("aim", ""),
                f"{case['median_seconds']['run'][name] * 1e6:.0f} µs",
                f"{ratio['median']:.2f} (aim {ratio['at_most']:g})" if ratio else "",
            ]
        )
    return table(["", "sd of one coordinate", "aim", "time", "over global score"], rows)


def chains(report):
    rows = []
    for name, case in report["cases"].items():
        here, there, ratio = case["ppl_ext"], case["genjax"], case["ratios"]
        over = "over" in there
        rows.append(
            [
                name,
                f"{here['compile']:.1f} s",
                f"> {there['over']} s" if over else f"{there['compile']:.1f} s",
                f"{here['run'] * 1e6:.0f} µs",
                "" if over else f"{there['run'] * 1e6:.0f} µs",
                f"{here['variance']:.3g}",
                "" if over else f"{there['variance']:.3g}",
                ", ".join(
                    f"{what} {ratio[what]}" for what in ("compile", "run", "variance") if what in ratio
                ),
            ]
        )
    head = ["", "compile", "genjax", "run", "genjax", "variance", "genjax", "ours over theirs"]
    return table(head, rows)


def air(report):
    rows = []
    for name, row in report["estimators"].items():
        paper = [row["paper_seconds_per_epoch"][k] for k in ("genjax.vi", "Pyro")]
        rows.append(
            [
                name,
                f"{row['seconds_per_epoch']:.3g} s",
                f"{row['over_tracegraph']:.2f}",
                f"{row['elbo_start']:.0f} to {row['elbo_end']:.0f}",
                f"{row['count_accuracy']:.2f}",
                *("" if x is None else f"{x} s" for x in paper),
            ]
        )
    head = [
        "estimator",
        "an epoch",
        "over TraceGraph_ELBO",
        "ELBO per test image",
        "counted right",
        "paper: genjax.vi",
        "paper: Pyro",
    ]
    return (
        table(head, rows) + f"\n\nThe commonest count alone is right for {report['chance']:.2f} of the "
        "images.\n\n![](images/air.png)"
    )


def figure(cell: dict[str, Any], digits: int = 3) -> str:
    """A mean with its standard error over seeds."""
    return f"{cell['mean']:.{digits}f}" + (f" ± {cell['se']:.{digits}f}" if cell["se"] is not None else "")


def aims(report: dict[str, Any]) -> str:
    return table(["aim", ""], [[aim, verdict] for aim, verdict in report["aims"].items()])


def meta_regression(report):
    columns = [
        ("mse", "squared error"),
        ("nll", "NLL"),
        ("coverage", "90 % coverage"),
        ("steps", "steps"),
        ("seconds", "seconds"),
    ]
    rows = []
    for name, row in report["contenders"].items():
        rows.append([name, *(figure(row[c], 0 if c in ("steps", "seconds") else 3) for c, _ in columns)])
    sizes = report["temporary_mebibytes_by_inner_steps"]
    memory = [[name, *(f"{by[name]:.3g}" for by in sizes.values())] for name in next(iter(sizes.values()))]
    head = ["MiB of temporaries, by inner steps", *sizes]
    return (
        table(["", *(title for _, title in columns)], rows) + f"\n\n{table(head, memory)}\n\n{aims(report)}"
    )


def meta_digits(report):
    rows = []
    for shots, contenders in report["shots"].items():
        for name, row in contenders.items():
            rows.append(
                [
                    f"{shots}-shot",
                    name,
                    figure(row["accuracy"]),
                    figure(row["ece"]),
                    figure(row["nll"]),
                    figure(row["seconds"], 0),
                ]
            )
    gains = (
        f"{figure(gain, 4)} at {shots} shot{'s' * (shots != '1')}"
        for shots, gain in report["head_over_prototypical"].items()
    )
    about = f"Accuracy of the head over the prototypical network's, on the same tasks: {' and '.join(gains)}."
    return (
        table(["", "", "accuracy", "calibration error", "NLL", "seconds"], rows)
        + f"\n\n{about}\n\n{aims(report)}"
    )


def meta_stream(report):
    rows = []
    for name, score in report["log_score"].items():
        peak = report["peak_mebibytes_of_the_process"].get(name, "")
        rows.append([name, f"{score:.4f}", report["seconds"].get(name, ""), peak])
    nuts = report["nuts"]
    low, mean, high = nuts["sd_ratio"]
    about = (
        f"The pass is {100 * report['gap']:.2f} % from the full batch. Against NUTS on {nuts['students']} "
        f"students: local means off by {nuts['mean_off_in_sd']:.3f} posterior sds on average and "
        f"{nuts['most_off_in_sd']:.3f} at most, sd ratio {low} to {high}, mean {mean}."
    )
    return (
        table(["", "log score of a held-out rating", "seconds", "peak MiB of the process so far"], rows)
        + f"\n\n{about}\n\n{aims(report)}"
    )


def smoothing(report):
    rows = []
    for name, line in report["ratios"].items():
        kind = "at most" if line["aim"] > 0 else "at least"
        rows.append([name, f"{line['ratio']:.3g}", f"{kind} {abs(line['aim']):g}", line["verdict"]])
    return table(["", "ratio", "aim", ""], rows)


def runner(report):
    rows = [
        [name, f"{r['median']:.2f}", "{:.2f} to {:.2f}".format(*r["quartiles"])]
        for name, r in report["ratios"].items()
    ]
    return table(["time of", "ratio", "quartiles"], rows)


def sgmcmc(report):
    (case,) = report["cases"].values()
    rows = [
        [r["contender"], r["against"], f"{r['median']:.2f}", f"at most {r['at_most']:g}", r["verdict"]]
        for r in case["ratios"]
    ]
    return table(["", "over", "ratio of run times", "aim", ""], rows)


def first_number(report):
    rows = []
    for name, case in report["cases"].items():
        ours, theirs = case["seconds"]["ours"], case["seconds"]["theirs"]
        ratio = case["ratios"]["first_processor"]
        aim = "" if case["at_most"] is None else f"at most {case['at_most']:g}, {case['verdict']}"
        rows.append(
            [
                name,
                case["peer"],
                f"{ours['first_clock']:.2f} s, {theirs['first_clock']:.2f} s",
                f"{case['ratios']['first_clock']['median']:.2f}",
                f"{ratio['median']:.2f} ({ratio['quartiles'][0]:.2f} to {ratio['quartiles'][1]:.2f})",
                aim,
                f"{ours['again_clock'] * 1e3:.0f} ms, {theirs['again_clock'] * 1e3:.0f} ms",
            ]
        )
    head = ["", "beside", "first call, ours and theirs", "ratio by the clock"]
    return table([*head, "by the processor (quartiles)", "aim", "called again"], rows)


def markov(report):
    rows = []
    for name, case in report["cases"].items():
        seconds = {what: case["median_seconds"][what] for what in ("run", "compile")}
        ratios = {r["what"]: f"{r['median']:.2f}, {r['verdict']}" for r in case["ratios"]}
        times = f"{seconds['run']['ppl_ext'] * 1e3:.2f} ms, {seconds['run']['tinygp'] * 1e3:.2f} ms"
        first = f"{seconds['compile']['ppl_ext']:.1f} s, {seconds['compile']['tinygp']:.1f} s"
        rows.append([name, times, ratios["run"], first, ratios["compile"]])
    head = ["", "ours and tinygp's", "ratio (aim 1)", "to compile", "ratio (aim 1)"]
    dense, held = report["dense"], report["bytes_a_time"]
    return (
        table(head, rows)
        + f"\n\nBeside a process with a dense covariance, {dense['case']}: {dense['ratio']:.5f} of its time "
        f"(aim {dense['aim']:g}, {dense['verdict']}). Bytes held for each of "
        + " and ".join(f"{num} times: {size:.0f}" for num, size in held.items())
        + "."
    )


def sparse_subspace(report):
    rows = [
        [name, f"{aim['ratio']:.2f}", f"at most {aim['aim']:g}", aim["verdict"]]
        for name, aim in report["aims"].items()
    ]
    return table(["", "found", "aim", ""], rows)


def chain_support(report):
    rows = [[size, f"{milliseconds:.2f}"] for size, milliseconds in report["milliseconds"].items()]
    (told,) = (f"{aim}: {verdict}" for aim, verdict in report["aims"].items())
    return table(["switches", "milliseconds"], rows) + f"\n\nAim: {told}."


def dpp(report):
    rows = [
        [name, f"{1e3 * seconds:.0f}", f"{report['ratios'][name]:.3f}" if name in report["ratios"] else ""]
        for name, seconds in report["median_seconds"].items()
    ]
    return table(["", "milliseconds a draw", "ours over it"], rows)


def amortised(report):
    rows = [
        [
            name,
            f"{r['ratio']:.3g}",
            f"at {'least' if r['aim'] < 0 else 'most'} {abs(r['aim']):g}",
            r["verdict"],
        ]
        for name, r in report["aims"].items()
    ]
    ours, nuts = report["networks"], report["nuts"]
    seconds = sorted(found["seconds"] for found in ours)[len(ours) // 2]
    trained = max(found["training"] for found in ours)
    return table(["", "found", "aim", ""], rows) + (
        f"\n\nThe KL is a mean over {len(ours)} seeds, ± {report['kl_standard_error_over_seeds']:.4f}. The "
        f"network takes {seconds:.3f} s for all data sets, after {trained:.0f} s of training at most. NUTS "
        f"with {nuts['warmup']} + {nuts['draws']} steps, whose KL is {nuts['kl']:.4f}, takes "
        f"{nuts['seconds_at_once']:.1f} s at once under vmap, and {nuts['seconds_in_turn']:.0f} s one after "
        f"the other, {nuts['measured_in_turn']} of "
        "them measured. Compilation is not in these."
    )


def tracking(report):
    rows = [
        [
            name,
            f"{r['ratio']:.2f}",
            f"at {'least' if r['aim'] < 0 else 'most'} {abs(r['aim']):g}, {r['verdict']}",
        ]
        for name, r in report["ratios"].items()
    ]
    first, *later = report["compilations"]
    return (
        table(["times as long", "ratio", "aim"], rows)
        + f"\n\nThe first series compiles {first} programs, later ones of other lengths and other numbers of "
        f"measurements {', '.join(map(str, later))}."
    )


def smc(report):
    rows = []
    for name, case in report["cases"].items():
        (ratio,) = case["ratios"]
        mean, error = report["log_evidence"][name]["ppl_ext fitted"]
        beside = report.get("particles", {}).get(name)
        rows.append(
            [
                name,
                f"{case['median_seconds']['run']['ppl_ext'] * 1e3:.0f} ms",
                f"{ratio['median']:.2f}, {ratio['verdict']}",
                "not measured" if beside is None else f"{beside['ratio']:.3f}",
                f"{mean:.2f} ± {error:.2f}",
                "" if beside is None else "{:.2f} ± {:.2f}".format(*beside["log_evidence"]),
            ]
        )
    head = ["", "ours", "over blackjax (aim .9)", "over particles (aim .1)"]
    head += ["log evidence", "by particles"]
    return table(head, rows)


def functional_priors(report):
    rows = []
    for name, data in report["data"].items():
        for which, score in data["scores"].items():
            splits = data["critic_splits"] if which == "critic" else data["splits"]
            gain = data["gains_over_fixed"].get(which)
            gains = (
                [
                    "{:.1f} ± {:.1f} %".format(*(100 * v for v in gain["rmse"])),
                    "{:.3f} ± {:.3f}".format(*gain["nll"]),
                ]
                if gain
                else ["", ""]
            )
            means = ["{:.3f} ± {:.3f}".format(*score[k]) for k in ("rmse", "nll")]
            r_hat = f"{score['r_hat'][0]:.3f}, {score['r_hat_max'][0]:.3f}"
            seconds = data["seconds_to_tune"].get(which)
            cost = f"{seconds['all']:.0f} s, {seconds['steps']:.0f} s" if seconds else ""
            rows.append([name, which, splits, *means, *gains, r_hat, f"{score['seconds'][0]:.0f} s", cost])
    head = ["", "prior", "splits", "RMSE", "NLL", "RMSE below fixed", "NLL below fixed"]
    head += ["R̂ of predictions: 95 % quantile, largest", "chains", "tuning: all, its steps"]
    aims = [[what, found["value"], found["aim"], found["verdict"]] for what, found in report["aims"].items()]
    about = (
        "Errors are standard errors over splits, gains of pairs on the same split, and R̂ the mean over "
        "splits."
    )
    return table(head, rows) + f"\n\n{about}\n\n" + table(["", "found", "aim", ""], aims)


def subsampling(report):
    rows = [
        [
            name,
            f"{chain['effective_draws']:.0f}",
            f"{chain['seconds']:.1f} s",
            f"{chain['effective_a_second']:.0f}",
            f"{chain['deviation_over_all_rows']:.2f}",
            f"{chain['effective_for_the_posterior_a_second']:.0f}",
            f"{chain['first_run_seconds']:.0f} s",
        ]
        for name, chain in report["chains"].items()
    ]
    head = [
        "rows, proxy",
        "effective draws",
        "in",
        "a second",
        "sd over that of all rows",
        "a second, for the posterior",
        "first run",
    ]
    ratios = [
        [order, *(f"{ratio:.2f}" for ratio in found.values())] for order, found in report["ratios"].items()
    ]
    columns = ["uneven over uniform, a second", *next(iter(report["ratios"].values()))]
    return f"{table(head, rows)}\n\n{table(columns, ratios)}\n\n{aims(report)}"


def scaling(report):
    cores, times = report["hardware"]["cores"], report["seconds"]
    rows = []
    for name, one in times["1"].items():
        for devices, by_work in times.items():
            strong, weak = by_work[name]["strong"], by_work[name]["weak"]
            shared = f" (on {cores} cores)" if int(devices) > cores else ""
            speedup, efficiency = one["strong"] / strong, one["weak"] / weak
            rows.append(
                [
                    name,
                    f"{devices}{shared}",
                    f"{strong:.3g} s",
                    f"{speedup:.2f}",
                    f"{weak:.3g} s",
                    f"{efficiency:.2f}",
                ]
            )
    head = [
        "the work on one device",
        "devices",
        "strong",
        "speed-up",
        "weak: so many times the work",
        "efficiency",
    ]
    return table(head, rows)


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
