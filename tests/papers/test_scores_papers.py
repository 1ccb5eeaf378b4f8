"""What programs about scores claim, at their small sizes."""

import re

import numpy as np
import pytest

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


@pytest.mark.slow
def test_denoising_without_clean_data():
    """Draws are the same in all columns, so that the error of a difference is far below that of a figure."""
    for row in claims("noise2score"):
        bayes, noisy, *harmonic = numbers(row.known)
        reached = harmonic[0] if harmonic else bayes
        assert reached * 0.97 < float(row.ours) < min(1.12 * reached, 0.62 * noisy)
        if harmonic:  # the Gamma formula is a harmonic mean
            assert bayes < 0.9 * reached


def test_second_order_of_tweedie():
    exact, *rows = claims("second_order_tweedie")
    assert float(exact.ours) < 1e-4
    found = [numbers(row.ours) for row in rows]
    variance = numbers(rows[0].known)[1]
    error = (variance / 300) ** 0.5
    (off, spread), (off_first, spread_first), (off_second, spread_second) = found
    assert off < 4.5 * error  # of three numbers
    # a variance of three correlated numbers: at most 2 (total variance)² / n
    assert abs(spread - variance) < 4.5 * variance * (2 / 300) ** 0.5
    assert off_second < off_first and abs(spread_second - variance) < 0.5 * abs(spread_first - variance)


def test_the_divergence_is_an_integral_over_scores():
    exact, total, estimate, error = module("red_diff").divergences(60, 400)
    # quadrature: the trapezium's error falls by 100 with ten times the steps
    assert abs(total - exact) < 0.05
    assert abs(estimate - exact) < 4.5 * error and error < 1.0


def test_red_diff_descends_to_the_posterior_mean():
    far = [numbers(row.ours) for row in claims("red_diff")[2:5]]
    descending, at_random = zip(*far, strict=True)
    assert max(descending) < 0.04  # the posterior's variance is 0.063 on average
    assert at_random[0] > 5 * descending[0] and at_random[1] > 3 * descending[1]


def test_a_denoiser_as_a_prior_has_the_width_of_the_posterior():
    error, spread, noise = claims("score_dvi")
    least, noisy = numbers(error.known)
    assert float(error.ours) < 1.8 * least < 0.25 * noisy
    truth, narrow = numbers(spread.known)
    assert abs(float(spread.ours) - truth) < 0.1 * truth and narrow < 0.1 * truth
    for known, ours in zip(numbers(noise.known), numbers(noise.ours), strict=True):
        assert abs(ours / known - 1) < 0.25


def test_regimes_of_a_kernel_estimate():
    program = module("kde_weights")
    for num in (2000, 30_000):
        few, normal = program.threshold(1, num), program.threshold(2, num)
        assert abs(program.DIM * program.nats(few, 1) - np.log(num)) < 1e-6 and few < normal
    rows = claims("kde_weights")
    for row in (rows[0], rows[2], rows[4]):
        assert row.ours.startswith(f"{row.known} 1.00")
    largest = [float(row.ours.split("largest weight ")[1].split()[0]) for row in rows]
    assert largest == sorted(largest, reverse=True) and largest[1] > 0.3 and largest[-1] < 0.024
