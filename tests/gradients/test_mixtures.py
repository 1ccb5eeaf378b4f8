"""``ComponentFrequency``: exact where it is exact, and biased as its formula says, by quadrature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext.errors import StrategyError
from ppl_ext.gradients import ScoreFunction
from ppl_ext.gradients.mixtures import ComponentFrequency
from ppl_ext.handlers import gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO
from tests.oracles import assert_unbiased

KEY = jax.random.key(0)
LOC, SCALE = jnp.array([-2.0, 1.5]), jnp.array([0.5, 0.8])
START = {"logits": jnp.array([0.4, -0.3]), "loc": jnp.array([-1.6, 1.2]), "scale": jnp.array([0.6, 0.7])}
POINTS = jnp.linspace(-8.0, 8.0, 4001)
EVIDENCE = 1.7  # log of the target's constant


def mixture(params):
    return dist.MixtureSameFamily(
        dist.Categorical(logits=params["logits"]), dist.Normal(params["loc"], params["scale"])
    )


TARGET = {"logits": jnp.log(jnp.array([0.3, 0.7])), "loc": LOC, "scale": SCALE}


def model(target=TARGET):
    numpyro.sample("z", mixture(target))
    numpyro.factor("evidence", EVIDENCE)


def guide(target=None):
    params = {name: numpyro.param(name, value) for name, value in START.items()}
    numpyro.sample("z", mixture(params))


def by(num_draws=1):
    return gradient(guide, {"z": ComponentFrequency(num_draws)})


def slopes(objective, num_draws=1, num=4000, params=START):
    """Gradients of the objective, one a key."""

    def ascent(key):
        return jax.grad(lambda p: -objective.loss(key, p, model, by(num_draws)))(params)

    return jax.jit(jax.vmap(ascent))(jax.random.split(KEY, num))


def loss(objective, params, model, guide):
    return jax.jit(lambda p: objective.loss(KEY, p, model, guide))(params)


def log_ratio(z, params):
    return mixture(TARGET).log_prob(z) + EVIDENCE - mixture(params).log_prob(z)


@jax.jit
def exact_elbo(params):
    log_q = mixture(params).log_prob(POINTS)
    return jnp.trapezoid(jnp.exp(log_q) * log_ratio(POINTS, params), POINTS)


def frequency_slope(params, v):
    """The gradient of minus the loss, by logits."""
    w, pull = jax.vjp(jax.nn.softmax, params["logits"])
    return pull(2 * (v - w))[0]


@jax.jit
def expected_slope_of_one_draw(params):
    """Over a grid of both components' draws: Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = params["loc"][:, None] + params["scale"][:, None] * nodes
    w = jax.nn.softmax(params["logits"])
    worth = jnp.log(w)[:, None] + log_ratio(z, params)
    first = jax.nn.sigmoid(worth[0][:, None] - worth[1][None, :])
    v = jnp.einsum("i,j,ij->", weights, weights, first) / weights.sum() ** 2
    return frequency_slope(params, jnp.stack([v, 1 - v]))


def test_gradients_of_components_are_unbiased_and_those_of_weights_as_the_formula_says():
    """By quadrature; z-scores of six numbers from 4000 keys, within 4.5."""
    exact = jax.grad(exact_elbo)(START) | {"logits": expected_slope_of_one_draw(START)}
    found = slopes(ELBO())
    assert_unbiased((found["loc"], found), (exact["loc"], exact))
    wrong = exact | {"logits": jax.grad(exact_elbo)(START)["logits"]}
    with pytest.raises(AssertionError, match="standard errors off"):  # it is biased, as it says
        assert_unbiased((found["loc"], found), (exact["loc"], wrong))


def test_many_draws_estimate_responsibilities():
    """Of 16 draws a component, by their costs alone: the ratio's bias is of the order 1/16 of the slope."""
    density = jnp.exp(mixture(TARGET).log_prob(POINTS))
    parts = mixture(START).component_log_probs(POINTS)
    v = jnp.trapezoid(density[:, None] * jax.nn.softmax(parts, -1), POINTS, axis=0)
    exact = frequency_slope(START, v)
    found = slopes(ELBO(stick_the_landing=True), 16, 400)["logits"]
    error = found.std(0) / 400**0.5
    assert (abs(found.mean(0) - exact) < 4.5 * error + 0.005).all()
    assert (abs(exact) > 0.3).all() and (error < 0.003).all()


def test_at_the_posterior_nothing_moves_whatever_is_drawn():
    found = slopes(ELBO(stick_the_landing=True), num=50, params=TARGET)
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5)


@pytest.mark.parametrize("num_particles", [2, 5])
def test_under_an_average_over_particles_the_mean_is_the_same(num_particles):
    exact = jax.grad(exact_elbo)(START) | {"logits": expected_slope_of_one_draw(START)}
    found = slopes(ELBO(num_particles=num_particles), num=2000)
    assert_unbiased((found["loc"], found), (exact["loc"], exact))


def test_elements_of_a_plate_have_frequencies_of_their_own():
    """Three rows with targets of their own, one guide for each: as three fits of one row."""
    shifts = jnp.array([0.0, 0.5, -1.0])
    start = {name: jnp.stack([x, x + 0.1, x + 0.2]) for name, x in START.items()}

    def target(shift):
        return TARGET | {"loc": LOC + shift}

    def rows_model():
        law = mixture({name: jnp.broadcast_to(x, (3, 2)) for name, x in TARGET.items()})
        with numpyro.plate("rows", 3):
            z = numpyro.sample("z", mixture({k: jnp.broadcast_to(x, (3, 2)) for k, x in TARGET.items()}))
            numpyro.factor("moved", mixture(jax.vmap(target)(shifts)).log_prob(z) - law.log_prob(z))

    def rows_guide():
        params = {name: numpyro.param(name, value) for name, value in start.items()}
        with numpyro.plate("rows", 3):
            numpyro.sample("z", mixture(params))

    def ascent(key):
        with_strategy = gradient(rows_guide, {"z": ComponentFrequency()})
        return jax.grad(lambda p: -ELBO().loss(key, p, rows_model, with_strategy))(start)["logits"]

    found = jax.jit(jax.vmap(ascent))(jax.random.split(KEY, 2000))

    def alone(row):
        params = {name: x[row] for name, x in start.items()}
        moved = params | {"loc": params["loc"] - shifts[row]}  # a shift of both changes nothing
        return expected_slope_of_one_draw(moved)

    exact = jnp.stack([alone(row) for row in range(3)])
    assert_unbiased((found, found), (exact, exact))


@pytest.mark.parametrize("how", [{"subsample": 2}, {"scale": 3.0}], ids=str)
def test_a_subsampled_plate_and_a_scale_count_rows_and_sharpen_nothing(how):
    """Four rows with one target: the slope is four times that of one, and that times the scale."""
    model, guide = rows_of_one_target, partial(guide_of_rows, strategy=ComponentFrequency())

    def ascent(key):
        return jax.grad(lambda p: -ELBO().loss(key, p, model, guide, **how))(START)

    found = jax.jit(jax.vmap(ascent))(jax.random.split(KEY, 2000))
    exact = jax.grad(exact_elbo)(START) | {"logits": expected_slope_of_one_draw(START)}
    exact = jax.tree.map(lambda x: 4 * how.get("scale", 1.0) * x, exact)
    assert_unbiased((found["loc"], found), (exact["loc"], exact))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased((found["loc"], found), (exact["loc"], exact | {"logits": 0.8 * exact["logits"]}))


def rows_of_one_target(subsample=None, scale=1.0):
    with numpyro.plate("rows", 4, subsample_size=subsample), numpyro.handlers.scale(scale=scale):
        numpyro.sample("z", mixture(TARGET))


def guide_of_rows(subsample=None, scale=1.0, strategy=None):
    params = {name: numpyro.param(name, value) for name, value in START.items()}
    with numpyro.plate("rows", 4, subsample_size=subsample), numpyro.handlers.scale(scale=scale):
        numpyro.sample("z", mixture(params), infer={"gradient": strategy})


def test_a_scaled_cost_alone_sharpens_as_it_does_the_posterior():
    """Twice the likelihood beside a site that counts once: v is that of the posterior of twice the data."""

    def tempered():
        z = numpyro.sample("z", mixture(START))
        with numpyro.handlers.scale(scale=2.0):
            numpyro.factor("data", 0.5 * (mixture(TARGET).log_prob(z) - mixture(START).log_prob(z)))

    def ascent(key):
        return jax.grad(lambda p: -ELBO().loss(key, p, tempered, by()))(START)["logits"]

    found = jax.jit(jax.vmap(ascent))(jax.random.split(KEY, 2000))
    exact = expected_slope_of_one_draw(START)
    assert_unbiased((found, found), (exact, exact))


def test_a_fit_in_a_subsampled_plate_is_reported():
    guide = partial(guide_of_rows, strategy=ComponentFrequency())
    args = KEY, rows_of_one_target, guide, ELBO(), optax.sgd(0.01), 3
    run = fit(*args, subsample=2, scale=2.0, progress_bar=False)
    assert run.to_arviz(num_samples=5).posterior["z"].shape == (1, 5, 4)


def test_events_of_several_dimensions():
    """Of a mixture of points in the plane, whose second coordinate says nothing of the component."""

    def plane(params):
        loc = jnp.stack([params["loc"], jnp.zeros(2)], -1)
        scale = jnp.stack([params["scale"], jnp.ones(2)], -1)
        parts = dist.Normal(loc, scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=params["logits"]), parts)

    def in_plane():
        numpyro.sample("z", plane(TARGET))

    def guide():
        params = {name: numpyro.param(name, value) for name, value in START.items()}
        numpyro.sample("z", plane(params), infer={"gradient": ComponentFrequency()})

    def ascent(key):
        return jax.grad(lambda p: -ELBO().loss(key, p, in_plane, guide))(START)

    found = jax.jit(jax.vmap(ascent))(jax.random.split(KEY, 2000))
    exact = jax.grad(exact_elbo)(START) | {"logits": expected_slope_of_one_draw(START)}
    assert_unbiased((found["loc"], found), (exact["loc"], exact))


def test_a_fit_finds_both_modes_and_their_weights():
    optim = optax.adam(optax.cosine_decay_schedule(0.02, 1500))
    run = fit(KEY, model, by(), ELBO(stick_the_landing=True), optim, 1500, progress_bar=False)
    np.testing.assert_allclose(jax.nn.softmax(run.params["logits"][0]), [0.3, 0.7], atol=0.01)
    np.testing.assert_allclose(run.params["loc"][0], LOC, atol=0.02)


# --- what it cannot do


def test_it_serves_mixtures_of_differentiable_samplers_alone():
    for law in (dist.Normal(), dist.Categorical(jnp.ones(2) / 2)):
        assert not ComponentFrequency.serves(law)
    counts = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Poisson(jnp.ones(2)))
    assert not ComponentFrequency.serves(counts)
    with pytest.raises(StrategyError, match="cannot serve site 'n'"):
        ComponentFrequency().check("n", counts)
    with pytest.raises(ValueError, match="num_draws"):
        ComponentFrequency(0)


def test_an_objective_that_is_no_average_of_particles_is_refused():
    with pytest.raises(StrategyError, match=r"ComponentFrequency\(num_draws=1\) at site 'z' .* Use ELBO"):
        loss(IWELBO(3), START, model, by())
    one, same = (loss(x, START, model, by()) for x in (IWELBO(1), ELBO()))  # which is an average
    assert one == same


def test_beside_joint_enumeration_it_is_refused():
    def coin_model():
        x = numpyro.sample("x", dist.Bernoulli(0.3))
        z = numpyro.sample("z", mixture(TARGET))
        numpyro.factor("both", -0.1 * x * z)

    def coin_guide(strategy):
        numpyro.sample("x", dist.Bernoulli(0.4), infer={"gradient": strategy})
        numpyro.sample("z", mixture(START), infer={"gradient": ComponentFrequency()})

    with pytest.raises(StrategyError, match="'enumerate_locally' or 'score' for those sites"):
        loss(ELBO(), {}, coin_model, lambda: coin_guide("enumerate"))
    for other in ("enumerate_locally", ScoreFunction()):
        assert np.isfinite(loss(ELBO(), {}, coin_model, lambda other=other: coin_guide(other)))
