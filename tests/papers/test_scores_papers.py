"""What programs about scores claim, at their small sizes."""

import re

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_the_gaussian_part_of_a_score():
    *shares, distances = claims("gaussian_score")
    for row in shares:
        (known, *_), (ours, error, *_) = numbers(row.known), numbers(row.ours)
        # the last digits are rounded; that the Gaussian is fitted to the draws adds about 1/n of its own
        assert abs(known - ours) < 4.5 * error + 5e-4
    largest = [numbers(row.known)[0] for row in shares]
    assert largest == sorted(largest, reverse=True) and largest[0] > 0.8 and largest[-1] < 0.001
    found = module("gaussian_score").distances(500)
    assert found["jump, 12 steps"] < 1.05 * found["18 steps"] < 0.6 * found["12 steps over all"]
