"""What a run inside an expectation goes through: ``scan``, ``cond``, inner compilation, and ``mutable``
state.

Statistical tests average 20,000 replicates under fixed keys and allow 4.5 standard errors.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO
from numpyro.primitives import mutable

from ppl_ext import expectation
from ppl_ext.errors import StrategyError
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import Enumerate
from ppl_ext.objectives import ELBO
from tests.estimates import SCORE, close, coin, exactly, replicates, sigmoid
from tests.oracles import assert_unbiased, quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


# --- control flow and compilation inside the program
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [SCORE, Enumerate()], ids=["score", "enumerate"])
@pytest.mark.parametrize("outer", [SCORE, Enumerate()], ids=["score", "enumerate"])
def test_a_site_inside_cond(outer, inner):
    """Its law depends on the branch, the branch on another site, and what follows is not linear in it."""

    def program(p):
        a = numpyro.sample("a", dist.Bernoulli(logits=p[0]), infer={"gradient": outer})

        def branch(logits):
            return lambda _: (
                1.0 * numpyro.sample("b", dist.Bernoulli(logits=logits), infer={"gradient": inner})
            )

        b = cond(a == 1, branch(p[1]), branch(p[0] * p[1] - 0.5), None)
        return jnp.exp(0.5 * b + a) * p[1] + b

    def by_hand(p):
        total = 0.0
        for a, odds, logits in ((0.0, 1 - sigmoid(p[0]), p[0] * p[1] - 0.5), (1.0, sigmoid(p[0]), p[1])):
            for b, odds_b in ((0.0, 1 - sigmoid(logits)), (1.0, sigmoid(logits))):
                total += odds * odds_b * (jnp.exp(0.5 * b + a) * p[1] + b)
        return total

    params = jnp.array([0.3, 0.7])
    assert_unbiased(replicates(program, params), exactly(by_hand, params))


@pytest.mark.parametrize("strategy", [SCORE, Enumerate()], ids=["score", "enumerate"])
def test_sites_in_scan(strategy):
    def program(p):
        def step(x, t):
            x = 1.0 * numpyro.sample(
                "x", dist.Bernoulli(logits=p[0] + p[1] * x + 0.1 * t), infer={"gradient": strategy}
            )
            return x, x

        _, xs = scan(step, 0.0, jnp.arange(3.0))
        return jnp.sum(xs) ** 2 + xs[0] * p[1]

    def by_hand(p):
        total = 0.0
        for xs in np.ndindex(2, 2, 2):
            before, odds = 0.0, 1.0
            for t, x in enumerate(xs):
                q = sigmoid(p[0] + p[1] * before + 0.1 * t)
                odds, before = odds * (q if x else 1 - q), 1.0 * x
            total += odds * (sum(xs) ** 2 + xs[0] * p[1])
        return total

    params = jnp.array([0.3, 0.7])
    assert_unbiased(replicates(program, params), exactly(by_hand, params))


def test_every_draw_of_a_scan_has_a_key_of_its_own():
    """Sites of a step, lanes of one and the program's own draws differ, within a step and between; a seed
    around has no say.
    """

    def step(before, _):
        sites = [numpyro.sample(name, dist.Normal()) for name in "abc"]
        lanes = jax.vmap(lambda loc: numpyro.sample("lanes", dist.Normal(loc)))(jnp.zeros(2))
        return before, jnp.stack([*sites, *lanes, jax.random.normal(numpyro.prng_key())])

    def drawn(key):
        with Run(key(3), key(4)):
            return jnp.stack([scan(step, 0.0, None, length=4)[1] for _ in range(2)])

    draws = np.asarray(drawn(jax.random.key))
    assert np.unique(draws).size == draws.size == 48
    with numpyro.handlers.seed(rng_seed=5):
        np.testing.assert_array_equal(drawn(jax.random.PRNGKey), draws)


def test_control_flow_inside_control_flow_is_refused():
    loops = {
        "scan": lambda body: scan(lambda x, _: (body(), None), 0.0, None, length=2)[0],
        "cond": lambda body: cond(True, lambda _: body(), lambda _: 0.0, None),
    }

    for outer, inner in itertools.product(loops, repeat=2):

        def program(p, outer=outer, inner=inner):
            site = functools.partial(numpyro.sample, "x", dist.Bernoulli(p), infer={"gradient": "score"})
            return loops[outer](lambda: loops[inner](lambda: 1.0 * site()))

        with pytest.raises(
            StrategyError, match=f"A {inner} inside a {outer} is not supported; use jax.lax.{inner}"
        ):
            expectation(program).value_and_grad(jax.random.key(0), 0.3)


@pytest.mark.parametrize("strategy", [SCORE, Enumerate()], ids=["score", "enumerate"])
def test_inner_jit_relu_and_while_loop(strategy):
    @jax.jit
    def inner(z, x):
        return jax.nn.relu(z - 0.3 + 0.0 * x) + z * x**2

    def doubled_until_five(z):
        return jax.lax.while_loop(lambda s: s < 5.0, lambda s: 2.0 * s + 1.0, z)

    def program(p):
        z = coin(p, strategy)
        x = jax.jit(lambda: numpyro.sample("x", dist.Normal(p, 0.5)))()
        return inner(z, x) + doubled_until_five(z) + jax.scipy.special.xlogy(z, sigmoid(p))

    def by_hand(p):
        hit = 0.7 + p**2 + 0.25 + 7.0 + jnp.log(sigmoid(p))
        return (1 - sigmoid(p)) * 7.0 + sigmoid(p) * hit

    assert_unbiased(replicates(program, 0.4), exactly(by_hand, 0.4))


# --- mutable state
# ------------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=False, momentum=0.5)(x))


BATCH = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 4.0]])


def normed_model(x, y):
    net = flax_module("net", Normed(), input_shape=(3, 2), mutable=["batch_stats"])
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3):
        numpyro.sample("y", dist.Normal(net(x)[:, 0] + w, 1.0), obs=y)


def normed_guide(x, y):
    numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 0.5))


@pytest.mark.parametrize("objective", [ELBO(), ELBO(num_particles=3)], ids=repr)
def test_mutable_sites_as_svi_keeps_them(objective):
    """Two steps of NumPyro's SVI leave the same running statistics with our objective as with
    ``Trace_ELBO``.
    """
    states = []
    for loss in (objective, Trace_ELBO()):
        svi = SVI(normed_model, normed_guide, optax.sgd(0.0), loss=loss)
        state = svi.init(jax.random.key(0), BATCH, jnp.arange(3.0))
        step = quick_jit(svi.update)
        for _ in range(2):
            state, _ = step(state, BATCH, jnp.arange(3.0))
        states.append(state.mutable_state)
    ours, theirs = states
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    close(ours, theirs)
    mean = jax.tree.leaves(ours)[0]
    close(mean, 0.875 * BATCH.mean(0))  # the initialisation made a step of its own


def test_the_loss_without_mutable_sites_has_no_state():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    assert ELBO().loss_with_mutable_state(jax.random.key(0), {}, model, model)["mutable_state"] is None


def test_a_counter_goes_on():
    def model():
        count = mutable("count", {"n": jnp.array(0.0)})
        count["n"] = count["n"] + 1.0
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    svi = SVI(model, guide, optax.sgd(0.1), loss=ELBO())
    state = svi.init(jax.random.key(0))
    start = state.mutable_state["count"]["n"]
    for _ in range(3):
        state, _ = svi.update(state)
    close(state.mutable_state["count"]["n"], start + 3.0)
