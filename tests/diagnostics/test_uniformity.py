"""The test of uniform ranks, against every outcome there is."""

import itertools

import numpy as np
import pytest

from ppl_ext.diagnostics.calibration import uniformity
from ppl_ext.diagnostics.calibration.uniformity import uniformity_band, uniformity_p_value
from ppl_ext.errors import ArgumentError


@pytest.mark.parametrize(("num_ranks", "num_draws"), [(1, 1), (5, 3), (4, 6), (7, 2)])
def test_p_value_is_the_share_of_outcomes_at_least_as_extreme(num_ranks, num_draws):
    outcomes = [np.array(r) for r in itertools.product(range(num_draws + 1), repeat=num_ranks)]
    counts = np.stack([np.bincount(r, minlength=num_draws + 1).cumsum()[:-1] for r in outcomes])
    tails = uniformity._tails(num_ranks, num_draws)
    statistics = tails[np.arange(num_draws), counts].min(axis=1)
    for ranks, statistic in list(zip(outcomes, statistics, strict=True))[::7]:
        expected = (statistics <= statistic * (1 + 1e-9)).mean()
        assert uniformity_p_value(ranks, num_draws) == pytest.approx(expected, abs=1e-12)


def test_pointwise_tails_are_those_of_the_binomial():
    counts = np.random.default_rng(0).binomial(12, 0.25, 200_000)
    tail = uniformity._tails(12, 3)[0]
    for c in (1, 3, 6):
        expected = min(1.0, 2 * min((counts <= c).mean(), (counts >= c).mean()))
        assert abs(tail[c] - expected) < 4.5 * 2 * np.sqrt(0.25 / 200_000)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_ranks_leave_the_band_exactly_when_their_p_value_says_so(level):
    rng = np.random.default_rng(1)
    band = uniformity_band(60, 19, level)
    left = []
    for shape in np.linspace(0.5, 1.5, 200):
        ranks = np.floor(20 * rng.beta(shape, shape, 60)).astype(int)
        share = np.bincount(ranks, minlength=20).cumsum()[:-1] / 60
        out = bool(((share < band.lower - 1e-12) | (share > band.upper + 1e-12)).any())
        assert out == (uniformity_p_value(ranks, 19) <= 1.0 - level)
        left.append(out)
    assert any(left) and not all(left)


@pytest.mark.parametrize(("num_ranks", "num_draws"), [(200, 99), (1000, 20), (30, 400)])
def test_uniform_ranks_stay_in_the_band_as_often_as_promised(num_ranks, num_draws):
    # 1000 replicates at a level of 0.9, which discreteness may only exceed. False alarms: 1e-5 each.
    band = uniformity_band(num_ranks, num_draws, 0.9)
    ranks = np.random.default_rng(2).integers(0, num_draws + 1, (1000, num_ranks))
    share = np.stack([np.bincount(r, minlength=num_draws + 1).cumsum()[:-1] for r in ranks]) / num_ranks
    inside = ((share >= band.lower - 1e-12) & (share <= band.upper + 1e-12)).all(axis=1).mean()
    assert 0.9 - 4.3 * np.sqrt(0.09 / 1000) < inside < 0.93 + 4.3 * np.sqrt(0.09 / 1000)


def test_far_out_ranks_have_a_tiny_p_value():
    assert uniformity_p_value(np.zeros(200, int), 99) < 1e-12


def test_mistakes_are_named():
    for ranks in ([], [[1, 2]], [0.5], [-1], [10]):
        with pytest.raises(ArgumentError, match="ranks"):
            uniformity_p_value(ranks, 9)
    with pytest.raises(ArgumentError, match="level"):
        uniformity_band(10, 9, 1.0)
