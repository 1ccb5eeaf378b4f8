"""Rows of benchmarks of objectives and gradients."""

from benchmarks.rows.text import table


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
