"""What the program on many targets claims."""

import re

import pytest

from tests.papers.programs import claims, module
from tools.papers import Claim


def numbers(text):
    return [float(x) for x in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)]


def assert_tracked(rows, raw_off):
    """The filter is below the figure to reach and far below the raw measurements, whose distance is about
    the published one; its parts are its whole. An association of three by three was off by 0.127 at most.
    """
    *distances, association = rows
    assert len(distances) == 3
    for row in distances:
        (reach, raw, phd), (ours, _, our_raw, *parts) = numbers(row.known), numbers(row.ours)
        assert ours <= reach < phd and ours < 0.4 * our_raw
        assert abs(our_raw - raw) < raw_off
        assert abs(sum(parts) - ours) < 0.02
    middle, most = numbers(association.ours)
    assert 0.001 < middle < 0.05 and most < 0.15


def test_many_targets_are_tracked():
    assert_tracked(claims("tracking"), raw_off=3.0)


@pytest.mark.slow
def test_many_targets_are_tracked_over_many_scenes():
    *rows, kalman = (Claim(*row) for row in module("tracking").claims())
    assert_tracked(rows, raw_off=1.5)
    mean, evidence = numbers(kalman.ours)
    assert mean < 1e-5 and evidence < 1e-3
