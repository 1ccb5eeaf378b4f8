"""NumPyro's problems with discrete sites: exact where ``TraceEnum_ELBO`` enumerates, unbiased where it does
not.

The problems, their data and their answers are those of NumPyro's ``test/infer/test_svi.py`` and
``test_gradient.py`` (version 0.19 and later); the code is new. Tolerances are NumPyro's own or tighter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate, enum, log_density
from numpyro.distributions import constraints
from numpyro.infer import TraceEnum_ELBO

from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO
from tests.conformance.numpyro_svi import KEY, close, optimum
from tests.oracles import assert_unbiased, quick_jit

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
DATA = jnp.array([-0.5, 2.0])
SIMPLEX = dist.biject_to(constraints.simplex)


def one_site(probs):
    def model():
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
            numpyro.sample("x", dist.Normal(z, 1), obs=DATA)

    def guide():
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Categorical(probs["z"]))

    return model, guide


def global_and_local(probs):
    def model():
        a = numpyro.sample("a", dist.Categorical(jnp.array([0.3, 0.7])))
        with numpyro.plate("data", 2):
            b = numpyro.sample("b", dist.Categorical(jnp.array([[0.1, 0.9], [0.2, 0.8]])[a]))
            numpyro.sample("c", dist.Normal(b, 1), obs=DATA)

    def guide():
        a = numpyro.sample("a", dist.Categorical(probs["a"]))
        with numpyro.plate("data", 2) as index:
            numpyro.sample("b", dist.Categorical(probs["b"][a, index]))

    return model, guide


def a_tree(probs):
    def model():
        a = numpyro.sample("a", dist.Categorical(jnp.array([0.3, 0.7])))
        with numpyro.plate("data", 2):
            b = numpyro.sample("b", dist.Categorical(jnp.array([[0.3, 0.7], [0.4, 0.6]])[a]))
            c = numpyro.sample("c", dist.Categorical(jnp.array([[0.5, 0.5], [0.6, 0.4]])[b]))
            numpyro.sample("d", dist.Categorical(jnp.array([[0.2, 0.8], [0.3, 0.7]])[b]))
            numpyro.sample(
                "e", dist.Categorical(jnp.array([[0.5, 0.5], [0.1, 0.9]])[c]), obs=jnp.array([0, 1])
            )

    def guide():
        a = numpyro.sample("a", dist.Categorical(probs["a"]))
        with numpyro.plate("data", 2) as index:
            b = numpyro.sample("b", dist.Categorical(probs["b"][a]))
            numpyro.sample("c", dist.Categorical(probs["c"][b, index]))
            numpyro.sample("d", dist.Categorical(probs["d"][b, index]))

    return model, guide


DISCRETE = {
    "one site": (one_site, {"z": [[0.4, 0.6], [0.5, 0.5]]}),
    "global and local": (
        global_and_local,
        {"a": [0.5, 0.5], "b": [[[0.5, 0.5], [0.6, 0.4]], [[0.4, 0.6], [0.35, 0.65]]]},
    ),
    "a tree": (
        a_tree,
        {
            "a": [0.5, 0.5],
            "b": [[0.4, 0.6], [0.3, 0.7]],
            "c": [[[0.3, 0.7], [0.8, 0.2]], [[0.2, 0.8], [0.5, 0.5]]],
            "d": [[[0.2, 0.8], [0.9, 0.1]], [[0.1, 0.9], [0.4, 0.6]]],
        },
    ),
}


def raw(probs):
    return {name: SIMPLEX.inv(jnp.array(p)) for name, p in probs.items()}


def loss_of(loss, problem, strategy=None):
    build, start = DISCRETE[problem]

    def run(params, key=KEY):
        model, guide = build(jax.tree.map(SIMPLEX, params))
        if strategy is not None:
            guide = gradient(guide, {"*": strategy})
        return loss.loss(
            key, {}, model, config_enumerate(guide) if isinstance(loss, TraceEnum_ELBO) else guide
        )

    return jax.value_and_grad(run), raw(start)


@pytest.mark.parametrize(
    "problem", ["one site", "global and local", pytest.param("a tree", marks=pytest.mark.slow)]
)
def test_enumerated_guides_agree_with_trace_enum(problem):
    expected, params = loss_of(TraceEnum_ELBO(), problem)
    actual, _ = loss_of(ELBO(), problem, "enumerate")
    close(quick_jit(actual)(params), quick_jit(expected)(params), 1e-5)


@pytest.mark.parametrize("strategy", ["score", pytest.param("measure_valued", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "problem",
    ["global and local", *(pytest.param(p, marks=pytest.mark.slow) for p in ("one site", "a tree"))],
)
@pytest.mark.slow
def test_sampled_guides_agree_with_trace_enum(problem, strategy):
    expected, params = loss_of(TraceEnum_ELBO(), problem)
    actual, _ = loss_of(ELBO(num_particles=2), problem, strategy)
    samples = quick_jit(jax.vmap(actual, in_axes=(None, 0)))(params, random.split(KEY, 10_000))
    assert_unbiased(samples, quick_jit(expected)(params))


def test_a_discrete_guide_needs_no_warning_and_finds_the_prior():
    def guide():
        numpyro.sample("x", dist.Bernoulli(numpyro.param("probs", 0.2, constraint=constraints.unit_interval)))

    params = optimum(lambda: numpyro.sample("x", dist.Bernoulli(0.5)), guide, ELBO(), 500, 0.05)
    np.testing.assert_allclose(params["probs"], 0.5, atol=1e-3)


@pytest.mark.slow
def test_enumerated_scored_and_reparameterised_sites_in_one_guide():
    """Against the divergence in closed form."""
    prior = {
        "z1": jnp.array([0.2, 0.8]),
        "z2": jnp.array([[0.4, 0.6], [0.6, 0.4]]),
        "z3": jnp.array([[0.3, 0.5], [1.5, 0.0]]),
    }

    def program(p):
        z1 = numpyro.sample("z1", dist.Categorical(p["z1"]))
        z2 = numpyro.sample("z2", dist.Categorical(p["z2"][z1]))
        numpyro.sample("z3", dist.Normal(p["z3"][z2, z1], 1))

    def constrained(params):
        return {"z1": SIMPLEX(params["z1"]), "z2": SIMPLEX(params["z2"]), "z3": params["z3"]}

    def exact(params):
        q = constrained(params)
        joint = q["z1"] * q["z2"].T  # z2, z1
        kl_z2 = jnp.sum(q["z2"] * jnp.log(q["z2"] / prior["z2"]), -1)
        return jnp.sum(q["z1"] * (jnp.log(q["z1"] / prior["z1"]) + kl_z2)) + jnp.sum(
            joint * 0.5 * (q["z3"] - prior["z3"]) ** 2
        )

    def estimate(params, key):
        guide = gradient(
            lambda: program(constrained(params)), {"z1": "enumerate", "z2": "score", "z3": "reparam"}
        )
        return ELBO().loss(key, {}, lambda: program(prior), guide)

    params = raw({"z1": [0.3, 0.7], "z2": [[0.4, 0.6], [0.5, 0.5]]}) | {
        "z3": jnp.array([[0.0, 0.5], [0.5, 1.0]])
    }
    samples = quick_jit(jax.vmap(jax.value_and_grad(estimate), in_axes=(None, 0)))(
        params, random.split(KEY, 10_000)
    )
    assert_unbiased(samples, jax.value_and_grad(exact)(params))


# --- finite sites that only the model has: TraceEnum_ELBO sums them out, and so does our log density


def beside_a_model_site(which):
    """Three sites of a guide, each depending on those before; in the model all hang on a fourth, in four
    ways.
    """
    pairs = {"z1": [[0.4, 0.6], [0.6, 0.4]], "z2": [[0.1, 0.9], [0.3, 0.7]], "z3": [[0.8, 0.2], [0.6, 0.4]]}
    alone = {"z2": [0.7, 0.3], "z3": [0.8, 0.2]}
    parent = {"one child": "d..", "two children": "dd.", "three children": "ddd", "a grandchild": "ddz"}[
        which
    ]

    def model():
        d = numpyro.sample("d", dist.Categorical(jnp.array([0.5, 0.5])))
        z = None
        for name, of in zip(pairs, parent, strict=True):
            probs = jnp.array(alone[name]) if of == "." else jnp.array(pairs[name])[d if of == "d" else z]
            z = numpyro.sample(name, dist.Categorical(probs))

    def guide(probs):
        z1 = numpyro.sample("z1", dist.Categorical(probs["z1"]))
        z2 = numpyro.sample("z2", dist.Categorical(probs["z2"][z1]))
        numpyro.sample("z3", dist.Categorical(probs["z3"][z1, z2]))

    return config_enumerate(model), guide


@pytest.mark.parametrize(
    "which",
    [
        "three children",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("one child", "two children", "a grandchild")),
    ],
)
def test_a_model_site_above_an_enumerated_guide(which):
    model, guide = beside_a_model_site(which)
    start = {
        "z1": [0.3, 0.7],
        "z2": [[0.4, 0.6], [0.5, 0.5]],
        "z3": [[[0.4, 0.6], [0.5, 0.5]], [[0.7, 0.3], [0.9, 0.1]]],
    }

    def value_and_grad(loss, wrap):
        def run(params):
            return loss.loss(KEY, {}, model, wrap(lambda: guide(jax.tree.map(SIMPLEX, params))))

        return quick_jit(jax.value_and_grad(run))(raw(start))

    ours = value_and_grad(ELBO(), lambda guide: gradient(guide, {"*": "enumerate"}))
    close(ours, value_and_grad(TraceEnum_ELBO(), config_enumerate), 1e-5)


@config_enumerate
def mixture(data):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    locs = numpyro.sample("locs", dist.Normal(jnp.array([-1.0, 1.0]), 3.0).to_event(1))
    with numpyro.plate("N", len(data)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("obs", dist.Normal(locs[z], 0.7), obs=data)


def mixture_guide(data):
    positive = constraints.positive
    numpyro.sample("weights", dist.Dirichlet(numpyro.param("c", 2.0 * jnp.ones(2), constraint=positive)))
    scale = numpyro.param("s", 0.5 * jnp.ones(2), constraint=positive)
    numpyro.sample("locs", dist.Normal(numpyro.param("m", jnp.array([-1.0, 1.0])), scale).to_event(1))


@pytest.mark.slow
def test_a_mixture_has_the_optimum_of_trace_enum():
    data = jnp.array([-2.2, -1.7, -2.9, 1.6, 2.4, 2.1, 3.0, -1.9])
    ours, theirs = (
        optimum(mixture, mixture_guide, loss(num_particles=4), 1_500, 0.02, data)
        for loss in (ELBO, TraceEnum_ELBO)
    )
    close(ours, theirs | {"c": ours["c"]}, 0.08)
    np.testing.assert_allclose(ours["c"], theirs["c"], rtol=0.1)


@pytest.mark.slow
def test_a_hidden_markov_model_finds_its_most_likely_parameters():
    """Without a guide the bound is the likelihood; its slope by NumPyro's own enumeration of a scan is zero
    where ours stops.
    """
    data = jnp.array([0.1, 2.2, 1.8, 2.1, -0.3, 0.2, 1.7, 2.4, 2.0, 0.0, -0.1, 2.3])

    def model():
        stay = numpyro.param("stay", jnp.array([0.6, 0.6]), constraint=constraints.unit_interval)
        loc = numpyro.param("loc", jnp.array([0.5, 1.5]))

        def step(x, y):
            probs = jnp.where(x == 0, 1 - stay[0], stay[1])
            x = numpyro.sample("x", dist.Bernoulli(probs), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(jnp.where(x == 0, loc[0], loc[1]), 0.6), obs=y)
            return x, None

        scan(step, 0, data)

    params = optimum(model, lambda: None, ELBO(), 1_500, 0.02)

    def likelihood(params):
        return log_density(enum(config_enumerate(model), -1), (), {}, params)[0]

    slope = jax.grad(likelihood)(params)
    close(slope, jax.tree.map(jnp.zeros_like, slope), 5e-3)
    assert params["loc"][0] < 0.3 and params["loc"][1] > 1.8
