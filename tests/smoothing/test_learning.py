"""Learning parameters: against the maximum of the Kalman likelihood, and against the truth on long
streams.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.smoothing import OnlineEM, RecursiveMaximumLikelihood, ScoreAscent, additive, smooth
from tests.smoothing.test_smooth import gaussian, kalman_log_evidence


def series(num, phi=0.8, scale=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(), np.zeros(num, np.float32)
    for t in range(num):
        x = phi * x + scale * rng.normal()
        y[t] = x + 0.7 * rng.normal()
    return y


def to_theta(params):
    return {"phi": jax.scipy.special.logit(0.5 * (params["phi"] + 1.0)), "scale": jnp.log(params["scale"])}


@pytest.mark.slow
def test_score_ascent_reaches_the_maximum_of_the_kalman_likelihood():
    y = series(60)
    ascent = ScoreAscent(gaussian, optax.adam(0.05), num_particles=30)
    learned = ascent.run(jax.random.key(0), 400, y, params={"phi": 0.2, "scale": 1.0})
    assert learned.iterates["phi"].shape == (400,)
    slope = jax.grad(kalman_log_evidence)(to_theta(learned.params), jnp.asarray(y))
    curvature = jax.hessian(kalman_log_evidence)(to_theta(learned.params), jnp.asarray(y))
    matrix = np.array([[curvature[a][b] for b in ("phi", "scale")] for a in ("phi", "scale")])
    # One Newton step from here would move by a small part of a posterior standard deviation.
    away = np.linalg.solve(-matrix, np.array([slope["phi"], slope["scale"]]))
    assert (np.abs(away) < 0.25 * np.sqrt(np.diag(np.linalg.inv(-matrix)))).all()


@pytest.mark.slow
def test_recursive_maximum_likelihood_finds_the_parameters_of_a_stream():
    y = series(3000)
    learner = RecursiveMaximumLikelihood(gaussian, lambda t: 2.0 * (t + 20.0) ** -0.6, num_particles=100)
    state = learner.init(jax.random.key(0), y[0], params={"phi": 0.2, "scale": 1.0})
    for y_t in y:
        state = learner.step(state, y_t)
    assert (
        abs(float(state.smoother.params["phi"]) - 0.8) < 0.1
        and abs(float(state.smoother.params["scale"]) - 0.5) < 0.15
    )


def statistics(x_prev, x, y_t):
    return {"before": x_prev**2, "cross": x_prev * x, "after": x**2}


def maximize(s):
    phi = s["cross"] / s["before"]
    return {"phi": phi, "scale": jnp.sqrt(jnp.maximum(s["after"] - phi * s["cross"], 1e-6))}


@pytest.mark.slow
def test_online_em_finds_the_parameters_of_a_stream():
    y = series(3000)
    learner = OnlineEM(gaussian, statistics, maximize, num_particles=100)
    state = learner.init(jax.random.key(0), y[0], params={"phi": 0.2, "scale": 1.0})
    for y_t in y:
        state = learner.step(state, y_t)
    assert (
        abs(float(state.smoother.params["phi"]) - 0.8) < 0.12
        and abs(float(state.smoother.params["scale"]) - 0.5) < 0.17
    )


@pytest.mark.slow
def test_the_score_of_paris_varies_half_as_much_as_that_of_paths():
    y, keys = series(1600), jax.random.split(jax.random.key(0), 50)
    spread = {}
    for backward in ("mcmc", "path"):
        smoother = smooth(gaussian, {"score": additive.score()}, 100, backward)
        run = jax.jit(
            lambda keys, smoother=smoother: jax.lax.map(
                lambda key: smoother.run(key, y, params={"phi": 0.8, "scale": 0.5}).expectations["score"],
                keys,
            )
        )
        spread[backward] = {name: float(np.std(x)) for name, x in run(keys).items()}
    for name, path in spread["path"].items():
        assert spread["mcmc"][name] < 0.5 * path, spread


def test_what_cannot_work_is_refused():
    with pytest.raises(ArgumentTypeError, match="optax"):
        ScoreAscent(gaussian, 0.1)
    with pytest.raises(ArgumentError, match="at least 2"):
        ScoreAscent(gaussian, optax.sgd(0.1), num_particles=1)
    with pytest.raises(ArgumentTypeError, match="step_size"):
        RecursiveMaximumLikelihood(gaussian, 0.1)
    learner = OnlineEM(gaussian, statistics, lambda s: {"phi": s["cross"]})
    with pytest.raises(ArgumentError, match="'scale'"):
        learner.step(learner.init(jax.random.key(0), 0.1, params={"phi": 0.2, "scale": 1.0}), 0.1)
