"""State that an objective carries from step to step: through ``SVI`` and ``fit``, started once, never
silently new.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from numpyro.primitives import mutable

from ppl_ext import carried, expectation, log_density, objective, replicate, simulate
from ppl_ext.errors import ArgumentError, HandlerError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)


def model(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def guide(y):
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 0.5))


def evidence(model, guide):
    draw = simulate(guide)
    return log_density(model, draw.values) - draw.log_density


@objective
def Walking(model, guide):
    """The ELBO, beside a sum of 1 + its own draws' signs that starts from a draw."""
    state = carried(
        "walk", lambda: {"at": jax.lax.stop_gradient(simulate(guide).values["z"]), "steps": jnp.zeros(())}
    )
    bound = ELBO(2)(model, guide)  # what is written after a replicate counts too
    state["steps"] = state["steps"] + 1.0
    state["at"] = state["at"] + jnp.sign(state["at"])
    return bound


@objective
def ByNumPyro(model, guide):
    """A plain ``numpyro.mutable`` in the objective is the same thing."""
    state = mutable("walk", {"steps": jnp.zeros(())})
    state["steps"] = state["steps"] + 1.0
    return evidence(model, guide)


@pytest.mark.slow
def test_svi_carries_it():
    svi = SVI(model, Walking().carried_by(guide, model), optax.sgd(0.1), Walking())
    state = svi.init(KEY, 1.0)
    start = state.mutable_state["walk"]
    assert start["steps"] == 0.0 and start["at"] != 0.0
    update = jax.jit(lambda state: svi.update(state, 1.0)[0])
    for step in (1, 2, 3):
        state = update(state)
        now = state.mutable_state["walk"]
        assert now["steps"] == step
        np.testing.assert_allclose(now["at"], start["at"] + step * jnp.sign(start["at"]), rtol=1e-6)
    result = SVI(model, Walking().carried_by(guide, model), optax.sgd(0.1), Walking()).run(
        KEY, 4, 1.0, progress_bar=False
    )
    assert result.state.mutable_state["walk"]["steps"] == 4.0


@pytest.mark.parametrize("approximation", [guide, AutoNormal(model)], ids=["guide", "AutoNormal"])
@pytest.mark.slow
def test_fit_carries_it_chain_by_chain(approximation):
    result = fit(
        KEY, model, approximation, Walking(), optax.sgd(0.01), 5, 1.0, num_chains=2, progress_bar=False
    )
    np.testing.assert_array_equal(result.params["walk"]["steps"], [5.0, 5.0])
    assert len(set(np.asarray(result.params["walk"]["at"]).tolist())) == 2
    assert result.to_arviz(num_samples=3).posterior.sizes["chain"] == 2


def test_plain_mutable_state_in_an_objective_is_carried_too():
    result = fit(KEY, model, guide, ByNumPyro(), optax.sgd(0.1), 3, 1.0, progress_bar=False)
    assert result.params["walk"]["steps"][0] == 3.0
    with pytest.raises(ArgumentError, match="carries 'walk'"):
        ByNumPyro().loss(KEY, {"loc": 0.0}, model, guide, 1.0)


def test_the_guide_that_carries_is_the_guide():
    """Its draws, and the loss at given state, are those of the guide alone."""
    params = {"loc": jnp.asarray(0.2), "walk": {"at": jnp.asarray(1.0), "steps": jnp.asarray(0.0)}}
    losses = [
        Walking().loss(KEY, params, model, program, 1.0)
        for program in (guide, Walking().carried_by(guide, model))
    ]
    assert losses[0] == losses[1] == ELBO(2).loss(KEY, params, model, guide, 1.0)
    assert list(simulate(Walking().carried_by(guide, model), 1.0, rng_key=KEY).values) == ["z"]


def test_state_that_nobody_started_is_refused():
    with pytest.raises(ArgumentError, match=r"carries 'walk' from step to step.*carried_by\(guide, model\)"):
        Walking().loss(KEY, {"loc": 0.0}, model, guide, 1.0)
    with pytest.raises(ArgumentError, match="carries 'walk'"):
        SVI(model, guide, optax.sgd(0.1), Walking()).run(KEY, 2, 1.0, progress_bar=False)


def test_an_expectation_and_particles_have_no_steps():
    with pytest.raises(HandlerError, match="an expectation has no steps"):
        expectation(lambda: carried("walk", {"at": 0.0})["at"]).value(KEY)

    @objective
    def Inside(model, guide):
        return replicate(lambda: carried("walk", {"at": jnp.zeros(())})["at"], 2).mean()

    with pytest.raises(HandlerError, match="inside replicate"):
        Inside().loss(KEY, {"walk": {"at": jnp.zeros(())}}, model, guide, 1.0)


def test_an_objective_is_a_part_of_others():
    @objective
    def Twice(model, guide):
        return 2 * ELBO(3)(model, guide)

    params = {"loc": jnp.asarray(0.2)}
    np.testing.assert_allclose(
        Twice().loss(KEY, params, model, guide, 1.0),
        2 * ELBO(3).loss(KEY, params, model, guide, 1.0),
        rtol=1e-6,
    )
