"""What programs on designs and couplings claim, at their small sizes."""

import re

from tests.papers.programs import claims


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_a_message_in_a_prescribed_law():
    *by_size, least, bits, right = claims("minimum_entropy")
    for row in by_size:
        mean, most, off = numbers(row.ours)
        assert 0.1 < mean < 0.35 and most < 0.6 and off < 1e-6
    means = [numbers(row.ours)[0] for row in by_size]
    assert means == sorted(means, reverse=True) and means[-1] < 0.24
    mean, most, none = numbers(least.ours)
    assert -1e-5 < mean < 0.05 and most < 0.531 and none > 60
    # the information of any coupling, a product law aside, is between none and the entropy
    assert 0.85 * numbers(bits.known)[0] < float(bits.ours) < numbers(bits.known)[0]
    best = numbers(right.known)[0]
    assert abs(float(right.ours) - best) < 4.5 * (best * (1 - best) / 200) ** 0.5


def test_points_that_repel_each_other():
    *errors, once, off = claims("projection_dpp")
    found = [numbers(row.ours) for row in errors]
    for uniform, independent, volume, repeated in (found[:4], found[4:]):
        assert uniform[0] > 2 * independent[0] > 2 * volume[0] > 2 * repeated[0] > 2
    for (ours, half), known in zip(
        (found[2], found[3], found[6], found[7]), (1.76, 1.29, 1.21, 1.09), strict=True
    ):
        assert abs(ours - known) < 4.5 * half + 0.03  # the figures are of another run
    mean, error = numbers(once.ours)
    assert abs(mean - numbers(once.known)[0]) < 4.5 * error and error < 3
    assert max(numbers(off.ours)) < 4.5


def test_a_few_draws_to_look_at():
    plain, *chosen = claims("diverse_subset")
    missed, half = numbers(plain.known)
    assert abs(numbers(plain.ours)[0] - missed) < 4.5 * half
    assert len(chosen) == 3
    _, mean, most = numbers(plain.ours)
    for row in chosen:
        missed, mean_of_it, most_of_it = numbers(row.ours)
        assert missed == 0.0 and mean_of_it < mean and most_of_it < 0.4 * most
