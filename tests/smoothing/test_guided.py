"""Guided and auxiliary filters under smoothing: other weights, the same evidence and the same smoothing
law.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.smoothing import OnlineSmoother, ParisParticleGibbs, smooth
from ppl_ext.state_space import filtering
from tests.oracles import assert_unbiased, z_scores
from tests.smoothing.problems import (
    GAUSSIAN_Y,
    Gaussian,
    as_path,
    functionals_of,
    gaussian_draws,
    gaussian_exact,
    whole,
)
from tests.smoothing.test_smooth import FUNCTIONALS, PARAMS, evidence, gaussian

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py


def proposal(parameters, x, y_t):
    """Half way to the observation, and wide."""
    numpyro.sample("x", dist.Normal(0.5 * (parameters["phi"] * x + y_t), 0.9))


def initial_proposal(parameters):
    numpyro.sample("x0", dist.Normal(0.3, 1.3))


def look_ahead(parameters, x, y_t):
    return dist.Normal(parameters["phi"] * x, 1.2).log_prob(y_t)


KINDS = {
    "guided": {"proposal": proposal, "initial_proposal": initial_proposal},
    "auxiliary": {"look_ahead": look_ahead},
    "both": {"proposal": proposal, "look_ahead": look_ahead},
}
SLOW = pytest.mark.slow
EXACT = gaussian_exact(Gaussian(), GAUSSIAN_Y)


def runs(kind, num_particles, replicates, functionals=None):
    smoother = smooth(gaussian, functionals, num_particles, ess_threshold=0.8, **KINDS[kind])

    def one(key):
        run = smoother.run(key, GAUSSIAN_Y, params=PARAMS)
        return run.log_evidence, run.expectations

    log_evidence, found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), replicates))
    return np.exp(np.asarray(log_evidence, np.float64) - evidence(GAUSSIAN_Y)), found


@pytest.mark.parametrize(
    "kind", [pytest.param("guided", marks=SLOW), pytest.param("auxiliary", marks=SLOW), "both"]
)
@pytest.mark.slow
def test_the_evidence_is_unbiased_with_four_particles(kind):
    assert_unbiased(runs(kind, 4, 20_000)[0], 1.0)


@pytest.mark.parametrize(
    "kind", [pytest.param("guided", marks=SLOW), pytest.param("auxiliary", marks=SLOW), "both"]
)
def test_smoothed_sums_against_kalman(kind):
    _, found = runs(kind, 400, 50, FUNCTIONALS)
    for name, exact in EXACT.items():
        values = np.asarray(found[name])
        # what is left of the bias
        assert abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(50) + 0.01


@SLOW
def test_a_forgotten_proposal_density_is_seen(monkeypatch):
    monkeypatch.setattr(filtering, "_log_ratio", lambda terms, log_q, proposed, fixed: terms.observed)
    assert float(z_scores(runs("both", 4, 20_000)[0], 1.0)) > 6.0


def conditional(num_particles, replicates=4000):
    """Estimates and new paths of one sweep from exact smoothing draws."""
    from ppl_ext.smoothing.conditional_paris import conditional_paris

    how = ParisParticleGibbs(
        gaussian, FUNCTIONALS, num_particles, num_sweeps=1, burn_in=0, **KINDS["guided"]
    ).how
    xs = gaussian_draws(np.random.default_rng(3), Gaussian(), GAUSSIAN_Y, replicates)

    def one(key, x):
        space = how.begin({name: jnp.asarray(p) for name, p in PARAMS.items()}, (GAUSSIAN_Y,), {})
        out = conditional_paris(key, space, as_path(x))
        return out.estimates, whole(out.path)

    estimates, paths = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), replicates), xs)
    return (estimates, functionals_of(paths)), (EXACT, EXACT)


@pytest.mark.slow
def test_a_guided_sweep_from_an_exact_draw_is_unbiased_with_two_particles():
    assert_unbiased(*conditional(2))


@SLOW
def test_a_sweep_that_forgets_the_proposal_fails_the_same_test(monkeypatch):
    monkeypatch.setattr(filtering, "_log_ratio", lambda terms, log_q, proposed, fixed: terms.observed)
    assert max(map(float, jax.tree.leaves(z_scores(*conditional(2))))) > 6.0


@SLOW
def test_streaming_and_batch_agree_to_the_last_bit():
    batch = smooth(gaussian, FUNCTIONALS, 16, "path", **KINDS["both"]).run(
        jax.random.key(3), GAUSSIAN_Y, params=PARAMS
    )
    online = OnlineSmoother(gaussian, FUNCTIONALS, 16, "path", **KINDS["both"])
    state = online.init(jax.random.key(3), params=PARAMS)
    for y_t in GAUSSIAN_Y:
        state = online.step(state, y_t)
    jax.tree.map(np.testing.assert_array_equal, online.result(state).expectations, batch.expectations)
    np.testing.assert_array_equal(state.log_evidence, batch.log_evidence)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentTypeError, match="smooth: proposal must be a function"):
        smooth(gaussian, proposal=3)
    with pytest.raises(ArgumentError, match=r"look_ahead, called with \(parameters, carry, x\)"):
        smooth(gaussian, look_ahead=lambda x: x)
    with pytest.raises(ModelError, match="proposal must draw 'x' and nothing else; it has the sites 'z'"):
        smooth(
            gaussian, num_particles=4, proposal=lambda p, x, y_t: numpyro.sample("z", dist.Normal(x, 1.0))
        ).run(jax.random.key(0), GAUSSIAN_Y, params=PARAMS)
