"""What the program on universality claims, at its small size, and its parts against exact answers."""

import re

import numpy as np
import pytest

from tests.papers.programs import claims, module


def compared(row):
    """Means and standard errors of clusters, Gaussian, white."""
    return np.array(re.findall(r"\d\.\d+", row), float).reshape(3, 2).T


def same(mean, error, one, other):
    # five sets, so Student's t of eight degrees of freedom: 6.5 is a false alarm in 5,000
    return abs(mean[one] - mean[other]) < 6.5 * np.hypot(error[one], error[other])


def test_coins_do_not_see_the_clusters_and_signs_do():
    squares, logistic, penalty, signs = (compared(row.ours) for row in claims("gaussian_universality"))
    for rows in (squares, logistic):
        assert same(*rows, 0, 1) and same(*rows, 1, 2)
    # the loss of one set has the variance of a projected coin: at most 2 p (n - p) / n^2 by n, a half squared
    exact_error = (2 * 60 * 240 / 300**2 / 300 / 4 / 5) ** 0.5
    assert (np.abs(squares[0] - 0.4) < 4.5 * exact_error).all()
    assert same(*penalty, 0, 1)
    assert signs[0][1] - signs[0][0] > 4.5 * np.hypot(*signs[1][:2])


@pytest.mark.parametrize("penalty", [1e-3, 40.0])
def test_the_least_loss_of_squares_is_that_of_ridge_regression(penalty):
    program, rng = module("gaussian_universality"), np.random.default_rng(0)
    x, y = program.cloud(rng, "clusters"), rng.choice([-1.0, 1.0], program.ROWS)
    w = np.linalg.solve(x.T @ x + penalty * np.eye(program.COLUMNS), x.T @ y)
    exact = ((y - x @ w) ** 2).mean() / 2
    np.testing.assert_allclose(program.least_loss(x, y, penalty, "squares"), exact, rtol=1e-4)


def test_the_least_loss_of_a_logistic_regression_is_at_its_mode():
    from sklearn.linear_model import LogisticRegression

    program, rng = module("gaussian_universality"), np.random.default_rng(1)
    x, y = program.cloud(rng, "Gaussian"), rng.choice([-1.0, 1.0], program.ROWS)
    other = LogisticRegression(C=1 / 40, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x, y)
    exact = np.logaddexp(0.0, -y * (x @ other.coef_[0])).mean()
    np.testing.assert_allclose(program.least_loss(x, y, 40.0, "logistic"), exact, rtol=1e-4)


def test_the_two_clouds_have_one_covariance():
    program, rng = module("gaussian_universality"), np.random.default_rng(2)
    exact = np.diag(program.SPREAD**2) + np.outer(program.BETWEEN, program.BETWEEN)
    for kind, known in (("clusters", exact), ("Gaussian", exact), ("white", np.eye(program.COLUMNS))):
        x = np.concatenate([program.cloud(rng, kind) for _ in range(40)])
        error = np.sqrt((np.outer(np.diag(known), np.diag(known)) + known**2) / len(x))
        assert (np.abs(x.T @ x / len(x) - known) < 5.5 * error).all()
    sides = np.sign(program.cloud(rng, "clusters") @ program.BETWEEN)
    assert 0.35 < (sides > 0).mean() < 0.65
