"""What the meta-learning benchmarks rest on: their data, and the page's tables from reports as they write
them.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import meta_digits, meta_stream, tables
from benchmarks.harness import RESULTS
from benchmarks.rows import text

ROOT = Path(__file__).resolve().parent.parent


def test_classes_of_digits_are_rotations_and_disjoint():
    seen, unseen = meta_digits.images(meta_digits.TRAIN), meta_digits.images(meta_digits.TEST)
    assert (
        not set(meta_digits.TRAIN) & set(meta_digits.TEST) and seen.shape[0] == 24 and unseen.shape[0] == 16
    )
    upright, turned = (x.reshape(-1, 8, 8) for x in unseen[:2])
    np.testing.assert_array_equal(np.rot90(upright[3]), turned[3])


def test_students_are_split_by_row():
    shown, held = meta_stream.students()
    assert (
        len(shown) == len(held) == 2972
        and sum(len(y) for *_, y in shown) + sum(len(y) for *_, y in held) == 73_421
    )
    assert all(len(a[2]) >= 4 * len(b[2]) for a, b in zip(shown, held, strict=True))


@pytest.mark.parametrize("name", ["meta_regression", "meta_digits", "meta_stream"])
def test_the_page_has_what_the_saved_report_says(name):
    report = json.loads((RESULTS / f"{name}.json").read_text())
    rows = getattr(tables, name)(report)
    assert all(f"| {aim} | {verdict} |" in rows for aim, verdict in report["aims"].items())
    assert rows in (ROOT / "docs" / "benchmarks.md").read_text()


def test_a_cell_is_a_mean_with_its_standard_error():
    assert text.figure({"mean": 0.5, "se": 0.01}) == "0.500 ± 0.010"
    assert text.figure({"mean": 0.5, "se": None}, 1) == "0.5"


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["meta_regression", "meta_digits", "meta_stream"])
def test_quick_runs(name):
    __import__(f"benchmarks.{name}", fromlist=["main"]).main(quick=True)
