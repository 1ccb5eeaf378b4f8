"""What the program about fractional noise claims, at its small sizes."""

import re

from tests.papers.programs import claims


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", text)]


def test_noise_with_memory_as_processes_without():
    *indices, sde = claims("fractional_noise")
    for row in indices:
        same, num, gap = numbers(row.ours)
        assert same == num == 1 and gap < 0.1
    (known,) = numbers(sde.known)
    weighted, bound, plain = numbers(sde.ours)
    # 4000 weights: their log mean errs by the weights' relative deviation over 63, here below 0.2
    assert abs(weighted - known) < 1.0
    assert plain < -100.0 < bound < known + 0.1 and bound > known - 20.0
