"""Markovian score climbing: from draws of the posterior it is unbiased, and it ends there.

20,000 replicates with fixed keys, within 4.5 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import ConditionalImportanceSampling, MarkovScoreClimbing, Move
from tests.oracles import assert_unbiased, quick_jit, table
from tests.problems import PROBLEMS

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)


def posterior_of(problem):
    _, log_p, _ = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    return jax.nn.softmax(log_p.sum(-1))


def climbing(loss, problem, law):
    """One step from retained draws of this law: (loss, gradient), and the draws that it retains."""
    params = jax.tree.map(jnp.asarray, problem.params)
    outcomes = {name: jnp.asarray(x, jnp.int32) for name, x in problem.oracle.outcomes.items()}

    def one(key):
        first, second = jax.random.split(key)
        retained = jax.tree.map(lambda x: x[jax.random.categorical(first, jnp.log(law))], outcomes)

        def step(params):
            state = {"MarkovScoreClimbing": {"retained": retained}}
            out = loss.loss_with_mutable_state(second, params | state, problem.model, problem.guide)
            return out["loss"], out["mutable_state"]["MarkovScoreClimbing"]["retained"]

        (value, after), grads = jax.value_and_grad(step, has_aux=True)(params)
        return (value, grads), after

    return quick_jit(jax.vmap(one))(jax.random.split(KEY, 20_000))


def climbed(problem):
    """Minus the cross entropy from the posterior, its gradient by the guide, and minus that of the evidence
    by the model.
    """
    law = posterior_of(problem)

    def surrogate(params):
        _, log_p, log_q = table(problem.oracle, params, None)
        both = (log_p + log_q).sum(-1)
        return -(law * both).sum(), -(law * log_q.sum(-1)).sum()

    grads, value = jax.grad(surrogate, has_aux=True)(jax.tree.map(jnp.asarray, problem.params))
    return value, grads


@pytest.mark.parametrize(
    ("name", "num_particles"),
    [("one_bernoulli", 2), ("chain", 2), pytest.param("chain", 5, marks=pytest.mark.slow)],
)
def test_from_the_posterior_the_score_is_unbiased_at_any_number_of_particles(name, num_particles):
    problem = PROBLEMS[name]
    samples, after = climbing(
        MarkovScoreClimbing(ConditionalImportanceSampling(num_particles)), problem, posterior_of(problem)
    )
    assert_unbiased(samples, climbed(problem))
    # The kernel leaves the posterior as it is: each outcome is retained as often as it should.
    same = [
        np.all([np.asarray(after[k]) == x[m] for k, x in problem.oracle.outcomes.items()], axis=0)
        for m in range(len(posterior_of(problem)))
    ]
    assert_unbiased([s.astype(float) for s in same], list(np.asarray(posterior_of(problem), float)))


@pytest.mark.slow
def test_fresh_draws_alone_are_biased():
    """As if nothing were retained: the retained draw is one of the guide's own."""
    problem = PROBLEMS["chain"]
    log_probs, _, _ = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    samples, _ = climbing(MarkovScoreClimbing(ConditionalImportanceSampling(2)), problem, jnp.exp(log_probs))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, climbed(problem))


def conjugate(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def gaussian(y):
    spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(numpyro.param("loc", -0.5), spread))


def random_walk(model, guide, values):
    """Metropolis with a kernel of one's own: no particles."""
    first, second = jax.random.split(numpyro.prng_key())
    proposed = {"z": values["z"] + jax.random.normal(first, values["z"].shape)}
    log_ratio = log_density(model, proposed).total - log_density(model, values).total
    values = jax.tree.map(
        lambda a, b: jnp.where(jnp.log(jax.random.uniform(second)) < log_ratio, a, b), proposed, dict(values)
    )
    return Move(values, jax.tree.map(lambda x: x[None], values), jnp.ones(1))


@pytest.mark.parametrize(
    "kernel", [ConditionalImportanceSampling(4), random_walk], ids=["importance", "random walk"]
)
@pytest.mark.slow
def test_climbing_ends_at_the_posterior(kernel):
    """Two chains of ``fit``, each with its own retained draw, the step size falling."""
    optim = optax.adam(optax.exponential_decay(0.05, 1_000, 0.2))
    result = fit(
        KEY,
        conjugate,
        gaussian,
        MarkovScoreClimbing(kernel),
        optim,
        4_000,
        1.0,
        num_chains=2,
        progress_bar=False,
    )
    np.testing.assert_allclose(result.params["loc"], 0.5, atol=0.1)
    np.testing.assert_allclose(result.params["spread"], np.sqrt(0.5), atol=0.1)
    retained = result.params["MarkovScoreClimbing"]["retained"]["z"]
    assert retained.shape == (2,) and retained[0] != retained[1]
    svi = SVI(
        conjugate,
        MarkovScoreClimbing(kernel).carried_by(gaussian, conjugate),
        optax.adam(0.05),
        MarkovScoreClimbing(kernel),
    )
    assert np.isfinite(svi.run(KEY, 3, 1.0, progress_bar=False).losses).all()


def test_what_climbing_refuses():
    with pytest.raises(ArgumentError, match="at least 2"):
        ConditionalImportanceSampling(1)
    with pytest.raises(ArgumentTypeError, match=r"such as ConditionalImportanceSampling\(8\), got"):
        MarkovScoreClimbing(10).initial_state(KEY, {}, conjugate, conjugate, 1.0)
    subsampled = PROBLEMS["subsampled"]
    with pytest.raises(ModelError, match="'n' is subsampled, and the retained draw"):
        MarkovScoreClimbing().initial_state(KEY, {}, subsampled.model, subsampled.guide, *subsampled.args)

    def ring():
        numpyro.sample("z", dist.Normal(numpyro.sample("u", dist.Normal(0.0, 1.0)), 1.0))

    guide = marginal(lambda y: ring(), ["z"], ImportanceSampling(2))
    state = {"MarkovScoreClimbing": {"retained": {"z": jnp.asarray(0.0)}}}
    with pytest.raises(ModelError, match="densities in closed form"):
        MarkovScoreClimbing().loss(KEY, state, conjugate, guide, 1.0)
