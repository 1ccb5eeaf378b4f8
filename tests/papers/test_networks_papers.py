"""What programs on networks claim, at their small sizes."""

import re

from tests.papers.programs import claims


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


def test_merged_halves_are_the_joint_posterior_and_beat_the_plain_average():
    """Digits: 500 rows, an error of 0.013 at 0.9; the average and the merged fit see the same rows."""
    exact, digits = claims("fisher_merging")
    assert float(exact.ours) < 1e-6
    (plain, together), (merged, *halves) = numbers(digits.known), numbers(digits.ours)
    assert max(plain, *halves) + 0.02 < merged < together + 0.02


def test_products_of_factors_find_a_sparse_array():
    """Three draws at each noise; the oracle's error is that of least squares with eight unknowns."""
    for row in claims("kronecker_sparse"):
        (_, best, plain), (ours, *_) = numbers(row.known.replace("oracle", "0")), numbers(row.ours)
        assert best < ours < min(8 * best, 0.2 * plain)


def test_a_chain_of_switches_finds_runs():
    """Four data sets, the same for all three priors."""
    exact, support, weights = claims("turbo_vbi")
    assert float(exact.ours) < 1e-5
    assert float(support.ours) > max(numbers(support.known.replace("F1", ""))) + 0.05
    assert float(weights.ours) < 0.8 * min(numbers(weights.known))


def test_gram_matrices_that_move_find_the_direction_of_a_wave():
    """The NNGP and the machine see the same 60 rows of eight numbers."""
    limit, linear, wave = claims("deep_kernel_machine")
    assert float(limit.ours) < 1e-3 and float(linear.ours) < 1e-3
    assert float(wave.ours) > numbers(wave.known)[0] + 0.1
