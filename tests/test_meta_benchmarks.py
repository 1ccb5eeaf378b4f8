"""What the meta-learning benchmarks rest on: their data, and the page's tables from reports as they write them."""

import numpy as np
import pytest

from benchmarks import meta_digits, meta_stream, tables


def test_classes_of_digits_are_rotations_and_disjoint():
    seen, unseen = meta_digits.images(meta_digits.TRAIN), meta_digits.images(meta_digits.TEST)
    assert not set(meta_digits.TRAIN) & set(meta_digits.TEST) and seen.shape[0] == 24 and unseen.shape[0] == 16
    upright, turned = (x.reshape(-1, 8, 8) for x in unseen[:2])
    np.testing.assert_array_equal(np.rot90(upright[3]), turned[3])


def test_students_are_split_by_row():
    shown, held = meta_stream.students()
    assert len(shown) == len(held) == 2972 and sum(len(y) for *_, y in shown) + sum(len(y) for *_, y in held) == 73_421
    assert all(len(a[2]) >= 4 * len(b[2]) for a, b in zip(shown, held, strict=True))


def test_tables_of_reports():
    cell = {"mean": 0.5, "se": 0.01}
    contender = {c: cell for c in ("mse", "nll", "coverage", "steps", "seconds", "accuracy", "ece")}
    regression = {"contenders": {"head": contender}, "temporary_mebibytes_by_inner_steps": {"1": {"head": 1.0}, "50": {"head": 1.0}}}
    assert "0.500 ± 0.010" in tables.meta_regression(regression)
    assert "| 1-shot | head | 0.500" in tables.meta_digits({"shots": {"1": {"head": contender | {"accuracy": {"mean": 0.5, "se": None}}}}})
    nuts = {"students": 3, "mean_off_in_sd": 0.1, "most_off_in_sd": 0.2, "sd_ratio": [0.9, 1.0, 1.1]}
    stream = {"log_score": {"one pass": -1.0}, "peak_mebibytes_of_the_process": {}, "seconds": {}, "gap": 0.001, "nuts": nuts}
    assert "0.10 % from the full batch" in tables.meta_stream(stream)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["meta_regression", "meta_digits", "meta_stream"])
def test_quick_runs(name):
    __import__(f"benchmarks.{name}", fromlist=["main"]).main(quick=True)
