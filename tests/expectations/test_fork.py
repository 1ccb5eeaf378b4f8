"""Python that branches on an enumerated value, and chains whose surrogate must stay small."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import expectation
from ppl_ext.errors import PplExtError, StrategyError
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

ENUMERATE = {"gradient": "enumerate"}


def branching(params):
    """Which sites there are depends on an outcome."""
    z = numpyro.sample("z", dist.Bernoulli(logits=params["z"]), infer=ENUMERATE)
    if z:
        k = numpyro.sample("k", dist.Categorical(logits=params["k"]), infer=ENUMERATE)
        return [1.0, 4.0, 9.0][int(k)] * params["a"]
    return params["a"] ** 2


def test_python_may_branch_on_enumerated_values():
    params = {"z": 0.3, "k": jnp.array([0.1, -0.4, 0.5]), "a": 2.0}

    def exact(params):
        p = jax.nn.sigmoid(params["z"])
        return (
            p * jnp.sum(jax.nn.softmax(params["k"]) * jnp.array([1.0, 4.0, 9.0])) * params["a"]
            + (1 - p) * params["a"] ** 2
        )

    value, grads = expectation(branching).value_and_grad(jax.random.key(0), params)
    answer, slopes = jax.value_and_grad(exact)(params)
    np.testing.assert_allclose(value, answer, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, slopes)


@pytest.mark.slow
def test_a_branch_in_model_and_guide_of_an_objective():
    """A guide that branches on its coin: the bound is exact, since nothing random is left."""

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(2.0 if z else -1.0, 1.0), obs=0.5)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.2)), infer=ENUMERATE)

    def exact(phi):
        q = jnp.array([jax.nn.sigmoid(-phi), jax.nn.sigmoid(phi)])
        log_p = jnp.log(jnp.array([0.6, 0.4])) + dist.Normal(jnp.array([-1.0, 2.0]), 1.0).log_prob(0.5)
        return -jnp.sum(q * (log_p - jnp.log(q)))

    loss = jax.value_and_grad(lambda phi: ELBO().loss(jax.random.key(0), {"phi": phi}, model, guide))(0.2)
    np.testing.assert_allclose(loss, jax.value_and_grad(exact)(0.2), rtol=1e-5)


def test_scored_sites_beside_a_branch_stay_unbiased():
    """A scored coin before the branch and one after it."""

    def program(p):
        a = numpyro.sample("a", dist.Bernoulli(p), infer={"gradient": "score"})
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.5 * a), infer=ENUMERATE)
        cost = 3.0 + a if z else -1.0
        b = numpyro.sample("b", dist.Bernoulli(0.1 + 0.7 * p), infer={"gradient": "score"})
        return cost * (1 + b)

    def exact(p):
        q, r = 0.1 + 0.7 * p, jnp.array([0.2, 0.7])
        by_a = r * (3.0 + jnp.arange(2)) - (1 - r)
        return ((1 - p) * by_a[0] + p * by_a[1]) * (1 + q)

    keys = jax.random.split(jax.random.key(0), 20_000)
    value, grad = jax.vmap(lambda key: expectation(program).value_and_grad(key, 0.4))(keys)
    for sample, answer in zip((value, grad), jax.value_and_grad(exact)(0.4), strict=True):
        assert abs(sample.mean() - answer) < 4.5 * sample.std() / np.sqrt(len(keys))


def test_too_many_branches_and_branches_on_other_values():
    def many(p):
        bits = [numpyro.sample(f"z{i}", dist.Bernoulli(p), infer=ENUMERATE) for i in range(8)]
        return 1.0 if all(bool(b) for b in bits) else 0.0

    with pytest.raises(StrategyError, match="more than 64 joint outcomes"):
        expectation(many).value(jax.random.key(0), 0.5)

    def scored(p):
        return 1.0 if numpyro.sample("z", dist.Bernoulli(p), infer={"gradient": "score"}) else 0.0

    with pytest.raises((PplExtError, jax.errors.TracerBoolConversionError)):
        expectation(scored).value(jax.random.key(0), 0.5)


def chain(num_sites, strategy):
    """Each coin loads the next, and each has a cost."""

    def program(p):
        x, total = 0.0, 0.0
        for i in range(num_sites):
            x = numpyro.sample(f"x{i}", dist.Bernoulli(0.3 + p * x))
            total = total + x * (i + 1.0)
        return total

    return gradient(program, {"*": strategy})


def num_equations(jaxpr):
    inner = [
        v
        for eqn in jaxpr.eqns
        for v in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
    ]
    inner = [getattr(v, "jaxpr", v) for v in inner]
    return len(jaxpr.eqns) + sum(num_equations(v) for v in inner if hasattr(v, "eqns"))


@pytest.mark.parametrize("strategy", ["score", "enumerate_locally", "measure_valued"])
def test_the_gradient_of_a_chain_grows_linearly(strategy):
    """Equations of the gradient's program: each further site costs the same."""

    def size(num_sites):
        est = expectation(chain(num_sites, strategy))
        return num_equations(jax.make_jaxpr(lambda p: est.value_and_grad(jax.random.key(0), p))(0.2).jaxpr)

    small, middle, large = (size(n) for n in (5, 10, 20))
    assert large - middle <= 2.05 * (middle - small), (small, middle, large)
