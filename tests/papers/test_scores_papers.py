"""What programs about scores claim, at their small sizes and whole."""

import re

import numpy as np
import pytest

from tests.papers.programs import SIZES, module, rows_of


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


@pytest.mark.parametrize("whole", SIZES)
def test_the_gaussian_part_of_a_score(whole):
    *shares, distances = rows_of("gaussian_score", whole)
    for row in shares:
        (known, *_), (ours, error, *_) = numbers(row.known), numbers(row.ours)
        # the last digits are rounded; that the Gaussian is fitted to the draws adds about 1/n of its own
        assert abs(known - ours) < 4.5 * error + 5e-4
    largest = [numbers(row.known)[0] for row in shares]
    assert largest == sorted(largest, reverse=True) and largest[0] > 0.8 and largest[-1] < 0.001
    steps, jump, fewer = numbers(distances.ours)[1::2]
    assert jump < 1.05 * steps < 0.6 * fewer


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_denoising_without_clean_data(whole):
    """Draws are the same in all columns, so that the error of a difference is far below that of a figure."""
    for row in rows_of("noise2score", whole):
        bayes, noisy, *harmonic = numbers(row.known)
        reached = harmonic[0] if harmonic else bayes
        assert bayes * 0.97 < float(row.ours) < min(1.12 * reached, 0.62 * noisy)
        if harmonic:  # the Gamma formula is a harmonic mean
            assert bayes < 0.9 * reached


@pytest.mark.parametrize("whole", SIZES)
def test_second_order_of_tweedie(whole):
    exact, *moments = rows_of("second_order_tweedie", whole)
    assert float(exact.ours) < 1e-4
    found = [numbers(row.ours) for row in moments]
    variance, num = numbers(moments[0].known)[1], 5000 if whole else 300
    error = (variance / num) ** 0.5
    (off, spread), (off_first, spread_first), (off_second, spread_second) = found
    assert off < 4.5 * error  # of three numbers
    # a variance of three correlated numbers: at most 2 (total variance)² / n
    assert abs(spread - variance) < 4.5 * variance * (2 / num) ** 0.5
    assert off_second < off_first and abs(spread_second - variance) < 0.5 * abs(spread_first - variance)


@pytest.mark.parametrize("whole", SIZES)
def test_red_diff_is_exact_and_descends_to_the_posterior_mean(whole):
    total, random, *far, best = rows_of("red_diff", whole)
    # quadrature: the trapezium's error falls by 100 with ten times the steps
    assert abs(float(total.ours) - float(total.known)) < (0.002 if whole else 0.05)
    estimate, error = numbers(random.ours)
    assert abs(estimate - float(random.known)) < 4.5 * error and error < 1.0
    descending, at_random = zip(*(numbers(row.ours) for row in far), strict=True)
    assert max(descending) < 0.04  # the posterior's variance is 0.063 on average
    assert at_random[0] > 5 * descending[0] and at_random[1] > 3 * descending[1]
    if whole:  # three settings were tried, and one of them says otherwise
        assert best.ours.startswith("not reproduced: 5000 steps") and best.ours.count("1000 steps") == 2


@pytest.mark.parametrize("whole", SIZES)
def test_a_denoiser_as_a_prior_has_the_width_of_the_posterior(whole):
    error, spread, noise = rows_of("score_dvi", whole)
    least, noisy = numbers(error.known)
    assert float(error.ours) < 1.8 * least < 0.25 * noisy
    truth, narrow = numbers(spread.known)
    assert abs(float(spread.ours) - truth) < 0.1 * truth and narrow < 0.1 * truth
    for known, ours in zip(numbers(noise.known), numbers(noise.ours), strict=True):
        assert abs(ours / known - 1) < 0.25


@pytest.mark.parametrize("whole", SIZES)
def test_regimes_of_a_kernel_estimate(whole):
    program = module("kde_weights")
    for num in (2000, 30_000):
        few, normal = program.threshold(1, num), program.threshold(2, num)
        assert abs(program.DIM * program.nats(few, 1) - np.log(num)) < 1e-6 and few < normal
    rows = rows_of("kde_weights", whole)
    found, sized = rows[:5], rows[5:]
    assert len(sized) == (3 if whole else 1)
    for row in sized:
        sizes = [[float(x) for x in told.split(" ± ")] for told in row.ours.split(", ")]
        for (mean, error), (low, high) in zip(sizes, ((0.37, 0.54), (0.10, 0.18), (0.0, 0.024)), strict=True):
            assert low - 3 * error < mean < high + 3 * error
    for row in found[::2]:
        assert row.ours.startswith(f"{row.known} 1.00")
    largest = [float(row.ours.split("largest weight ")[1].split()[0]) for row in found]
    assert largest == sorted(largest, reverse=True) and largest[1] > 0.3 and largest[-1] < 0.024
