"""Particle Gibbs as an algorithm: properly weighted whatever the number of particles; and as the chain of
Markov score climbing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext import log_density, normalize, simulate
from ppl_ext.errors import ArgumentError, ModelError, StrategyError
from ppl_ext.gradients import Constant, Reparameterize
from ppl_ext.handlers import detach, gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, MarkovScoreClimbing
from ppl_ext.smoothing import ConditionalSweep, SweptParticleFilter, guided_space
from ppl_ext.smoothing.backward import Metropolis
from ppl_ext.smoothing.conditional_paris import conditional_paris
from ppl_ext.smoothing.space import Space
from ppl_ext.state_space import filtering
from ppl_ext.state_space.filtering import Rules
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import multinomial
from tests.oracles import assert_unbiased, z_scores
from tests.smoothing.problems import (
    GAUSSIAN_Y,
    Gaussian,
    as_path,
    functionals_of,
    gaussian_draws,
    gaussian_exact,
    gaussian_smoother,
    whole,
)
from tests.smoothing.test_smooth import evidence

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

SPACE = Gaussian()
EXACT = gaussian_exact(SPACE, GAUSSIAN_Y)
LOG_Z = evidence(GAUSSIAN_Y)


def model(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(SPACE.phi * x, SPACE.scale))
        numpyro.sample("y", dist.Normal(x, SPACE.noise), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


POSTERIOR = normalize(model, {}, SweptParticleFilter(3, num_sweeps=2))


def test_a_swept_draw_is_properly_weighted_with_three_particles():
    def one(key):
        draw_key, score_key = jax.random.split(key)
        draw = simulate(POSTERIOR, GAUSSIAN_Y, rng_key=draw_key)
        weight = jnp.exp(
            log_density(model, draw.values, GAUSSIAN_Y, rng_key=score_key).total
            - draw.log_density.total
            - LOG_Z
        )
        return weight, whole(draw.values)

    weights, xs = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 8000))
    weights = np.asarray(weights, np.float64)
    found = {name: weights * x for name, x in functionals_of(xs).items()}
    assert_unbiased((weights, found), (1.0, EXACT))


def test_double_precision():
    """An index of 64 bits was picked among ancestors of 32, and nothing ran."""

    def weight(key):
        draw = simulate(POSTERIOR, np.asarray(GAUSSIAN_Y, float), rng_key=key)
        target = log_density(model, draw.values, np.asarray(GAUSSIAN_Y, float)).total
        return jnp.exp(target - draw.log_density.total - float(LOG_Z))

    with jax.enable_x64(True):
        weights = jax.jit(jax.vmap(weight))(jax.random.split(jax.random.key(1), 4000))
    assert weights.dtype == np.float64
    assert_unbiased(np.asarray(weights), 1.0)


@pytest.mark.parametrize("held", [detach, lambda program: gradient(program, {"*": Constant()})])
def test_held_fixed_they_serve_an_objective(held):
    loss = jax.jit(jax.vmap(lambda key: ELBO().loss(key, {}, model, held(POSTERIOR), GAUSSIAN_Y)))
    assert_unbiased(
        np.exp(-np.asarray(loss(jax.random.split(jax.random.key(0), 8000)), np.float64) - float(LOG_Z)), 1.0
    )


@pytest.mark.parametrize(
    "asked",
    [lambda program: program, lambda program: gradient(program, {"*x0": Constant(), "*": Reparameterize()})],
)
def test_asked_for_a_gradient_they_are_refused_with_what_helps(asked):
    with pytest.raises(
        StrategyError,
        match=r"\(site 'x0?'\) have no gradient. Hold them fixed, ppl_ext.handlers.detach\(program\)",
    ):
        ELBO().loss(jax.random.key(0), {}, model, asked(POSTERIOR), GAUSSIAN_Y)


# with three, a reciprocal's tails say nothing
SCORED = normalize(model, {}, SweptParticleFilter(16, num_sweeps=2))


def reciprocals():
    xs = gaussian_draws(np.random.default_rng(1), SPACE, GAUSSIAN_Y, 8000)

    def one(key, x):
        values = {"x0": x[0], "x": x[1:]}
        estimated = log_density(SCORED, values, GAUSSIAN_Y, rng_key=key).total
        return jnp.exp(estimated - log_density(model, values, GAUSSIAN_Y, rng_key=key).total + LOG_Z)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), len(xs)), xs), np.float64)


@pytest.mark.slow
def test_a_given_path_is_scored_without_bias():
    """From exact draws the reciprocal of the evidence estimate has mean 1 / Z."""
    assert_unbiased(reciprocals(), 1.0)


@pytest.mark.slow
def test_scoring_by_a_fresh_filter_fails_the_same_test(monkeypatch):
    monkeypatch.setattr(
        SweptParticleFilter, "evidence_through", lambda self, target, retained: self.evidence(target)
    )
    assert float(z_scores(reciprocals(), 1.0)) > 6.0


def guide(y):
    """Autoregressive, with a bias for each step."""
    shift = numpyro.param("shift", jnp.zeros(len(GAUSSIAN_Y)))
    spread = numpyro.param("spread", 0.8 * jnp.ones(len(GAUSSIAN_Y)), constraint=dist.constraints.positive)

    def step(x, at):
        x = numpyro.sample("x", dist.Normal(0.5 * x + at[0], at[1]))
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(numpyro.param("start", 0.0), 0.8)), (shift, spread))


def sweeps(num_particles=2, replicates=8000, guide=guide):
    xs = gaussian_draws(np.random.default_rng(1), SPACE, GAUSSIAN_Y, replicates)
    with numpyro.handlers.block(), numpyro.handlers.seed(rng_seed=0):
        space = guided_space.GuidedSpace(
            lower(model, (GAUSSIAN_Y,), initial="rest"), lower(guide, (GAUSSIAN_Y,), initial="rest")
        )

    def one(key, x):
        moved = Space(space, Rules(num_particles, multinomial, 1.0), Metropolis())
        return whole(conditional_paris(key, moved, as_path(x)).path)

    return functionals_of(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), replicates), xs))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.5])  # a scale changes how the guide is scored, not how it draws
def test_a_sweep_moved_by_a_guide_leaves_an_exact_draw_with_two_particles(scale):
    assert_unbiased(sweeps(guide=numpyro.handlers.scale(guide, scale=scale)), EXACT)


@pytest.mark.slow
def test_a_sweep_that_forgets_the_guide_fails_the_same_test(monkeypatch):
    monkeypatch.setattr(filtering, "_log_ratio", lambda terms, log_q, proposed, fixed: terms.observed)
    assert max(map(float, jax.tree.leaves(z_scores(sweeps(), EXACT)))) > 6.0


@pytest.mark.slow
@pytest.mark.parametrize("is_guided", [True, False])
def test_score_climbing_by_sweeps_finds_the_smoothing_means(is_guided):
    objective = MarkovScoreClimbing(ConditionalSweep(8, guided=is_guided))
    # Steps of constant length end 0.1 from the optimum in any direction, so one run is not enough.
    found = fit(
        jax.random.key(0),
        model,
        guide,
        objective,
        optax.adam(0.02),
        3000,
        GAUSSIAN_Y,
        num_chains=8,
        progress_bar=False,
    )
    xs = np.asarray(found.sample(num_samples=4000).values["x"]).reshape(8 * 4000, -1)
    mean, cov = gaussian_smoother(SPACE, GAUSSIAN_Y)
    np.testing.assert_allclose(xs.mean(0), mean[1:], atol=0.15)
    np.testing.assert_allclose(xs.std(0), np.sqrt(np.diag(cov)[1:]), rtol=0.25)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="reversible"):
        SweptParticleFilter(8, backward="mcmc")
    with pytest.raises(ArgumentError, match="at least 2"):
        SweptParticleFilter(1)
    with pytest.raises(ArgumentError, match="at least 2"):
        ConditionalSweep(1)

    def other(y):
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="'x0'"):
        fit(
            jax.random.key(0),
            model,
            other,
            MarkovScoreClimbing(ConditionalSweep(4)),
            optax.adam(0.02),
            1,
            GAUSSIAN_Y,
            progress_bar=False,
        )
