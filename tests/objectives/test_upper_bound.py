"""The chi upper bound and the normaliser that it carries from step to step.

20,000 replicates with fixed keys, within 4.5 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer import SVI

from ppl_ext import marginal
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.densities.bound_direction import Estimate, powered
from ppl_ext.errors import DirectionError, ModelError
from ppl_ext.gradients import MeasureValued, ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import ChiUpperBound
from tests.objectives.exact import SCORE
from tests.oracles import assert_unbiased, quick_jit, table
from tests.problems import PROBLEMS

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)


def chi_exact(problem, log_c, order):
    def bound(params):
        log_probs, log_p, log_q = table(problem.oracle, params, None)
        log_w = (log_p - log_q).sum(-1)
        return ((jnp.exp(log_probs + order * log_w - log_c)).sum() + log_c - 1) / order

    return jax.tree.map(
        np.asarray, quick_jit(jax.value_and_grad(bound))(jax.tree.map(jnp.asarray, problem.params))
    )


@pytest.mark.parametrize(
    ("name", "order", "strategy"),
    [("chain", 2.0, SCORE), ("chain", 1.5, MeasureValued()), ("triple", 2.0, ScoreFunction())],
)
@pytest.mark.slow
def test_the_upper_bound(name, order, strategy):
    problem, log_c = PROBLEMS[name], -2.0
    guide = gradient(problem.guide, {"*": strategy})
    loss = ChiUpperBound(order, 2)

    def one(params, key):
        state = {"ChiUpperBound": {"log_normaliser": jnp.asarray(log_c)}}
        return loss.loss(key, params | state, problem.model, guide)

    run = jax.vmap(jax.value_and_grad(one), in_axes=(None, 0))
    samples = quick_jit(run)(jax.tree.map(jnp.asarray, problem.params), jax.random.split(KEY, 20_000))
    assert_unbiased(samples, chi_exact(problem, log_c, order))
    # a wrong power, a wrong normaliser
    for another in (chi_exact(problem, log_c, order + 0.2), chi_exact(problem, log_c + 0.2, order)):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples, another)
    log_probs, log_p, log_q = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    log_w = (log_p - log_q).sum(-1)
    evidence, cubo = float(logsumexp(log_probs + log_w)), float(logsumexp(log_probs + order * log_w)) / order
    # An upper bound wherever the normaliser stands, tight for CUBO at E[wⁿ] itself.
    for c in (-6.0, 0.0):
        assert chi_exact(problem, c, order)[0] > cubo > evidence
    np.testing.assert_allclose(chi_exact(problem, order * cubo, order)[0], cubo, rtol=1e-5)


@pytest.mark.slow
def test_the_upper_bound_comes_down_upon_the_evidence():
    """z ~ N(0, 1), y = 1 ~ N(z, 1): the guide that minimises it is the posterior, where it is the
    evidence.
    """

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=1.0)

    def guide():
        spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), spread))

    result = fit(
        KEY, model, guide, ChiUpperBound(num_particles=16), optax.adam(0.02), 1_000, progress_bar=False
    )
    np.testing.assert_allclose(
        [result.params["loc"][0], result.params["spread"][0]], [0.5, np.sqrt(0.5)], atol=0.05
    )
    np.testing.assert_allclose(
        result.losses[0, -100:].mean(), float(dist.Normal(0.0, np.sqrt(2.0)).log_prob(1.0)), atol=0.02
    )
    svi = SVI(model, ChiUpperBound().carried_by(guide, model), optax.adam(0.02), ChiUpperBound())
    assert np.isfinite(svi.run(KEY, 3, progress_bar=False).losses).all()


def test_the_normaliser_runs():
    """c becomes 0.9 c + 0.1 mean wⁿ; a weight that is far beyond c raises it at once instead of
    overflowing.
    """
    problem = PROBLEMS["one_bernoulli"]
    guide = gradient(problem.guide, {"z": SCORE})

    def after(log_c):
        state = dict(problem.params) | {"ChiUpperBound": {"log_normaliser": jnp.asarray(log_c)}}
        out = ChiUpperBound(2.0, 1).loss_with_mutable_state(KEY, state, problem.model, guide)
        return out["loss"], out["mutable_state"]["ChiUpperBound"]["log_normaliser"]

    log_probs, log_p, log_q = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    powers = jnp.exp(2.0 * (log_p - log_q).sum(-1))
    loss, log_c = after(-1.0)
    power = 10 * (jnp.exp(log_c) - 0.9 * jnp.exp(-1.0))
    assert jnp.abs(powers - power).min() < 1e-4
    np.testing.assert_allclose(loss, (power * jnp.exp(1.0) - 2.0) / 2.0, rtol=1e-4)
    loss, log_c = after(-1_000.0)
    assert jnp.isfinite(loss) and -80.0 < log_c < 0.0


def test_which_estimates_a_power_may_have():
    fine = [
        ("unbiased", 1.0),
        ("unbiased", -1.0),
        ("reciprocal", 1.0),
        ("reciprocal", -1.0),
        ("upper", 1.0),
        ("lower", -1.0),
    ]
    for kind, power in fine:
        assert powered(2.0)([("z", Estimate(kind, power))]).errs == "upper"
    for kind, power in [
        ("lower", 1.0),
        ("upper", -1.0),
        ("unbiased", 0.25),
        ("reciprocal", -0.25),
        ("unbiased", 0.0),
    ]:
        with pytest.raises(DirectionError, match="'z' enters"):
            powered(2.0)([("z", Estimate(kind, power))])


def test_a_bound_from_marginals_is_an_upper_one():
    def ring():
        numpyro.sample("x", dist.Normal(numpyro.sample("u", dist.Normal(0.0, 1.0)), 1.0))

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 2.0)), 1.0), obs=0.5)

    state = {"ChiUpperBound": {"log_normaliser": jnp.asarray(-4.0)}}
    run = jax.vmap(
        lambda key: ChiUpperBound(num_particles=4).loss(
            key, state, model, marginal(ring, ["x"], ImportanceSampling(2))
        )
    )
    losses = quick_jit(run)(jax.random.split(KEY, 4_000))
    assert losses.mean() - 4.5 * losses.std() / np.sqrt(4_000) > float(
        dist.Normal(0.0, np.sqrt(5.0)).log_prob(0.5)
    )


@pytest.mark.slow
def test_a_minibatch_has_no_running_normaliser():
    problem = PROBLEMS["subsampled_local"]
    with pytest.raises(ModelError, match="'n' is subsampled"):
        ChiUpperBound().loss(KEY, dict(problem.params), problem.model, problem.guide, *problem.args)
