"""Rows of benchmarks of meta-learning."""

from benchmarks.rows.text import aims, figure, table


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
