"""Rows of benchmarks of functions, series and designs."""

from benchmarks.rows.text import table


def smoothing(report):
    rows = []
    for name, line in report["ratios"].items():
        kind = "at most" if line["aim"] > 0 else "at least"
        rows.append([name, f"{line['ratio']:.3g}", f"{kind} {abs(line['aim']):g}", line["verdict"]])
    return table(["", "ratio", "aim", ""], rows)


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
