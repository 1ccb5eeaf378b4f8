"""What a fit is said to be worth."""

import numpy as np
import pytest

from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.report.summary import MAX_ROWS, importance, sentences, table, worst_r_hat

RNG = np.random.default_rng(0)


def draws_with(log_weights, values=None, points=()):
    log_weights = np.asarray(log_weights, float)
    values = {"x": RNG.normal(size=log_weights.shape)} if values is None else values
    return Draws(values, log_weights, np.zeros_like(log_weights), log_weights, points)


def test_elbo_and_its_standard_error():
    log_weights = RNG.normal(-3.0, 0.5, (2, 100))
    weights = importance(draws_with(log_weights))
    np.testing.assert_allclose(weights.elbo, log_weights.mean(1))
    np.testing.assert_allclose(weights.elbo_se, log_weights.std(1, ddof=1) / 10.0)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_bad_weights_do_not_break_the_summary(value):
    log_weights = np.zeros((2, 100))
    log_weights[0, 3] = value
    weights = importance(draws_with(log_weights))
    np.testing.assert_equal(weights.elbo, [value, 0.0])
    text = sentences(draws_with(log_weights), weights)
    assert text.startswith(f"chain 0: ELBO {value:.2f}")


def test_a_single_draw_of_a_single_chain():
    draws = draws_with([[1.0]])
    weights = importance(draws)
    assert weights.elbo == 1.0 and np.isnan(weights.elbo_se)
    assert "r_hat" not in table(draws.values) and "R-hat" not in sentences(draws, weights)


def test_restarts_that_differ_are_found():
    same, apart = RNG.normal(size=(2, 200)), RNG.normal(size=(2, 200)) + np.array([[0.0], [5.0]])
    assert worst_r_hat({"same": same})[1] < 1.05
    site, r_hat = worst_r_hat(
        {"same": same, "apart": np.stack([same, apart], -1), "constant": np.ones((2, 200))}
    )
    assert site == "apart" and r_hat > 2.0
    assert worst_r_hat({"same": same[:1]}) is None and worst_r_hat({"constant": np.ones((2, 200))}) is None


def test_long_sites_are_cut_with_a_word():
    text = table({"x": RNG.normal(size=(1, 10, MAX_ROWS + 3))})
    assert f"x[{MAX_ROWS - 1}]" in text and f"x[{MAX_ROWS}]" not in text and "x: 3 more rows" in text
