"""Objectives that are a formula of K log weights, with their options: values and gradients are exact in the
mean.

As in ``test_unbiased.py``: 20,000 replicates with fixed keys, within 4.5 standard errors of an oracle that
sums over all outcomes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp, xlogy

from ppl_ext.errors import ArgumentError
from ppl_ext.gradients import EnumerateLocally, MeasureValued, ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.objectives import VRIWAE, FDivergence, ForwardKL, MarkovScoreClimbing, Thermodynamic
from tests import oracles
from tests.objectives.exact import SCORE, check, conjugate
from tests.oracles import expected_loss, quick_jit
from tests.problems import PROBLEMS

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


def of_ratios(f):
    """Minus the mean of f at the self-normalised ratios; f is written in r itself."""
    return lambda log_weights: -f(len(log_weights) * jax.nn.softmax(log_weights, axis=0)).mean(0).sum(-1)


DIVERGENCES = {
    "jeffreys": of_ratios(lambda r: (r - 1) * jnp.log(r)),
    "jensen_shannon": of_ratios(lambda r: 0.5 * (xlogy(r, r) - (1 + r) * jnp.log((1 + r) / 2))),
    "hellinger": of_ratios(lambda r: 0.5 * (jnp.sqrt(r) - 1) ** 2),
}


def tvo(betas):
    """Left sum of weighted means of the log weights."""

    def bound(log_weights):
        total = 0.0
        for left, right in zip(betas[:-1], betas[1:], strict=True):
            total = total + (right - left) * (jax.nn.softmax(left * log_weights, axis=0) * log_weights).sum(0)
        return total.sum(-1)

    return bound


BETAS = [0.0, 0.1, 10**-0.5, 1.0]
FORMULAS = (
    (FDivergence("jeffreys", 2), DIVERGENCES["jeffreys"], 2, "chain", SCORE),
    (FDivergence("jensen_shannon", 2), DIVERGENCES["jensen_shannon"], 2, "chain", MeasureValued()),
    (FDivergence("jensen_shannon", 2), DIVERGENCES["jensen_shannon"], 2, "score_normal", None),
    (FDivergence("hellinger", 3), DIVERGENCES["hellinger"], 3, "plated_local", ScoreFunction()),
    (FDivergence("hellinger", 2), DIVERGENCES["hellinger"], 2, "chain", EnumerateLocally()),
    (Thermodynamic(2, 3, covariance=False), tvo(BETAS), 2, "chain", SCORE),
    (Thermodynamic(3, 3, covariance=False), tvo(BETAS), 3, "plated_local", ScoreFunction()),
    (Thermodynamic(2, 1, covariance=False), oracles.elbo(), 2, "chain", MeasureValued()),
)


@pytest.mark.parametrize(("loss", "formula", "num_particles", "problem", "strategy"), FORMULAS)
def test_values_and_gradients_of_formulas_are_unbiased(loss, formula, num_particles, problem, strategy):
    check(loss, problem, formula, num_particles, strategy)


@pytest.mark.slow
def test_the_assertion_tells_divergences_and_partitions_apart():
    for wrong in (DIVERGENCES["jensen_shannon"], DIVERGENCES["hellinger"]):
        with pytest.raises(AssertionError, match="standard errors off"):
            check(FDivergence("jeffreys", 2), "chain", wrong, 2, SCORE)
    with pytest.raises(AssertionError, match="standard errors off"):
        check(Thermodynamic(2, 3, covariance=False), "chain", tvo([0.0, 0.2, 0.6, 1.0]), 2, SCORE)


def test_many_particles_give_the_divergence():
    """Against sums over the outcomes of a chain; the bias at 2,000 particles is far below the noise of 200
    replicates.
    """
    problem = PROBLEMS["chain"]
    params = jax.tree.map(jnp.asarray, problem.params)
    log_q, log_p, _ = oracles.table(problem.oracle, params, None)
    q = jnp.exp(log_q)
    r = jnp.exp(log_p[:, 0] - logsumexp(log_p[:, 0])) / q
    exact = {
        "jeffreys": (q * (r - 1) * jnp.log(r)).sum(),
        "jensen_shannon": 0.5 * (q * (r * jnp.log(2 * r / (1 + r)) + jnp.log(2 / (1 + r)))).sum(),
        "hellinger": 1 - (q * jnp.sqrt(r)).sum(),
    }
    for name, value in exact.items():
        loss = FDivergence(name, 2_000)
        guide = gradient(problem.guide, {"*": SCORE})  # a leave-one-out baseline would take K² runs
        given = quick_jit(
            jax.vmap(lambda key, loss=loss, guide=guide: loss.loss(key, params, problem.model, guide))
        )
        samples = given(jax.random.split(jax.random.key(0), 200))
        assert abs(samples.mean() - value) < 4.5 * samples.std() / np.sqrt(200) + 5e-4, name


@pytest.mark.slow
def test_the_thermodynamic_bound_lies_between_the_elbo_and_the_importance_weighted_one():
    for num_particles in (1, 2, 3):
        problem = PROBLEMS["chain"]
        low, mid, high = (
            -expected_loss(problem.oracle, problem.params, f, num_particles)[0]
            for f in (oracles.elbo(), tvo(BETAS), oracles.iwelbo())
        )
        assert (
            low <= mid + 1e-12
            and mid <= high + 1e-12 <= oracles.log_evidence(problem.oracle, problem.params) + 1e-9
        )
        assert num_particles == 1 or low < mid < high


def test_an_objective_tells_numpyro_how_many_particles_it_takes():
    assert [
        loss.num_particles for loss in (ForwardKL(3), FDivergence(num_particles=4), MarkovScoreClimbing())
    ] == [3, 4, 1]


def test_an_objective_is_shown_with_its_numbers_and_unusual_flags():
    assert repr(VRIWAE(num_particles=3)) == "VRIWAE(alpha=0.5, num_particles=3)"
    assert (
        repr(VRIWAE(0.2, 4, doubly_reparameterized=True))
        == "VRIWAE(alpha=0.2, num_particles=4, doubly_reparameterized=True)"
    )


def test_options_that_make_no_sense():
    model, guide, params = conjugate(0.3, 0.8)
    key = jax.random.key(0)
    for loss, message in (
        (FDivergence(num_particles=1), "at least 2"),
        (FDivergence("total_variation"), "unknown divergence 'total_variation'; known: jeffreys"),
        (FDivergence(3), "takes a name or a function"),
        (Thermodynamic(first=1.5), "between 0 and 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            loss.loss(key, params, model, guide)
    own = FDivergence(lambda log_r: jnp.expm1(log_r) ** 2, 3)
    assert jnp.isfinite(own.loss(key, params, model, guide))


@pytest.mark.parametrize(
    "loss", [ForwardKL(3), FDivergence(num_particles=3), FDivergence("hellinger", 3)], ids=repr
)
def test_all_weights_zero(loss):
    """An impossible observation: infinitely far from any posterior, and no direction to go in."""

    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("impossible", -jnp.inf)

    def guide():
        numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), 1.0))

    value, grads = jax.value_and_grad(lambda p: loss.loss(jax.random.key(0), p, model, guide))(
        {"mu": jnp.array(0.3)}
    )
    assert float(value) == jnp.inf and float(grads["mu"]) == 0.0
