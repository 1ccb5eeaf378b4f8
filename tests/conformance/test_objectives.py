"""The contract every objective keeps: under jit, vmap and SVI, in both precisions, with any key and any
parameters.

A new objective joins by one row in ``OBJECTIVES``; one that asks for sites of its own, by a pair in
:func:`programs` too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer.elbo
import optax
import pytest
from numpyro.infer import SVI

from ppl_ext.handlers import gradient
from ppl_ext.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    ChiUpperBound,
    ConditionalImportanceSampling,
    FDivergence,
    ForwardKL,
    MarkovScoreClimbing,
    Renyi,
    ReweightedWakeSleep,
    Sleep,
    Thermodynamic,
    constrain,
    kl,
)
from ppl_ext.scores import GaussianScore, ScoreKL, score_prior
from tests.oracles import quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

OBJECTIVES = {
    "ELBO()": lambda: ELBO(),
    "ELBO(3)": lambda: ELBO(num_particles=3),
    "IWELBO(3)": lambda: IWELBO(num_particles=3),
    "Renyi(0.5, 3)": lambda: Renyi(alpha=0.5, num_particles=3),
    "ForwardKL(3)": lambda: ForwardKL(num_particles=3),
    "ELBO, both options": lambda: ELBO(analytic_kl=True, stick_the_landing=True),
    "VRIWAE(0.5, 3)": lambda: VRIWAE(alpha=0.5, num_particles=3),
    "FDivergence(3)": lambda: FDivergence(num_particles=3),
    "Thermodynamic(3)": lambda: Thermodynamic(num_particles=3),
    "Sleep(2)": lambda: Sleep(num_particles=2),
    "ReweightedWakeSleep(3)": lambda: ReweightedWakeSleep(num_particles=3, sleep=0.5),
    "ChiUpperBound(3)": lambda: ChiUpperBound(num_particles=3),
    "MarkovScoreClimbing(3)": lambda: MarkovScoreClimbing(ConditionalImportanceSampling(3)),
    "ScoreKL(3)": lambda: ScoreKL(num_particles=3),
    "ScoreKL, descending": lambda: ScoreKL(weight="snr", num_particles=3, num_steps=10),
    "constrain": lambda: constrain(ELBO(), kl("x"), at_most=0.1),
}

DATA = np.array([0.3, -0.8, 1.4, 0.6], dtype=np.float32)


def model(y):
    observed(numpyro.sample("x", dist.Normal(0.0, 1.0)), y)


def scored_model(y):
    """The same, its normal site known by its score."""
    observed(score_prior("x", GaussianScore(jnp.zeros(1), jnp.eye(1)))[0], y)


def observed(x, y):
    spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(logits=x))
        numpyro.sample("y", dist.Normal(z - 0.5 * x, spread), obs=y)


def guide(y):
    """Every kind of site: reparameterised, scored, and left to its default; parameters in a dictionary."""
    guided(lambda loc: dist.Normal(loc, 0.8), y)


def scored_guide(y):
    guided(lambda loc: dist.Normal(loc, 0.8).expand([1]).to_event(1), y)


def guided(law, y):
    numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
    q = numpyro.param("q", {"loc": jnp.asarray(0.1), "logits": jnp.zeros(4)})
    x = numpyro.sample("x", law(q["loc"]))
    with numpyro.plate("n", len(y)):
        numpyro.sample("z", dist.Bernoulli(logits=q["logits"] + 0.3 * x), infer={"gradient": "score"})


def programs(objective):
    """The model and the guide that an objective is tried on."""
    return (scored_model, scored_guide) if isinstance(objective, ScoreKL) else (model, guide)


def parameters(dtype=jnp.float32):
    q = {"loc": jnp.asarray(0.2, dtype), "logits": jnp.asarray([0.1, -0.2, 0.3, 0.0], dtype)}
    return {"spread": jnp.asarray(0.9, dtype), "q": q}


def started(objective, model=None, guide=None, data=DATA):
    """What the objective carries from step to step, before the first."""
    model, guide = model or programs(objective)[0], guide or programs(objective)[1]
    params = jax.tree.map(lambda x: x.astype(data.dtype), parameters())
    return objective.initial_state(jax.random.key(5), params, model, guide, data)


def eager(objective, model=None, guide=None, data=DATA):
    """``(rng_key, params)`` to the loss and its gradient."""
    model, guide = model or programs(objective)[0], guide or programs(objective)[1]
    state = started(objective, model, guide, data)
    return lambda rng_key, params: jax.value_and_grad(
        lambda p: objective.loss(rng_key, p | state, model, guide, data)
    )(params)


def compiled(objective, model=None, guide=None, data=DATA):
    """The same, compiled."""
    return quick_jit(eager(objective, model, guide, data))


def assert_close(actual, expected, rtol=1e-5, atol=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


def assert_equal(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0)


# What the first five and these share is tested by default, the rest with the slow tests.
QUICK = ("ELBO()", "ELBO(3)", "IWELBO(3)", "Renyi(0.5, 3)", "ForwardKL(3)", "MarkovScoreClimbing(3)")


@pytest.fixture(
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES]
)
def objective(request):
    return OBJECTIVES[request.param]()


def test_is_an_elbo_of_numpyro(objective):
    assert isinstance(objective, numpyro.infer.elbo.ELBO)


def test_jit_changes_nothing(objective, rng_key):
    assert_close(compiled(objective)(rng_key, parameters()), eager(objective)(rng_key, parameters()))


def test_vmap_over_keys_is_a_loop(objective, rng_key):
    run, keys = compiled(objective), jax.random.split(rng_key, 3)
    together = quick_jit(jax.vmap(eager(objective), in_axes=(0, None)))(keys, parameters())
    one_by_one = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[run(key, parameters()) for key in keys])
    assert_close(together, one_by_one)


def test_vmap_over_parameters_is_a_loop(objective, rng_key):
    run, several = compiled(objective), [parameters(), jax.tree.map(lambda x: x + 0.3, parameters())]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = quick_jit(jax.vmap(eager(objective), in_axes=(None, 0)))(rng_key, stacked)
    one_by_one = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[run(rng_key, params) for params in several]
    )
    assert_close(together, one_by_one)


def test_a_second_call_does_not_retrace(objective, rng_key):
    traces = 0

    def counted(y):
        nonlocal traces
        traces += 1
        return programs(objective)[0](y)

    run = compiled(objective, model=counted)
    first, second = jax.random.split(rng_key)
    run(first, parameters())
    after_first = traces
    run(second, jax.tree.map(lambda x: 1.1 * x, parameters()))
    assert traces == after_first > 0


@pytest.mark.slow
def test_promotes_no_ranks(objective, rng_key):
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(eager(objective), rng_key, parameters())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_keeps_the_precision_it_is_given(objective, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params, data = parameters(dtype), DATA.astype(dtype)
        loss, grads = compiled(objective, data=data)(jax.random.key(0), params)
        assert {leaf.dtype for leaf in jax.tree.leaves((loss, grads))} == {np.dtype(dtype)}
        assert loss.shape == ()
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))


@pytest.mark.parametrize(
    "name",
    [
        "ELBO()",
        "ELBO(3)",
        "IWELBO(3)",
        "Renyi(0.5, 3)",
        pytest.param("FDivergence(3)", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_single_precision_is_close_to_double(name):
    """Every site is enumerated, so both precisions see the same outcomes. (Others hold their draws fixed.)"""
    objective = OBJECTIVES[name]()

    def guide(y):
        with numpyro.plate("n", len(y)):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logits", jnp.zeros(4))))

    def model(y):
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Bernoulli(0.4)), 1.0), obs=y)

    results = {}
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            params = {"logits": jnp.asarray([0.1, -0.2, 0.3, 0.0], dtype)}
            run = compiled(objective, model, gradient(guide, {"z": "enumerate"}), DATA.astype(dtype))
            results[dtype] = run(jax.random.key(0), params)
    assert_close(results[jnp.float32], results[jnp.float64])


def test_gradients_have_the_structure_of_the_parameters(objective, rng_key):
    loss, grads = compiled(objective)(rng_key, parameters())
    assert jax.tree.structure(grads) == jax.tree.structure(parameters())
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, parameters())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads["q"]))


def test_legacy_and_typed_keys_agree(objective):
    run = compiled(objective)
    assert_equal(run(jax.random.PRNGKey(7), parameters()), run(jax.random.key(7), parameters()))


def test_equal_keys_give_equal_results_and_others_do_not(objective):
    run = compiled(objective)
    once, again, other = (run(jax.random.key(seed), parameters()) for seed in (3, 3, 4))
    assert_equal(once, again)
    assert once[0] != other[0]


def test_svi_takes_it_as_its_loss(objective, rng_key):
    model, guide = programs(objective)
    svi = SVI(model, objective.carried_by(guide, model), optax.adam(1e-2), loss=objective)
    result = svi.run(rng_key, 4, DATA, progress_bar=False)
    assert result.losses.shape == (4,)
    assert jnp.isfinite(result.losses).all()
    if not started(objective):  # NumPyro's evaluate passes no mutable state
        assert jnp.isfinite(quick_jit(svi.evaluate)(result.state, DATA))
    assert result.params["spread"] > 0


def test_arguments_pass_through(objective, rng_key):
    """Positional or by keyword, to model and guide alike."""
    state, (model, guide) = started(objective), programs(objective)
    by_position = quick_jit(lambda key, params: objective.loss(key, params | state, model, guide, DATA))
    by_keyword = quick_jit(lambda key, params: objective.loss(key, params | state, model, guide, y=DATA))
    assert_equal(by_position(rng_key, parameters()), by_keyword(rng_key, parameters()))


def test_leaves_the_callers_parameters_alone(objective, rng_key):
    model, guide = programs(objective)

    @quick_jit
    def run(rng_key, params):
        before = dict(params)
        loss = objective.loss(rng_key, params, model, guide, DATA)
        assert list(params) == list(before)
        assert all(params[name] is before[name] for name in before)
        return loss

    run(rng_key, parameters() | started(objective))


@pytest.mark.parametrize("num_particles", [0, -1, 2.5])
@pytest.mark.parametrize(
    "make",
    [ELBO, IWELBO, Renyi, ForwardKL, Thermodynamic, Sleep, ReweightedWakeSleep, ChiUpperBound, ScoreKL],
)
def test_a_number_of_particles_is_at_least_one(make, num_particles):
    with pytest.raises((ValueError, TypeError), match="num_particles"):
        make(num_particles=num_particles)
