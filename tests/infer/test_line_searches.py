"""Optimisers of optax that search along a line, in ``fit``; all others take the steps that NumPyro takes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal
from numpyro.optim import optax_to_numpyro

from ppl_ext.infer import fit
from ppl_ext.infer.svi.line_searches import WithLoss
from ppl_ext.objectives import ELBO

Y = np.array([1.0, 2.5, 0.3])


def model(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(loc, scale), obs=y)


SEARCHES = {
    "lbfgs": optax.lbfgs(),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_finds_the_mode(name):
    settings = {"num_chains": 2, "progress_bar": False}
    guide = AutoDelta(model)
    steps = 12 if name == "lbfgs" else 60
    found = fit(jax.random.key(0), model, guide, ELBO(), SEARCHES[name], steps, Y, **settings)
    slow = fit(jax.random.key(0), model, guide, ELBO(), optax.adam(0.02), 2000, Y, **settings)
    for site in ("loc_auto_loc", "scale_auto_loc"):
        np.testing.assert_allclose(found.params[site], slow.params[site], rtol=2e-3)


def test_a_search_looks_at_one_loss():
    """That of a step, with its draws: it falls along the line, though draws differ between steps."""
    found = fit(
        jax.random.key(0),
        model,
        AutoNormal(model),
        ELBO(num_particles=50),
        SEARCHES["lbfgs"],
        15,
        Y,
        progress_bar=False,
    )
    assert np.isfinite(found.losses).all() and found.losses[0, -5:].mean() < found.losses[0, 0]


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize(
    "optim", [optax.adam(0.05), optax.chain(optax.clip(1.0), optax.sgd(0.01, 0.9)), optax.polyak_sgd()]
)
def test_others_take_the_steps_that_numpyro_takes(optim, stable):
    def of(optim):
        svi = SVI(model, AutoNormal(model), optim, Trace_ELBO())
        state = svi.init(jax.random.key(0), Y)
        step = jax.jit(svi.stable_update if stable else svi.update)
        losses = []
        for _ in range(5):
            state, loss = step(state, Y)
            losses.append(loss)
        return svi.get_params(state), jnp.stack(losses)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        of(WithLoss(optim)),
        of(optax_to_numpyro(optim)),
    )


def test_what_is_handed_on():
    """Loss, gradient and function, each itself; and steps are counted."""

    def update(updates, state, params=None, *, value, grad, value_fn, **kwargs):
        there = {"x": 2.0 * params["x"]}
        return {"x": -grad["x"] - 10.0 * value - 100.0 * value_fn(there)}, state

    optim = WithLoss(optax.GradientTransformationExtraArgs(lambda params: (), update))
    state = optim.init({"x": jnp.array(3.0)})
    (value, aux), state = optim.eval_and_update(lambda p: (p["x"] ** 2, p["x"]), state)
    assert value == 9.0 and aux == 3.0 and state[0] == 1
    assert optim.get_params(state)["x"] == 3.0 - 6.0 - 90.0 - 3600.0


def test_a_stable_step_goes_nowhere_from_a_loss_that_is_not_finite():
    optim = WithLoss(optax.lbfgs())
    state = optim.init({"x": jnp.array(-1.0)})
    (value, aux), after = optim.eval_and_stable_update(lambda p: (jnp.log(p["x"]), {"kept": p["x"]}), state)
    assert np.isnan(value) and aux["kept"] == -1.0 and after[0] == state[0]
    assert optim.get_params(after)["x"] == -1.0
    (value, _), after = optim.eval_and_stable_update(lambda p: (p["x"] ** 2, None), state)
    assert value == 1.0 and abs(optim.get_params(after)["x"]) < 1.0


@pytest.mark.parametrize("method", ["eval_and_update", "eval_and_stable_update"])
def test_forward_mode_takes_the_same_step(method):
    optim = WithLoss(optax.adam(0.1))
    state = optim.init({"x": jnp.array([1.0, -2.0])})

    def loss(p):
        return jnp.sum(p["x"] ** 3), p["x"][0]

    one, other = (getattr(optim, method)(loss, state, mode) for mode in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
    assert one[0][1] == 1.0
