"""Data that nothing survives: the evidence is 0, the step is named, and whatever follows is NaN, in every
filter, smoother and sampler.
"""

import warnings

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
from ppl_ext.algorithms import Enumeration, ExactFilter, ImportanceSampling, ParticleFilter
from ppl_ext.errors import NonFiniteError
from ppl_ext.infer import PMMH, ParticleGibbs
from ppl_ext.objectives import ELBO
from ppl_ext.smoothing import (
    OnlineSmoother,
    ParisParticleGibbs,
    RecursiveMaximumLikelihood,
    ScoreAscent,
    SweptParticleFilter,
    smooth,
)
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)
SLOW = pytest.mark.slow
TRANSITION = np.array([[0.8, 0.2], [0.3, 0.7]], np.float32)
EMISSION = np.array([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0]], np.float32)  # the third symbol is impossible


def symbols(y, reverse=False):
    def step(k, y_t):
        k = numpyro.sample("k", dist.Categorical(jnp.asarray(TRANSITION)[k]))
        numpyro.factor("y", jnp.log(jnp.asarray(EMISSION)[k, y_t]))
        return k, None

    scan(step, numpyro.sample("k0", dist.Categorical(jnp.array([0.5, 0.5]))), y, reverse=reverse)


def walls(y, first=0.0):
    """Real states behind a wall at 5, whatever they are; exact by Kalman's recursions."""
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))
    x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))
    numpyro.factor("first", jnp.where(first > 5.0, -jnp.inf, 0.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x + drift, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        numpyro.factor("wall", jnp.where(y_t > 5.0, -jnp.inf, 0.0))
        return x, None

    scan(step, x0, y)


PARAMS = {"drift": 0.1}
SYMBOLS = (symbols, {}, "k", np.array([0, 2, 1, 0]), np.array([0, 1, 1, 0]))
WALLS = (
    walls,
    PARAMS,
    "x",
    np.array([0.3, 9.0, 0.1, 0.2], np.float32),
    np.array([0.3, 1.0, 0.1, 0.2], np.float32),
)
SUM = {"sum": lambda t, x_prev, x: x * 1.0, "first": lambda t, x_prev, x: jnp.where(t == 0, x, 0.0)}


def all_nan(x):
    x = np.asarray(x)
    return x.size > 0 and np.isnan(x).all()


def finite(x):
    return bool(np.isfinite(np.asarray(x)).all())


def check_run(smoother, params, site, y, at, before, after):
    """``before`` and ``after`` the impossible one, by time of the run."""
    with pytest.warns(UserWarning, match=f"step {at}: .*|no state allows step {at}: ") as told:
        result = smoother.run(KEY, y, params=params)
    assert len([w for w in told if "step" in str(w.message)]) == 1
    assert result.log_evidence == -np.inf and result.log_evidence_increments[at] == -np.inf
    assert finite(result.log_evidence_increments[before]) and all_nan(result.log_evidence_increments[after])
    if result.ess is not None:
        assert result.ess[at] == 0 and finite(result.ess[before]) and all_nan(result.ess[after])
    assert all(all_nan(x) for x in result.expectations.values())
    assert all_nan(result.sample(num_samples=3)[site])
    seen = np.asarray(result.filtered()[site], np.float64)
    assert finite(seen[:, before]) and all_nan(seen[:, at]) and all_nan(seen[:, after])
    report = result.to_arviz(num_samples=3)
    assert all_nan(report.posterior[site].values) and report.attrs["log_evidence"] == -np.inf


@pytest.mark.parametrize("problem", [SYMBOLS, pytest.param(WALLS, marks=SLOW)], ids=["symbols", "walls"])
@pytest.mark.parametrize(
    "backward", ["exact", "mcmc", *(pytest.param(b, marks=SLOW) for b in ("path", "dense", "hybrid"))]
)
def test_smoothing(problem, backward):
    model, params, site, impossible, possible = problem
    smoother = smooth(model, SUM, 50, backward)
    check_run(smoother, params, site, impossible, 1, slice(0, 1), slice(2, None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = smoother.run(KEY, possible, params=params)
    assert (
        finite(result.log_evidence_increments)
        and finite(result.sample(num_samples=3)[site])
        and finite(result.expectations["sum"])
    )
    assert jnp.issubdtype(result.sample(num_samples=3)[site].dtype, jnp.integer) == (site == "k")


def test_a_reversed_series_names_the_input():
    y = np.array([0, 1, 2, 1, 0])
    check_run(smooth(lambda y: symbols(y, True), SUM, 50), {}, "k", y, 2, slice(3, None), slice(0, 2))


@pytest.mark.parametrize("backward", ["mcmc", "exact"])
def test_before_the_first_step(backward):
    with pytest.warns(UserWarning, match="what is observed before the scan"):
        result = smooth(walls, SUM, 20, backward).run(KEY, np.ones(2, np.float32), 9.0, params=PARAMS)
    assert result.log_evidence == result.log_evidence_initial == -np.inf
    assert all_nan(result.log_evidence_increments) and all_nan(result.expectations["sum"])
    assert result.ess is None or all_nan(result.ess)


def test_within_a_trace_nothing_is_said_and_all_is_nan():
    model, params, site, impossible, possible = WALLS
    smoother = smooth(model, SUM, 20)

    def one(y):
        run = smoother.run(KEY, y, params=params)
        return run.log_evidence, run.ess, run.expectations, run.sample(num_samples=2)

    log_evidence, ess, sums, draws = jax.jit(jax.vmap(one))(np.stack([impossible, possible]))
    assert (
        log_evidence[0] == -np.inf
        and ess[0, 1] == 0
        and all_nan(ess[0, 2:])
        and all_nan(sums["sum"][0])
        and all_nan(draws["x"][0])
    )
    assert finite(log_evidence[1]) and finite(ess[1]) and finite(sums["sum"][1]) and finite(draws["x"][1])


def test_a_stream():
    model, params, _, impossible, _ = WALLS
    online = OnlineSmoother(model, SUM, 20)
    state = online.init(KEY, impossible[0], 0.0, params=params)
    for t, y_t in enumerate(impossible):
        state = online.step(state, y_t, 0.0)
        if t == 0:
            assert finite(online.result(state).expectations["sum"])
            continue
        with pytest.warns(
            UserWarning, match="OnlineSmoother: no particle survives step 1: all 20 weights are zero"
        ):
            result = online.result(state)
        assert (
            result.log_evidence == -np.inf
            and all_nan(result.expectations["sum"])
            and all_nan(result.expectations["first"])
        )


def test_densities_that_are_nan_are_counted():
    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.factor("y", jnp.log(y_t))
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    with pytest.warns(
        UserWarning, match="no particle survives step 1: .* 20 densities were NaN, which counts as zero"
    ):
        smooth(model, None, 20).run(KEY, np.array([1.0, -1.0, 1.0], np.float32))


def test_sweeps():
    model, params, _, impossible, possible = WALLS
    ppg = ParisParticleGibbs(model, SUM, 10, num_sweeps=4, burn_in=1)
    with pytest.warns(
        UserWarning, match="no particle survives step 1 in sweep 0 of chain 0: all 10 weights are zero"
    ):
        result = ppg.run(KEY, impossible, params=params)
    assert all_nan(result.expectations["sum"]) and all_nan(result.trajectories["x"])
    assert (result.ess[..., 2] == 0).all() and all_nan(result.ess[..., 3:]) and finite(result.ess[..., :2])
    result = ppg.run(KEY, possible, params=params)
    assert finite(result.expectations["sum"]) and finite(result.trajectories["x"]) and finite(result.ess)


@pytest.mark.parametrize("problem", [SYMBOLS, WALLS], ids=["symbols", "walls"])
def test_exact_moments(problem):
    model, params, _, impossible, possible = problem
    found = smooth_exactly(lower(model, (impossible,), {}, params))
    assert (
        found.log_evidence == -np.inf
        and all_nan(found.mean)
        and all_nan(found.cross)
        and all_nan(found.initial_mean)
    )
    assert (
        finite(found.filtered_mean[0])
        and all_nan(found.filtered_mean[1:])
        and all_nan(found.filtered_covariance[1:])
    )
    assert all(finite(x) for x in jax.tree.leaves(smooth_exactly(lower(model, (possible,), {}, params))))


def rare():
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.5])))
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("never", jnp.where(x < jnp.inf, -jnp.inf, 0.0 * k))


def two():
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.5])))
    numpyro.factor("never", jnp.where(k >= 0, -jnp.inf, 0.0))


DRAWN = [
    (lambda: symbols(SYMBOLS[3]), {}, ParticleFilter(5)),
    (rare, {}, ImportanceSampling(3)),
    (two, {}, Enumeration()),
    (lambda: symbols(SYMBOLS[3]), {}, SweptParticleFilter(3, num_sweeps=2)),
    (lambda: walls(WALLS[3]), PARAMS, ParticleFilter(5)),
]


@pytest.mark.parametrize(("program", "data", "algorithm"), DRAWN)
def test_a_posterior_of_what_is_impossible(program, data, algorithm):
    posterior = normalize(program, data, algorithm)
    with pytest.warns(UserWarning, match="nothing that the algorithm drew is possible given the data"):
        draw = simulate(posterior, rng_key=KEY)
    for x in draw.values.values():
        assert (x == jnp.iinfo(x.dtype).min).all() if jnp.issubdtype(x.dtype, jnp.integer) else all_nan(x)
    assert np.isnan(draw.log_density.total)
    inside = jax.jit(lambda key: dict(simulate(posterior, rng_key=key).values))(KEY)
    jax.tree.map(np.testing.assert_array_equal, inside, dict(draw.values))
    if isinstance(algorithm, SweptParticleFilter):  # its draws have no gradient
        return
    model = numpyro.handlers.condition(program, data)
    # a draw of weight zero, and no NaN
    assert jax.jit(lambda key: ELBO().loss(key, {}, model, posterior))(KEY) == jnp.inf


def test_possible_draws_are_as_they_were():
    posterior = normalize(lambda: symbols(SYMBOLS[4]), {}, ParticleFilter(5))
    draw = simulate(posterior, rng_key=KEY)
    assert set(np.unique(draw.values["k"])) <= {0, 1} and np.isfinite(draw.log_density.total)


def test_evidence_is_zero():
    assert log_density(marginal(walls, ["drift"], ExactFilter()), PARAMS, WALLS[3]).total == -jnp.inf
    assert (
        log_density(marginal(walls, ["drift"], ParticleFilter(5)), PARAMS, WALLS[3], rng_key=KEY).total
        == -jnp.inf
    )


def test_a_guess_that_excludes_everyone_is_none():
    """An auxiliary filter whose look-ahead is zero everywhere keeps its weights: the evidence is unbiased all
    the same.
    """
    y = np.array([0.3, 1.0, 0.1], np.float32)
    filtered = marginal(
        walls, ["drift"], ParticleFilter(5, threshold=1.0, look_ahead=lambda p, carry, x: -jnp.inf)
    )
    exact = log_density(marginal(walls, ["drift"], ExactFilter()), PARAMS, y).total
    log_w = jax.jit(jax.vmap(lambda key: log_density(filtered, PARAMS, y, rng_key=key).total))(
        jax.random.split(KEY, 5000)
    )
    ratio = np.exp(np.asarray(log_w, np.float64) - float(exact))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(5000)


def test_marginal_metropolis_says_where_it_begins():
    mcmc = MCMC(PMMH(walls, 10), num_warmup=2, num_samples=2, progress_bar=False)
    with pytest.warns(
        UserWarning,
        match="PMMH: at its first parameters: no particle survives step 1 of the run: all 10 weights",
    ):
        mcmc.run(KEY, WALLS[3])


@SLOW
def test_particle_gibbs_has_no_path():
    mcmc = MCMC(ParticleGibbs(symbols, 10), num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(KEY, SYMBOLS[3])
    assert (mcmc.get_samples()["k"] == np.iinfo(np.int32).min).all()
    # NumPyro's own, where parameters meet a density of 0
    with pytest.raises(RuntimeError, match="Cannot find valid initial parameters"):
        MCMC(ParticleGibbs(walls, 10), num_warmup=2, num_samples=2, progress_bar=False).run(KEY, WALLS[3])


@SLOW
def test_learning():
    with pytest.raises(
        NonFiniteError, match="score of 'drift' is not finite at step 0.*Where no particle survives"
    ):
        ScoreAscent(walls, optax.adam(0.1), 10).run(KEY, 3, WALLS[3], params=PARAMS)
    learner = RecursiveMaximumLikelihood(walls, lambda t: 1 / t, 10)
    state = learner.init(KEY, 0.0, 0.0, params=PARAMS)
    for y_t in WALLS[3]:
        state = learner.step(state, y_t, 0.0)
    assert np.isnan(state.smoother.params["drift"])
