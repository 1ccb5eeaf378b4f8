"""``constrain`` and its multiplier. What is enumerated is compared exactly.

20,000 replicates with fixed keys, within 4.5 standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext import log_density, simulate
from ppl_ext.errors import ModelError
from ppl_ext.handlers import gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO, constrain, kl
from tests.objectives.exact import SCORE
from tests.oracles import assert_unbiased, quick_jit, table
from tests.problems import PROBLEMS

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)


def coin(y):
    numpyro.sample("y", dist.Normal(2.0 * numpyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=y)


def coin_guide(y):
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.0)), infer={"gradient": "enumerate"})


def kl_from_half(logit):
    p = jax.nn.sigmoid(logit)
    return p * jnp.log(2 * p) + (1 - p) * jnp.log(2 * (1 - p))


@pytest.mark.slow
def test_a_constraint_is_met_and_the_multiplier_is_lagranges():
    """Everything is enumerated: the optimum is that of the Lagrangian, to four digits."""
    loss = constrain(ELBO(), kl("z"), at_most=0.1, rate=0.2)
    result = fit(KEY, coin, coin_guide, loss, optax.sgd(0.2), 4_000, 2.0, progress_bar=False)
    logit = jnp.asarray(result.params["logit"][0])
    np.testing.assert_allclose(kl_from_half(logit), 0.1, atol=1e-4)
    # The likelihood's slope, 2 σ(1 − σ), balances 1 + λ times that of the divergence.
    slope = 2.0 * jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit)
    multiplier = slope / jax.grad(kl_from_half)(logit) - 1.0
    np.testing.assert_allclose(result.params["kl('z') <= 0.1"]["multiplier"][0], multiplier, rtol=1e-3)


def test_a_quantity_of_your_own_may_be_bounded_below_zero():
    assert "at_least=-3.0" in repr(constrain(ELBO(), lambda model, guide: -1.0, at_least=-3.0))


def test_a_multiplier_may_begin_at_zero():
    assert "initial=0.0" in repr(constrain(ELBO(), kl("z"), at_most=1.0, initial=0.0))


@pytest.mark.slow
def test_a_constraint_that_does_not_bind_lets_go():
    result = fit(
        KEY,
        coin,
        coin_guide,
        constrain(ELBO(), kl("z"), at_most=5.0, rate=0.1),
        optax.sgd(0.5),
        300,
        2.0,
        progress_bar=False,
    )
    assert result.params["kl('z') <= 5.0"]["multiplier"][0] == 0.0
    # the posterior's: log N(2; 2, 1) − log N(2; 0, 1)
    np.testing.assert_allclose(result.params["logit"][0], 2.0, atol=1e-2)


@pytest.mark.slow
def test_constraints_from_below_nest_and_take_a_function():
    """The mean log likelihood, log N(1.1; 2, 1) p + log N(1.1; 0, 1) (1 − p), is asked to be that of p =
    0.775.
    """

    def likelihood(model, guide):
        return log_density(model, simulate(guide).values).select("y")

    least = round(-0.45 - 0.5 * float(np.log(2 * np.pi)), 6)
    loss = constrain(constrain(ELBO(), likelihood, at_least=least, rate=0.1), IWELBO(2), at_most=100.0)
    assert repr(loss).startswith("constrain(constrain(ELBO(") and f"at_least={least}" in repr(loss)
    result = fit(KEY, coin, coin_guide, loss, optax.sgd(0.2), 2_000, 1.1, progress_bar=False)
    assert set(result.params) == {"logit", f"likelihood >= {least}", "IWELBO(num_particles=2) <= 100.0"}
    # the multiplier sees draws
    np.testing.assert_allclose(jax.nn.sigmoid(result.params["logit"][0]), 0.775, atol=0.03)


@pytest.mark.slow
def test_the_lagrangian_and_the_step_of_its_multiplier_are_unbiased():
    problem = PROBLEMS["chain"]
    loss = constrain(ELBO(), kl("a"), at_most=0.02, rate=0.5)
    name = "kl('a') <= 0.02"

    def exact(params, multiplier=0.7):
        _, log_p, log_q = (x.reshape(-1) for x in table(problem.oracle, params, None))
        q = jax.nn.sigmoid(params["phi"])
        divergence = q * jnp.log(q / 0.4) + (1 - q) * jnp.log((1 - q) / 0.6)
        return -(jnp.exp(log_q) * (log_p - log_q)).sum() + multiplier * (divergence - 0.02)

    def one(key, params):
        return loss.loss(
            key,
            params | {name: {"multiplier": jnp.asarray(0.7)}},
            problem.model,
            gradient(problem.guide, {"*": SCORE}),
        )

    # far enough from the prior for the multiplier to show
    params = jax.tree.map(jnp.asarray, problem.params | {"phi": 0.9})
    run = jax.vmap(jax.value_and_grad(one, argnums=1), in_axes=(0, None))
    samples = quick_jit(run)(jax.random.split(KEY, 20_000), params)
    assert_unbiased(samples, jax.value_and_grad(exact)(params))
    for multiplier in (-0.7, 0.0, 1.0):  # a wrong sign, the multiplier forgotten, another one
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples, jax.value_and_grad(exact)(params, multiplier))
    state = params | {name: {"multiplier": jnp.asarray(0.7)}}
    after = loss.loss_with_mutable_state(KEY, state, problem.model, problem.guide)["mutable_state"][name][
        "multiplier"
    ]
    q = jax.nn.sigmoid(params["phi"])
    divergence = q * jnp.log(q / 0.4) + (1 - q) * jnp.log((1 - q) / 0.6)
    np.testing.assert_allclose(after, 0.7 + 0.5 * (divergence - 0.02), rtol=1e-5)


# --- in plates

Y = jnp.array([0.5, -1.0, 2.0, 0.1])


def rows(y, subsample=None, scale=1.0):
    with numpyro.plate("rows", 4, subsample_size=subsample) as index, numpyro.handlers.scale(scale=scale):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[index])


def of_rows(y, subsample=None, scale=1.0):
    loc = numpyro.param("loc", jnp.zeros(4))
    with numpyro.plate("rows", 4, subsample_size=subsample) as index, numpyro.handlers.scale(scale=scale):
        numpyro.sample("z", dist.Normal(loc[index], 0.6))


@pytest.mark.parametrize("how", [{}, {"subsample": 2}, {"scale": 3.0}], ids=str)
def test_a_divergence_in_a_plate_counts_as_the_plate_and_the_scale_say(how):
    loss, name, scale = (
        constrain(ELBO(), kl("z"), at_most=1.5, rate=0.5),
        "kl('z') <= 1.5",
        3.0 if "scale" in how else 1.0,
    )
    state = {name: {"multiplier": jnp.asarray(0.7)}}

    def divergence(loc):
        return scale * (0.5 * (loc**2 + 0.36 - 1) - jnp.log(0.6)).sum()

    def exact(loc, multiplier=0.7):
        likelihood = scale * (-0.5 * ((Y - loc) ** 2 + 0.36) - 0.5 * jnp.log(2 * jnp.pi)).sum()
        return divergence(loc) - likelihood + multiplier * (divergence(loc) - 1.5)

    def one(key, loc):
        out = loss.loss_with_mutable_state(key, {"loc": loc} | state, rows, of_rows, Y, **how)
        return out["loss"], out["mutable_state"][name]["multiplier"]

    run = jax.vmap(jax.value_and_grad(one, argnums=1, has_aux=True), in_axes=(0, None))
    (values, multipliers), slopes = quick_jit(run)(jax.random.split(KEY, 4_000), Y / 3)
    assert_unbiased((values, slopes), jax.value_and_grad(exact)(Y / 3))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased((values, slopes), jax.value_and_grad(exact)(Y / 3, 1.0))
    error = 4.5 * multipliers.std() / 4_000**0.5 + 1e-5
    assert abs(multipliers.mean() - (0.7 + 0.5 * (divergence(Y / 3) - 1.5))) < error


@pytest.mark.parametrize("subsample", [None, 2])
def test_a_fit_in_a_plate_is_reported(subsample):
    loss = constrain(ELBO(), kl("z"), at_most=1.5)
    run = fit(KEY, rows, of_rows, loss, optax.sgd(0.01), 3, Y, subsample=subsample, progress_bar=False)
    report = run.to_arviz(num_samples=5)
    assert report.posterior["z"].shape == report.log_likelihood["y"].shape == (1, 5, 4)


def test_what_constrain_refuses():
    for call, message in (
        (lambda: constrain(ELBO, kl("z"), at_most=1.0), "instance"),
        (lambda: constrain(ELBO(), kl("z")), "either at_most"),
        (lambda: constrain(ELBO(), kl("z"), at_most=1.0, at_least=0.0), "either at_most"),
        (lambda: constrain(ELBO(), 3.0, at_most=1.0), "must be a function"),
        (lambda: constrain(ELBO(), kl("z"), at_most=1.0, rate=-1.0), "at least 0"),
        (
            lambda: constrain(ELBO(), kl("z"), at_most=-0.5),
            r"kl\('z'\) is a divergence .* the bound -0.5 has no meaning. Give the nats",
        ),
        (lambda: constrain(ELBO(), kl("z"), at_least=-0.5), "never below 0"),
        (lambda: kl(3), "name of a site"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    with pytest.raises(ModelError, match=r"kl\('w'\): .* no common latent site that fits. They have 'z'"):
        constrain(ELBO(), kl("w"), at_most=1.0).initial_state(KEY, {}, coin, coin_guide, 2.0)
