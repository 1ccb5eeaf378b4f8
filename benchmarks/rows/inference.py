"""Rows of benchmarks of running inference."""

from benchmarks.rows.text import aims, table


def runner(report):
    rows = [
        [name, f"{r['median']:.2f}", "{:.2f} to {:.2f}".format(*r["quartiles"])]
        for name, r in report["ratios"].items()
    ]
    return table(["time of", "ratio", "quartiles"], rows)


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


def fresh_process(report):
    rows = []
    for name, case in report["cases"].items():
        seconds, ratio = case["seconds"], case["ratio"]
        rows.append(
            [
                f"fit, {name}: its first step",
                f"{seconds['ours'][0]:.1f} s, {seconds['theirs'][0]:.1f} s",
                f"{ratio['median']:.2f} ({ratio['quartiles'][0]:.2f} to {ratio['quartiles'][1]:.2f})",
            ]
        )
    return table(["", "ours and that of NumPyro's SVI", "ratio by the processor (quartiles)"], rows)


def sgmcmc(report):
    (case,) = report["cases"].values()
    rows = [
        [r["contender"], r["against"], f"{r['median']:.2f}", f"at most {r['at_most']:g}", r["verdict"]]
        for r in case["ratios"]
    ]
    return table(["", "over", "ratio of run times", "aim", ""], rows)


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


def sparse_subspace(report):
    rows = [
        [name, f"{aim['ratio']:.2f}", f"at most {aim['aim']:g}", aim["verdict"]]
        for name, aim in report["aims"].items()
    ]
    return table(["", "found", "aim", ""], rows)


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
