"""What programs on forecasts and decisions claim, at their small sizes."""

import re

import pytest

from tests.papers.programs import claims, module
from tools.papers import Claim


def assert_cheaper(rows):
    """No order is cheaper than the best one, costs being exact; and the draws' quantile is cheaper than those
    of normal laws.
    """
    for row in rows:
        best, same, plain = (float(x) for x in re.findall(r"\d+\.\d+", row.known))
        ours = float(row.ours)
        assert best <= ours < plain
        assert ours < same


def test_an_order_by_the_quantile_of_a_forecast():
    assert_cheaper(claims("newsvendor"))


@pytest.mark.slow
def test_an_order_over_more_histories():
    assert_cheaper([Claim(*row) for row in module("newsvendor").claims()])
