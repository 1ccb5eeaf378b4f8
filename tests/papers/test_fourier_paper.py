"""What the program about latents that two kinds of data share claims, at its small sizes and whole."""

import re

import pytest

from tests.papers.programs import claims, module
from tools.papers import Claim


def numbers(text):
    return [float(x) for x in re.findall(r"\d+\.?\d*", text)]


def assert_recovered(rows, short, length_error):
    """As well as with known maps but for ``short``; without the prior far from it."""
    *latents, lengths = rows
    assert len(latents) == 3
    for row in latents:
        [best] = numbers(row.known)
        ours, without = numbers(row.ours)
        assert 0.9 < best <= 1.0
        assert ours > best - short and ours <= 1.0
        assert without < best - 0.15
    for known, ours in zip(numbers(lengths.known), numbers(lengths.ours), strict=True):
        assert abs(ours / known - 1.0) < length_error


@pytest.mark.slow
def test_latents_are_recovered_with_the_prior_and_not_without():
    # 8 trials of 100 steps have some 50 lengths of the longest latent: its scale is known to a third, and a
    # correlation of the latents among each other by 1/7 can pass for a map
    assert_recovered(claims("mm_gpvae"), 0.14, 0.45)


@pytest.mark.slow
def test_latents_are_recovered_at_full_size():
    assert_recovered([Claim(*row) for row in module("mm_gpvae").claims()], 0.06, 0.35)
