"""Newton's method with gradient regularisation: its formula, its speed near a mode, and far starts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from scipy.optimize import minimize

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import RegularizedNewton, fit, regularized_newton
from ppl_ext.objectives import ELBO

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = (X @ RNG.normal(size=(3, 3)) + RNG.gumbel(size=(60, 3))).argmax(1)


def softmax(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 3.0).expand([3, 3]).to_event(2))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def negative_log_density(w):
    logits = X @ w.reshape(3, 3)
    prior = 0.5 * (w**2).sum() / 9 + 9 * np.log(3.0 * np.sqrt(2 * np.pi))
    return prior + (np.log(np.exp(logits).sum(1)) - logits[np.arange(60), Y]).sum()


@pytest.fixture(scope="module")
def best():
    return minimize(negative_log_density, np.zeros(9), tol=1e-12)


def one_step(optim, loss, x):
    """Of the bare optimiser: where it goes from x."""
    state = optim.init({"x": jnp.asarray(x)})
    (value, _), state = optim.eval_and_update(lambda p: (loss(p["x"]), None), state)
    np.testing.assert_allclose(value, loss(jnp.asarray(x)), rtol=1e-6)
    return np.asarray(optim.get_params(state)["x"]), state


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_formula(power):
    """A step that is short enough to be taken at once."""

    def loss(x):
        return jnp.exp(x[0]) + x[0] * x[1] + 2 * x[1] ** 2 + 0.1 * x[2] ** 4

    x = np.array([0.3, -0.4, 1.0])
    g = np.array([np.exp(0.3) - 0.4, 0.3 - 1.6, 0.4])
    b = np.array([[np.exp(0.3), 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 1.2]])
    there, state = one_step(RegularizedNewton(power, 3.0), loss, x)
    exact = x - np.linalg.solve(b + 3.0 * np.linalg.norm(g) ** power * np.eye(3), g)
    np.testing.assert_allclose(there, exact, rtol=1e-4)
    np.testing.assert_allclose(state[1][1], 0.75)  # a quarter, for the next


def test_a_saddle_is_left_downwards():
    def loss(x):
        return (x[0] ** 2 - 1) ** 2 + x[1] ** 2

    x = np.array([0.1, 0.3])
    there, _ = one_step(RegularizedNewton(0.5, 1.0), loss, x)
    g, curvature = np.array([-4 * 0.1 * (1 - 0.01), 0.6]), np.array([12 * 0.01 - 4, 2.0])
    exact = x - g / (np.abs(curvature) + np.linalg.norm(g) ** 0.5)
    np.testing.assert_allclose(there, exact, rtol=1e-4)
    assert abs(there[0]) > 0.1  # away from the maximum between


def test_a_step_that_rises_is_shortened():
    def loss(x):
        return jnp.sum(jnp.sqrt(1 + x**2))  # Newton's step goes to -x³

    there, state = one_step(RegularizedNewton(0.5, 1e-6), loss, np.array([3.0]))
    assert abs(there[0]) < 3.0 and loss(there) < loss(np.array([3.0]))
    tried = np.log(float(state[1][1]) * 4 / 1e-6) / np.log(4.0)
    assert tried == pytest.approx(round(tried), abs=1e-3) and tried > 3
    before = 1e-6 * 4.0 ** (round(tried) - 1)  # the last that did not do
    g, b = 3 / 10**0.5, 10**-1.5
    assert loss(3.0 - g / (b + before * g**0.5)) > loss(3.0) - 1e-4 * g**2 / (b + before * g**0.5)


def test_a_step_that_hardly_falls_is_shortened():
    """From 1 a whole step reaches a shelf, a hundred-thousandth lower, and a quarter of it is well below."""

    def loss(x):
        return jnp.where(x < 0.5, 1.0 - 1e-5, x).sum()

    there, state = one_step(RegularizedNewton(0.0, 1.0), loss, np.array([1.0]))
    np.testing.assert_allclose(there, 0.75)
    np.testing.assert_allclose(state[1][1], 1.0)


@pytest.mark.parametrize("start", [0.0, 30.0])
def test_a_mode_from_near_and_far(best, start):
    """Within thirty steps to rounding, and at the end the error is squared by each."""
    svi = SVI(softmax, AutoDelta(softmax), RegularizedNewton(1.0), Trace_ELBO())
    first = {"w_auto_loc": start * jax.random.normal(jax.random.key(1), (3, 3))}
    found = svi.run(jax.random.key(0), 30, X, Y, progress_bar=False, init_params=first)
    np.testing.assert_allclose(found.params["w_auto_loc"].ravel(), best.x, atol=2e-3)
    losses = np.asarray(found.losses)
    assert (np.diff(losses) < 1e-3).all()
    np.testing.assert_allclose(losses[-1], best.fun, rtol=1e-5)


def test_chains_of_a_fit_and_laplace(best):
    guide = AutoLaplaceApproximation(softmax, init_loc_fn=numpyro.infer.init_to_uniform(radius=5.0))
    settings = {"num_chains": 3, "progress_bar": False}
    found = fit(jax.random.key(0), softmax, guide, ELBO(), RegularizedNewton(), 25, X, Y, **settings)
    assert found.params["auto_loc"].shape == (3, 9)
    np.testing.assert_allclose(found.params["auto_loc"], np.tile(best.x, (3, 1)), atol=2e-3)
    one = jax.tree.map(lambda p: p[0], found.params)
    precision = guide.get_posterior(one).precision_matrix
    hessian = jax.hessian(lambda w: _log_density(w))(jnp.asarray(best.x))
    np.testing.assert_allclose(precision, hessian, rtol=5e-3, atol=5e-3)


def _log_density(w):
    logits = jnp.asarray(X) @ w.reshape(3, 3)
    return 0.5 * (w**2).sum() / 9 + (jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(60), Y]).sum()


def test_where_there_is_no_way_down_it_stays():
    def loss(x):
        return jnp.where(jnp.abs(x[0] - 1.0) < 1e-12, x[0] ** 2, jnp.nan)

    there, state = one_step(RegularizedNewton(), loss, np.array([1.0]))
    assert there == 1.0 and state[1][1] > 1.0


@pytest.mark.parametrize("method", ["eval_and_update", "eval_and_stable_update"])
def test_a_loss_that_is_not_finite_moves_nothing(method):
    optim = RegularizedNewton(regularization=2.0)
    state = optim.init({"x": jnp.array([-1.0])})
    (value, _), state = getattr(optim, method)(lambda p: (jnp.log(p["x"]).sum(), None), state)
    assert np.isnan(value) and optim.get_params(state)["x"] == -1.0 and state[1][1] == 2.0


def test_at_the_mode_it_stays():
    there, _ = one_step(RegularizedNewton(0.5), lambda x: jnp.sum(x**2), np.zeros(2))
    np.testing.assert_array_equal(there, 0.0)
    there, _ = one_step(RegularizedNewton(0.5), lambda x: 0.0 * jnp.sum(x), np.ones(2))
    np.testing.assert_array_equal(there, 1.0)


def test_as_a_transformation_of_optax_it_takes_the_same_steps():
    guide, options = AutoDelta(softmax), {"num_chains": 2, "progress_bar": False}
    found = [
        fit(jax.random.key(0), softmax, guide, ELBO(), optim, 6, X, Y, **options)
        for optim in (RegularizedNewton(1.0, 2.0), regularized_newton(1.0, 2.0))
    ]
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-5)
    chained = optax.chain(regularized_newton(1.0), optax.scale(0.5))  # half a step
    x = {"a": jnp.array([0.3, -0.4]), "b": jnp.array(1.0)}

    def loss(x):
        return jnp.exp(x["a"][0]) + x["a"][0] * x["a"][1] + 2 * x["a"][1] ** 2 + 0.1 * x["b"] ** 4

    steps = [
        t.update(jax.grad(loss)(x), t.init(x), x, value=loss(x), grad=None, value_fn=loss)[0]
        for t in (regularized_newton(1.0), chained)
    ]
    jax.tree.map(lambda whole, half: np.testing.assert_allclose(0.5 * whole, half), *steps)
    assert float(jnp.abs(steps[0]["b"])) > 0.01


def test_forward_mode_serves_where_no_gradient_runs_backwards():
    def loss(x):
        return jax.lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + jnp.cosh(x).sum()), (0, 0.0)
        )[1]

    optim = RegularizedNewton(regularization=0.5)
    for step in (optim.eval_and_update, optim.eval_and_stable_update):
        state = optim.init(jnp.array([1.0]))
        (value, _), state = step(lambda x: (loss(x), None), state, forward_mode_differentiation=True)
        g, b = 3 * np.sinh(1.0), 3 * np.cosh(1.0)
        np.testing.assert_allclose(value, 3 * np.cosh(1.0), rtol=1e-6)
        np.testing.assert_allclose(optim.get_params(state), 1 - g / (b + 0.5 * g**0.5), rtol=1e-5)


def test_bad_inputs_are_named():
    with pytest.raises(ArgumentError, match="power must be at least 0, got -1"):
        RegularizedNewton(-1.0)
    with pytest.raises(ArgumentTypeError, match="power must be a real number"):
        RegularizedNewton("half")
    with pytest.raises(ArgumentError, match="regularization"):
        RegularizedNewton(0.5, 0.0)
    optim = RegularizedNewton()
    with pytest.raises(ArgumentError, match="the loss as a function"):
        optim.update({"x": jnp.ones(1)}, optim.init({"x": jnp.ones(1)}))
    with pytest.raises(ArgumentError, match="power must be at least 0, got -2"):
        regularized_newton(-2.0)
    newton, x = regularized_newton(), jnp.ones(1)
    with pytest.raises(ArgumentError, match="hand update of the transformation params and value_fn="):
        newton.update(x, newton.init(x), x)
    with pytest.raises(ArgumentError, match="hand update of the transformation params and value_fn="):
        newton.update(x, newton.init(x), value_fn=jnp.sum)
