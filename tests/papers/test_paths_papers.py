"""What programs about states, processes and fields claim, at their small sizes and whole."""

import re

import numpy as np
import pytest

from tests.papers.programs import claims, module
from tools.papers import Claim


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def whole(name):
    return [Claim(*row) for row in module(name).claims()]


def test_a_meta_prior_that_is_too_large_ignores_the_data():
    middle, large = (numbers(row.ours) for row in claims("pv_rnn"))
    exact, coin = numbers(claims("pv_rnn")[0].known)
    # 200 symbols: the filter itself is known to some 0.04 nats, the differences to what is printed
    assert 0.4 < exact < coin < 0.7
    assert middle[0] < large[0] - 0.02 and middle[0] > -4.5 * middle[1]


def test_the_filter_of_two_states_is_a_sum_over_paths():
    program, y = module("pv_rnn"), np.array([1.0, 0.0, 1.0, 1.0])
    chances = []
    for t in range(len(y)):
        total = {0: 0.0, 1: 0.0}
        for path in np.ndindex(*(2,) * (t + 1)):
            p = 0.5
            for s in range(t + 1):
                if s:
                    p *= program.STAY if path[s] == path[s - 1] else 1 - program.STAY
                if s < t:
                    p *= program.RIGHT if path[s] == y[s] else 1 - program.RIGHT
            for shown in (0, 1):
                total[shown] += p * (program.RIGHT if path[t] == shown else 1 - program.RIGHT)
        chances.append(total[1] / (total[0] + total[1]))
    np.testing.assert_allclose([*program.exact(y)], chances, rtol=1e-12)


@pytest.mark.slow
def test_the_error_of_the_next_symbol_is_a_u_in_the_meta_prior():
    off, errors = np.array([numbers(row.ours) for row in whole("pv_rnn")]).T
    best = off.argmin()
    assert 0 < best < len(off) - 1
    for end in (0, -1):  # of one series, so that the two go together
        assert off[end] - off[best] > 2 * errors[end]
    assert (off > -4.5 * errors).all()
