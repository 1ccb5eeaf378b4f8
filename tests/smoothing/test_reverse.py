"""Scans that run backward: every filter, smoother and sampler against the same series turned round, in the
order of the inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC

from ppl_ext import log_density, marginal, normalize, simulate
from ppl_ext.algorithms import ExactFilter, ParticleFilter
from ppl_ext.errors import ModelError
from ppl_ext.infer import PMMH, ParticleGibbs
from ppl_ext.objectives import MarkovScoreClimbing
from ppl_ext.smoothing import (
    ConditionalSweep,
    OnlineEM,
    OnlineSmoother,
    ParisParticleGibbs,
    RecursiveMaximumLikelihood,
    ScoreAscent,
    SweptParticleFilter,
    additive,
    smooth,
)
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.filtering import Rules, paths, run_filter
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import multinomial

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

Y = np.array([0.0, 2.0, 4.0, 6.0, 3.0], np.float32)
# times that are not evenly spaced, so that inputs must be turned as well
GAPS = np.array([0.5, 1.0, 2.0, 0.3, 1.5], np.float32)
KEY = jax.random.key(0)
NOISE = 0.5


def backward(y, gaps):
    return _walk(y, gaps, True)


def forward(y, gaps):
    return _walk(y, gaps, False)


def _walk(y, gaps, reverse):
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(x_next, now):
        y_t, gap = now
        x = numpyro.sample("x", dist.Normal(0.9 * x_next + drift, jnp.sqrt(gap)))
        numpyro.sample("y", dist.Normal(x, NOISE), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(1.0, 1.0)), (y, gaps), reverse=reverse)


def states(y, gaps):
    """Kalman's answer for the reversed model, as one joint Gaussian: log evidence, mean and covariance of x
    (T + 1,), x0 at the end.
    """
    num = len(y) + 1
    moves = np.eye(num) - 0.9 * np.eye(num, k=1)  # x_t - 0.9 x_{t+1} = drift + noise, and x0 after the last
    spread = np.concatenate([gaps, [1.0]]).astype(np.float64)
    mean = np.linalg.solve(moves, np.concatenate([np.full(len(y), DRIFT), [1.0]]))
    prior = np.linalg.inv(moves.T @ np.diag(1 / spread) @ moves)
    inner = prior[:-1, :-1] + NOISE**2 * np.eye(len(y))
    rest, gain = y - mean[:-1], np.linalg.solve(inner, prior[:-1]).T
    log_z = -0.5 * (rest @ np.linalg.solve(inner, rest) + np.linalg.slogdet(2 * np.pi * inner)[1])
    return log_z, mean + gain @ rest, prior - gain @ prior[:-1]


DRIFT = 0.4
PARAMS = {"drift": DRIFT}
LOG_Z, MEAN, COVARIANCE = states(Y, GAPS)
ONE_LATE = {
    "late": lambda t, x_next, x: jnp.where(t == 1, x, 0.0),
    "pair": lambda t, x_next, x: jnp.where(t == 1, x_next * x, 0.0),
}
LATE = {"late": MEAN[1], "pair": COVARIANCE[1, 2] + MEAN[1] * MEAN[2]}


def test_exact_smoothing():
    result = smooth(backward, ONE_LATE, backward="exact").run(KEY, Y, GAPS, params=PARAMS)
    np.testing.assert_allclose(result.log_evidence, LOG_Z, rtol=1e-4)
    for name, exact in LATE.items():
        np.testing.assert_allclose(result.expectations[name], exact, rtol=1e-4)
    # The increments condition on later observations: the last input's comes first in the run.
    last = dist.Normal(0.9 + DRIFT, np.sqrt(0.81 + GAPS[-1] + NOISE**2)).log_prob(Y[-1])
    np.testing.assert_allclose(result.log_evidence_increments[-1], last, rtol=1e-4)
    draws = np.asarray(result.sample(num_samples=4000)["x"])
    np.testing.assert_allclose(
        draws.mean(0), MEAN[:-1], atol=4.5 * np.sqrt(np.diag(COVARIANCE)[:-1] / 4000).max()
    )
    assert abs(np.cov(draws.T)[0, 1] - COVARIANCE[0, 1]) < 0.03
    # the last of the run has seen everything
    np.testing.assert_allclose(result.filtered([0.5])["x"][0, 0], MEAN[0], rtol=1e-4)
    ahead = states(Y[-1:], GAPS[-1:])[1][0]
    np.testing.assert_allclose(result.filtered([0.5])["x"][0, -1], ahead, rtol=1e-4)


def test_moments_by_time():
    found = smooth_exactly(lower(backward, (Y, GAPS), {}, PARAMS))
    np.testing.assert_allclose(found.mean[:, 0], MEAN[:-1], rtol=1e-4)
    np.testing.assert_allclose(found.covariance[:, 0, 0], np.diag(COVARIANCE)[:-1], rtol=1e-4)
    np.testing.assert_allclose(found.cross[:, 0, 0], np.diag(COVARIANCE, 1)[:-1], rtol=1e-4)
    np.testing.assert_allclose(found.first_cross[0, 0], COVARIANCE[-1, -2], rtol=1e-4)


def turned(values):
    return np.asarray(values)[..., ::-1]


@pytest.mark.parametrize(
    "backward_kernel",
    ["mcmc", *(pytest.param(k, marks=pytest.mark.slow) for k in ("path", "dense", "hybrid"))],
)
def test_it_is_the_forward_run_on_turned_data_to_the_last_bit(backward_kernel):
    """Particles know nothing of order, so that the results of one key are equal, by time the other way."""
    statistics = {"s": additive.score(), "x": lambda t, x_prev, x: x_prev * x}
    there = smooth(backward, statistics, 20, backward_kernel).run(KEY, Y, GAPS, params=PARAMS)
    back = smooth(forward, statistics, 20, backward_kernel).run(KEY, Y[::-1], GAPS[::-1], params=PARAMS)
    assert there.log_evidence == back.log_evidence and there.log_evidence_initial == back.log_evidence_initial
    jax.tree.map(np.testing.assert_array_equal, there.expectations, back.expectations)
    for name in ("log_evidence_increments", "ess", "resampled"):
        np.testing.assert_array_equal(getattr(there, name), turned(getattr(back, name)))
    np.testing.assert_array_equal(there.sample(num_samples=3)["x"], turned(back.sample(num_samples=3)["x"]))
    np.testing.assert_array_equal(there.filtered()["x"], turned(back.filtered()["x"]))


@pytest.mark.slow
def test_the_time_of_a_functional_is_that_of_the_input():
    smoother = smooth(backward, ONE_LATE, 500, "dense")
    found = jax.jit(jax.vmap(lambda key: smoother.run(key, Y, GAPS, params=PARAMS).expectations))(
        jax.random.split(KEY, 20)
    )
    for name, exact in LATE.items():
        assert abs(np.mean(found[name]) - exact) < 4.5 * np.std(found[name]) / np.sqrt(20) + 0.02


def test_a_report_by_time():
    report = (
        smooth(backward, None, backward="exact").run(KEY, Y, GAPS, params=PARAMS).to_arviz(num_samples=2000)
    )
    found = report.posterior["x"].mean(("chain", "draw")).values
    np.testing.assert_allclose(found, MEAN[:-1], atol=0.1)
    np.testing.assert_array_equal(report.observed_data["y"].values, Y)


@pytest.mark.slow
def test_particle_gibbs_for_smoothing():
    result = ParisParticleGibbs(backward, ONE_LATE, 30, num_sweeps=400, burn_in=50).run(
        KEY, Y, GAPS, params=PARAMS
    )
    np.testing.assert_allclose(result.trajectories["x"].mean((0, 1)), MEAN[:-1], atol=0.2)
    np.testing.assert_allclose(result.expectations["late"], LATE["late"], atol=0.1)
    there = ParisParticleGibbs(backward, None, 5, num_sweeps=4, burn_in=0).run(KEY, Y, GAPS, params=PARAMS)
    back = ParisParticleGibbs(forward, None, 5, num_sweeps=4, burn_in=0).run(
        KEY, Y[::-1], GAPS[::-1], params=PARAMS
    )
    for name in ("renewed", "ess"):
        ours, theirs = np.asarray(getattr(there, name)), np.asarray(getattr(back, name))
        np.testing.assert_array_equal(ours[..., 0], theirs[..., 0])
        np.testing.assert_array_equal(ours[..., 1:], turned(theirs[..., 1:]))


@pytest.mark.parametrize("algorithm", [ParticleFilter(4), SweptParticleFilter(3, num_sweeps=2)])
def test_a_posterior_as_a_program(algorithm):
    """A draw's density is p(x, y) / Z-hat at the draw, which the core scores in the order of the inputs."""
    posterior = normalize(backward, {"drift": DRIFT}, algorithm)

    def one(key):
        draw = simulate(posterior, y, GAPS, rng_key=key)
        joint = log_density(backward, {**draw.values, **PARAMS}, y, GAPS).total
        return draw.values["x"], joint - draw.log_density.total - dist.Normal(0.0, 1.0).log_prob(DRIFT)

    y = Y / 4  # near enough that few particles find it
    log_evidence, mean, _ = states(y, GAPS)
    x, log_z = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    # E[Z-hat] = Z, and the weight turns draws into posterior ones: the mean is right for any number of
    # particles.
    weights = np.exp(np.asarray(log_z, np.float64) - log_evidence)
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / np.sqrt(4000)
    off = weights[:, None] * (np.asarray(x) - mean[:-1])
    assert (np.abs(off.mean(0)) < 4.5 * off.std(0) / np.sqrt(4000)).all()


def test_a_path_that_is_given_comes_back():
    ss = lower(backward, (Y, GAPS), {}, PARAMS)
    path = {"x0": jnp.array(0.3), "x": jnp.arange(5.0)}
    run = run_filter(ss, Rules(3, multinomial, 1.0), KEY, keep_history=True, through=path)
    jax.tree.map(np.testing.assert_array_equal, paths(ss, run, jnp.array(0)), path)


def test_evidence_as_a_marginal():
    kept = marginal(backward, ["drift"], ExactFilter())
    exact = LOG_Z + dist.Normal(0.0, 1.0).log_prob(DRIFT)
    np.testing.assert_allclose(log_density(kept, PARAMS, Y, GAPS).total, exact, rtol=1e-4)
    estimate = log_density(
        marginal(backward, ["drift"], ParticleFilter(50_000)), PARAMS, Y, GAPS, rng_key=KEY
    ).total
    assert abs(estimate - exact) < 0.2


def test_values_of_a_step_stand_in_the_order_of_the_inputs():
    x = np.linspace(-1.0, 2.0, 5, dtype=np.float32)
    given = lower(backward, (Y, GAPS), {}, {**PARAMS, "x": x, "x0": 0.5})
    particle, total = given.initial({}).particle, 0.0
    for t in range(5):
        step = given.step(particle, {}, given.inputs(t))
        particle, total = step.particle, total + step.log_emission
    np.testing.assert_allclose(
        total + given.log_prior,
        log_density(backward, {**PARAMS, "x": x, "x0": 0.5}, Y, GAPS).total,
        rtol=1e-5,
    )


def test_numpyros_handlers_are_read_in_the_order_of_the_run():
    """As NumPyro does; the core agrees with it."""
    conditioned = numpyro.handlers.condition(lambda gaps: _walk(None, gaps, True), {"y": jnp.asarray(Y)})
    ss = lower(conditioned, (GAPS,), {}, PARAMS)
    np.testing.assert_allclose(smooth_exactly(ss).log_evidence, states(Y[::-1], GAPS)[0], rtol=1e-4)


def finite(y):
    def step(k, y_t):
        k = numpyro.sample("k", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[k]))
        numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[k], 1.0), obs=y_t)
        return k, None

    scan(step, numpyro.sample("k0", dist.Categorical(jnp.array([0.5, 0.5]))), y, reverse=True)


def test_finite_states():
    y = np.array([-1.0, -2.0, 3.0], np.float32)
    result = smooth(finite, {"first": lambda t, k_next, k: jnp.where(t == 0, k, 0)}, backward="exact").run(
        KEY, y
    )
    move, total, ones = np.array([[0.8, 0.2], [0.3, 0.7]]), 0.0, np.zeros(3)
    for path in np.ndindex(2, 2, 2, 2):  # k_0, k_1, k_2, k0
        weight = 0.5 * move[path[3], path[2]] * move[path[2], path[1]] * move[path[1], path[0]]
        weight *= np.prod(
            [np.exp(-0.5 * (y[t] - (2 * path[t] - 1)) ** 2) / np.sqrt(2 * np.pi) for t in range(3)]
        )
        total, ones = total + weight, ones + weight * np.array(path[:3])
    np.testing.assert_allclose(result.log_evidence, np.log(total), rtol=1e-5)
    np.testing.assert_allclose(result.expectations["first"], (ones / total)[0], rtol=1e-5)
    np.testing.assert_allclose(result.sample(num_samples=4000)["k"].mean(0), ones / total, atol=0.04)
    report = smooth_exactly(lower(finite, (y,)))
    np.testing.assert_allclose(report.probs[:, 1], ones / total, rtol=1e-4)


@pytest.mark.slow
def test_particle_gibbs_for_parameters():
    mcmc = MCMC(ParticleGibbs(backward, 10), num_warmup=200, num_samples=3000, progress_bar=False)
    mcmc.run(KEY, Y, GAPS, extra_fields=("renewed",))
    draws = {n: np.asarray(v) for n, v in mcmc.get_samples().items()}
    grid = np.linspace(-4, 4, 401)
    log_p = np.array([_evidence(d) - 0.5 * d**2 for d in grid])
    weights = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    means = sum(w * _mean(d) for w, d in zip(weights, grid, strict=True))
    assert abs(draws["drift"].mean() - weights @ grid) < 0.1
    np.testing.assert_allclose(draws["x"].mean(0), means[:-1], atol=0.15)


def _mean(drift):
    return _at(drift)[1]


def _evidence(drift):
    return _at(drift)[0]


def _at(drift):
    global DRIFT
    old, DRIFT = DRIFT, drift
    try:
        return states(Y, GAPS)
    finally:
        DRIFT = old


def test_particle_gibbs_hands_out_states_by_input():
    mcmc = MCMC(ParticleGibbs(backward, 20), num_warmup=50, num_samples=200, progress_bar=False)
    mcmc.run(KEY, Y, GAPS)
    x = np.asarray(mcmc.get_samples()["x"]).mean(0)
    assert np.abs(x - Y).max() < 1.5 < np.abs(x - Y[::-1]).max() - 1.0  # noise of 0.5


@pytest.mark.slow
def test_marginal_metropolis():
    mcmc = MCMC(PMMH(backward, 200), num_warmup=500, num_samples=3000, progress_bar=False)
    mcmc.run(KEY, Y, GAPS)
    grid = np.linspace(-4, 4, 401)
    log_p = np.array([_evidence(d) - 0.5 * d**2 for d in grid])
    weights = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    assert abs(np.asarray(mcmc.get_samples()["drift"]).mean() - weights @ grid) < 0.2


@pytest.mark.slow
def test_score_ascent():
    found = (
        ScoreAscent(backward, optax.adam(0.05), 30)
        .run(KEY, 300, Y, GAPS, params={"drift": 0.0})
        .params["drift"]
    )
    grid = np.linspace(-4, 4, 401)
    assert abs(found - grid[np.argmax([_evidence(d) for d in grid])]) < 0.1


@pytest.mark.parametrize("learner", [OnlineSmoother, RecursiveMaximumLikelihood, OnlineEM])
def test_a_stream_has_no_end_to_begin_at(learner):
    more = {
        OnlineSmoother: (),
        RecursiveMaximumLikelihood: (lambda t: 1 / t,),
        OnlineEM: (lambda *x: x[0], lambda s: {"drift": s}),
    }
    with pytest.raises(
        ModelError, match="reverse=True, so it begins at the last observation, and a stream has none"
    ):
        learner(backward, *more[learner]).init(KEY, 0.0, 1.0, params=PARAMS)


def guide(y, gaps):
    return _guide(y, True)


def _guide(y, reverse):
    x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))

    def step(carry, y_t):
        return carry, numpyro.sample("x", dist.Normal(y_t, 0.5))

    scan(step, x0, y, reverse=reverse)


@pytest.mark.parametrize("guided", [True, False])
def test_a_conditional_sweep_keeps_the_order(guided):
    given = numpyro.handlers.condition(backward, {"drift": jnp.array(DRIFT)})
    move = ConditionalSweep(50, guided=guided, backward="dense")

    def program(key, values):
        with numpyro.handlers.seed(rng_seed=key):
            return move(_bound(given), _bound(guide), values).values

    start = simulate(_bound(guide), rng_key=KEY).values
    chain = jax.jit(lambda keys: jax.lax.scan(lambda v, k: (program(k, v),) * 2, start, keys)[1])(
        jax.random.split(KEY, 500)
    )
    np.testing.assert_allclose(np.asarray(chain["x"])[50:].mean(0), MEAN[:-1], atol=0.15)
    assert MarkovScoreClimbing(move) is not None


def test_guide_and_model_run_the_same_way():
    given = numpyro.handlers.condition(backward, {"drift": jnp.array(DRIFT)})
    values = simulate(_bound(guide), rng_key=KEY).values
    with (
        numpyro.handlers.seed(rng_seed=0),
        pytest.raises(ModelError, match="one runs backward; both must run the same way"),
    ):
        ConditionalSweep(5)(_bound(given), lambda: _guide(Y, False), values)


def _bound(program):
    return lambda: program(Y, GAPS)
