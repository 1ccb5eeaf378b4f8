"""Sites inside a ``jax.jit`` of the program's own: drawn, scored and differentiated as if the ``jit`` were
not there.

In genjax their gradient is zero. Sites inside a ``vmap`` are in ``test_vmapped.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed

from ppl_ext import expectation, log_density, simulate
from ppl_ext.gradients import Enumerate, EnumerateLocally, MeasureValued, ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO
from tests import oracles
from tests.oracles import (
    Oracle,
    assert_unbiased,
    bernoulli,
    expected_loss,
    finite,
    normal,
    product,
    replicates,
)
from tests.problems import Problem

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

STRATEGIES = {
    "score": ScoreFunction(),
    "enumerate": Enumerate(),
    "locally": EnumerateLocally(),
    "measure-valued": MeasureValued(),
}


@jax.jit
def coin(logits):
    return numpyro.sample("z", dist.Bernoulli(logits=logits))


@jax.jit
def two_in_a_row(logits):
    a = numpyro.sample("a", dist.Bernoulli(logits=logits[0]))
    return a, jax.jit(lambda a: numpyro.sample("b", dist.Bernoulli(logits=logits[1] + logits[2] * a)))(a)


def jitted_problem():
    """Coins under jits in guide and model, one of them inside the other and one inside the body of a scan."""
    y = np.array([0.9, -0.4])

    @jax.jit
    def step(x, y_t):
        x = numpyro.sample("x", dist.Bernoulli(logits=0.8 * x - 0.2))
        numpyro.sample("y", dist.Normal(1.3 * x, 1.0), obs=y_t)
        return x, None

    def model():
        a, b = two_in_a_row(jnp.array([0.4, -0.5, 0.8]))
        scan(step, a, jnp.asarray(y))
        numpyro.factor("pull", 0.7 * a * b)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        a, _ = two_in_a_row(phi)
        scan(
            lambda x, _: (
                jax.jit(lambda x: numpyro.sample("x", dist.Bernoulli(logits=phi[2] * x + 0.1)))(x),
                None,
            ),
            a,
            None,
            length=2,
        )

    def before(z):
        return jnp.stack([z["a"], z["x"][0]])

    def log_q(params, z, batch):
        phi, a = params["phi"], z["a"]
        return (
            bernoulli(a, phi[0])
            + bernoulli(z["b"], phi[1] + phi[2] * a)
            + bernoulli(z["x"], phi[2] * before(z) + 0.1).sum()
        )

    def log_p(params, z, batch):
        steps = bernoulli(z["x"], 0.8 * before(z) - 0.2) + normal(y, 1.3 * z["x"])
        return (
            bernoulli(z["a"], 0.4)
            + bernoulli(z["b"], -0.5 + 0.8 * z["a"])
            + steps.sum()
            + 0.7 * z["a"] * z["b"]
        )

    space = product(a=finite(2), b=finite(2), x=finite(2, (2,)))
    oracle = Oracle(**space, log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("jitted", model, guide, {"phi": np.array([0.3, -0.2, 0.6])}, oracle, ("a", "b", "x"))


JITTED = jitted_problem()


@pytest.mark.parametrize(
    ("strategies", "objective"),
    [
        ({"*": "score"}, IWELBO(2)),
        ({"a": "score", "b": "enumerate", "x": "enumerate_locally"}, ELBO()),
        ({"a": "measure_valued", "*": "score"}, ELBO(2)),
    ],
    ids=["score", "mixed", "measure-valued"],
)
@pytest.mark.slow
def test_objectives_reach_into_jits(strategies, objective):
    formula = oracles.iwelbo() if isinstance(objective, IWELBO) else oracles.elbo()
    samples = replicates(objective, JITTED, guide=gradient(JITTED.guide, strategies))
    assert_unbiased(samples, expected_loss(JITTED.oracle, JITTED.params, formula, objective.num_particles))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_site_that_was_traced_elsewhere_is_met_again(strategy):
    """A cached trace of the coin holds a number drawn under another handler; its gradient would be zero."""
    with seed(rng_seed=0):
        coin(jnp.array(0.4))
    estimator = expectation(lambda p: 3.0 * gradient(coin, {"z": STRATEGIES[strategy]})(p) ** 2)
    run = jax.vmap(lambda key: estimator.value_and_grad(key, jnp.array(0.4)))
    q = jax.nn.sigmoid(0.4)
    assert_unbiased(run(jax.random.split(jax.random.key(0), 5_000)), (3.0 * q, 3.0 * q * (1 - q)))
    with seed(rng_seed=0):
        assert float(coin(jnp.array(0.4))) in (0.0, 1.0)  # and theirs is still what it was


@pytest.mark.slow
def test_simulate_and_log_density_reach_into_jits():
    for seed_ in range(4):
        draw = simulate(JITTED.guide, rng_key=jax.random.key(seed_))
        by_hand = JITTED.oracle.log_q({"phi": jnp.zeros(3)}, draw.values, None)
        np.testing.assert_allclose(draw.log_density.total, by_hand, rtol=1e-5)
        np.testing.assert_allclose(
            log_density(JITTED.model, draw.values).total,
            JITTED.oracle.log_p({}, draw.values, None),
            rtol=1e-5,
        )


def test_a_fit_reaches_into_jits():
    def model():
        z = coin(0.0)
        numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=1.4)

    def guide():
        numpyro.deterministic("phi_of_z", coin(numpyro.param("phi", 0.0)))

    result = fit(jax.random.key(0), model, guide, ELBO(), optax.adam(0.1), 400, progress_bar=False)
    # the coin's posterior log odds
    np.testing.assert_allclose(result.params["phi"], 2.0 * (1.4 - 1.0), atol=1e-3)


@pytest.mark.parametrize("strategy", ["score", "enumerate"])
def test_loops_of_jax_are_unrolled(strategy):
    """Sites in ``jax.lax.scan`` and ``map``: each turn draws its own."""

    def program(p):
        def turn(total, x):
            return total + x * numpyro.sample(
                "z", dist.Bernoulli(logits=p), infer={"gradient": strategy}
            ), None

        total, _ = jax.lax.scan(turn, 0.0, jnp.array([1.0, 3.0]))
        others = jax.lax.map(
            lambda x: numpyro.sample("w", dist.Bernoulli(logits=p * x), infer={"gradient": strategy}),
            jnp.array([1.0, 2.0]),
        )
        return total**2 * (1.0 + others.prod())

    def by_hand(p):
        q, r = jax.nn.sigmoid(p), jax.nn.sigmoid(2 * p)
        return (q * (1 - q) * (1.0 + 9.0) + 16.0 * q * q) * (1.0 + q * r)

    run = jax.vmap(lambda key: expectation(program).value_and_grad(key, jnp.array(0.4)))
    assert_unbiased(run(jax.random.split(jax.random.key(0), 5_000)), jax.value_and_grad(by_hand)(0.4))
