"""What programs on rows and their privacy claim, at their small sizes."""

import re

from tests.papers.programs import claims


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_rows_by_their_sensitivity():
    *sds, mean, chain, kept = claims("sensitivity_subsampling")
    for row, less in zip(sds, (3.0, 8.0), strict=True):
        uniform, uneven = numbers(row.ours)
        assert uniform > less * uneven > 0
    assert abs(numbers(mean.ours)[0] - 1) < 1e-5  # single precision
    ratio, shift = numbers(chain.ours)
    # standard errors of some 150 effective draws
    assert abs(ratio - 1) < 4.5 * 300**-0.5 and shift < 4.5 * (2 / 150) ** 0.5
    least, most = numbers(kept.ours)
    assert least > 2 and most < 100


def test_a_regression_on_private_moments():
    *errors, alone, public = claims("private_regression")
    naive, with_public, aware, both = (numbers(row.ours)[0] for row in errors)
    assert aware < naive and both < with_public and both < 1.1
    for row in (alone, public):  # of twenty coefficients
        assert 0.9 - 4.5 * (0.9 * 0.1 / 20) ** 0.5 < numbers(row.ours)[0] <= 1
