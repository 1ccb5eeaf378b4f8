"""Exact smoothing by the same call: against Kalman, enumeration and autodiff; what has no exact answer is
refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.smoothing import additive, smooth
from tests.smoothing.problems import (
    FINITE_Y,
    GAUSSIAN_Y,
    Finite,
    Gaussian,
    finite_exact,
    finite_paths,
    gaussian_exact,
    gaussian_smoother,
)
from tests.smoothing.test_smooth import (
    FUNCTIONALS,
    LOGITS,
    PARAMS,
    TABLE,
    evidence,
    finite,
    gaussian,
    kalman_log_evidence,
    student,
)

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
GIVEN = {**FUNCTIONALS, "score": additive.score()}


@pytest.fixture(scope="module")
def kalman():
    return smooth(gaussian, GIVEN, backward="exact").run(KEY, GAUSSIAN_Y, params=PARAMS)


@pytest.fixture(scope="module")
def sums():
    given = {
        **FUNCTIONALS,
        "counts": additive.transition_counts(3),
        "odd": lambda t, x_prev, x: jnp.where(x == 1, jnp.sin(1.0 + x_prev), 0.0),
    }
    return smooth(finite, given, backward="exact").run(KEY, FINITE_Y, params={"logits": LOGITS})


@pytest.mark.slow
def test_a_gaussian_model_against_kalman(kalman):
    for name, exact in gaussian_exact(Gaussian(), GAUSSIAN_Y).items():
        np.testing.assert_allclose(kalman.expectations[name], exact, rtol=1e-4)
    np.testing.assert_allclose(kalman.log_evidence, evidence(GAUSSIAN_Y), rtol=1e-5)
    np.testing.assert_allclose(kalman.log_evidence_increments[:2].sum(), evidence(GAUSSIAN_Y[:2]), rtol=1e-4)
    assert (
        kalman.ess is None
        and kalman.resampled is None
        and float(kalman.log_evidence_initial) == pytest.approx(0.0, abs=1e-6)
    )


def test_the_score_against_the_gradient_of_the_kalman_likelihood(kalman):
    theta = {"phi": jax.scipy.special.logit(0.95), "scale": jnp.log(0.6)}
    exact = jax.jit(jax.grad(kalman_log_evidence))(theta, jnp.asarray(GAUSSIAN_Y))
    for name, value in exact.items():
        np.testing.assert_allclose(kalman.expectations["score"][name], value, rtol=1e-3)


def test_a_finite_model_against_enumeration(sums):
    paths, probs = finite_paths(TABLE, FINITE_Y)
    pairs = np.eye(3)[paths]
    counts = np.einsum("p,pti,ptj->ij", probs, pairs[:, :-1], pairs[:, 1:])
    odd = (probs * np.where(paths[:, 1:] == 1, np.sin(1.0 + paths[:, :-1]), 0.0).sum(1)).sum()
    for name, exact in {**finite_exact(TABLE, FINITE_Y), "counts": counts, "odd": odd}.items():
        np.testing.assert_allclose(sums.expectations[name], exact, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_trajectories_are_draws_from_the_smoothing_law(kalman, sums):
    drawn = kalman.sample(num_samples=4000)
    mean, cov = gaussian_smoother(Gaussian(), GAUSSIAN_Y)
    xs = np.concatenate([np.asarray(drawn["x0"])[:, None], drawn["x"]], 1)
    np.testing.assert_allclose(xs.mean(0), mean, atol=4.5 * np.sqrt(np.diag(cov).max() / 4000))
    np.testing.assert_allclose(np.cov(xs.T), cov, atol=0.04)
    drawn = sums.sample(num_samples=4000)
    xs = np.concatenate([np.asarray(drawn["x0"])[:, None], drawn["x"]], 1)
    paths, probs = finite_paths(TABLE, FINITE_Y)
    for t in range(len(FINITE_Y)):
        for lag in (0, 1):
            exact = np.bincount(3 * paths[:, t] + paths[:, t + lag], probs, minlength=9)
            found = np.bincount(3 * xs[:, t] + xs[:, t + lag], minlength=9) / 4000
            assert (np.abs(found - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 4000) + 1e-6).all()


@pytest.mark.slow
def test_filtered_quantiles_are_those_of_many_particles(kalman):
    exact = kalman.filtered([0.1, 0.5, 0.9])["x"]
    drawn = (
        smooth(gaussian, None, 4000, "path")
        .run(KEY, GAUSSIAN_Y, params=PARAMS)
        .filtered([0.1, 0.5, 0.9])["x"]
    )
    assert exact.shape == (3, len(GAUSSIAN_Y))
    np.testing.assert_allclose(drawn, exact, atol=0.08)
    mean, cov = gaussian_smoother(Gaussian(), GAUSSIAN_Y)  # at the last time to filter is to smooth
    np.testing.assert_allclose(
        exact[:, -1], mean[-1] + np.sqrt(cov[-1, -1]) * np.array([-1.2816, 0.0, 1.2816]), rtol=1e-3
    )
    with pytest.raises(ArgumentError, match="levels"):
        kalman.filtered([0.0, 1.0])


@pytest.mark.slow
def test_the_report_has_what_an_exact_answer_has(kalman):
    report = kalman.to_arviz(num_samples=3)
    assert report.posterior["x"].shape == (1, 3, len(GAUSSIAN_Y)) and "ess" not in report.sample_stats
    np.testing.assert_allclose(
        report["log_predictive_one_step"]["y"].values[0, 0].sum(), kalman.log_evidence, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["cube", "size", pytest.param("positive", marks=pytest.mark.slow)])
def test_a_functional_without_a_closed_form_is_refused(name):
    given = {
        "cube": lambda t, x_prev, x: x**3,
        "size": lambda t, x_prev, x: jnp.abs(x),
        "positive": lambda t, x_prev, x: jnp.where(x > 0, 1.0, 0.0),
    }[name]
    with pytest.raises(ModelError, match=f"'{name}' has no closed form"):
        smooth(gaussian, {name: given}, backward="exact").run(KEY, GAUSSIAN_Y, params=PARAMS)


def test_a_model_without_an_exact_answer_is_refused():
    with pytest.raises(ModelError, match="No exact answer"):
        smooth(student, FUNCTIONALS, backward="exact").run(KEY, GAUSSIAN_Y)
    with pytest.raises(ModelError, match="series is empty"):
        smooth(gaussian, None, backward="exact").run(KEY, GAUSSIAN_Y[:0], params=PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 2])
def test_short_series(num_steps):
    run = smooth(finite, FUNCTIONALS, backward="exact").run(
        KEY, FINITE_Y[:num_steps], params={"logits": LOGITS}
    )
    for name, exact in finite_exact(Finite(), FINITE_Y[:num_steps]).items():
        np.testing.assert_allclose(run.expectations[name], exact, rtol=1e-4)
