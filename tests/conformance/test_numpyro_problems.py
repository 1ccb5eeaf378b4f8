"""The problems on which NumPyro tests its own SVI, with our objectives in place of its own.

The problems, their data and their answers are those of NumPyro's ``test/infer/test_svi.py``,
``test_gradient.py`` and ``test_autoguide.py`` (version 0.19 and later); the code is new. Where an optimum is
known in closed form it is compared with that, otherwise with what NumPyro's objective finds in the same test.
Tolerances are NumPyro's own or tighter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import optim
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, SigmoidTransform
from numpyro.handlers import substitute
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from numpyro.primitives import mutable

from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO, IWELBO, Renyi
from tests.conformance.numpyro_svi import KEY, close, optimum, scored
from tests.oracles import quick_jit

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py


# --- beta-Bernoulli, and what is run on it

TOSSES = jnp.array([1.0] * 8 + [0.0] * 2)


def tosses_model(data):
    f = numpyro.sample("beta", dist.Beta(1.0, 1.0))
    with numpyro.plate("N", len(data)):
        numpyro.sample("obs", dist.Bernoulli(f), obs=data)


def tosses_guide(data):
    alpha = numpyro.param("alpha_q", 1.0, constraint=constraints.positive)
    beta = numpyro.param("beta_q", 1.0, constraint=constraints.positive)
    numpyro.sample("beta", dist.Beta(alpha, beta))


@pytest.mark.parametrize(
    "loss",
    [ELBO(), Renyi(num_particles=10), pytest.param(IWELBO(num_particles=10), marks=pytest.mark.slow)],
    ids=repr,
)
@pytest.mark.slow
def test_beta_bernoulli(loss):
    params = optimum(tosses_model, tosses_guide, loss, 2_000, 0.02, TOSSES)
    np.testing.assert_allclose(
        params["alpha_q"] / (params["alpha_q"] + params["beta_q"]), 9.0 / 12.0, atol=0.03
    )


@pytest.mark.slow
def test_particles_by_map_and_by_vmap():
    losses = [
        SVI(tosses_model, tosses_guide, optim.Adam(0.1), ELBO(num_particles=3, vectorize_particles=vectorize))
        .run(KEY, 20, TOSSES, progress_bar=False)
        .losses
        for vectorize in (True, False)
    ]
    np.testing.assert_allclose(*losses, atol=1e-4)


@pytest.mark.slow
def test_update_under_jit_and_evaluate():
    svi = SVI(tosses_model, tosses_guide, optim.Adam(0.05), ELBO())
    state = svi.init(random.PRNGKey(1), TOSSES)
    assert svi.optim.get_params(state.optim_state)["alpha_q"] == 0.0
    eager, jitted = svi.update(state, TOSSES), quick_jit(svi.update)(state, data=TOSSES)
    close((svi.get_params(jitted[0]), jitted[1]), (svi.get_params(eager[0]), eager[1]), 1e-5)
    np.testing.assert_allclose(svi.evaluate(state, TOSSES), eager[1], rtol=1e-5)


# --- values that are known exactly


@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.slow
def test_a_bound_without_latent_sites_is_the_likelihood(alpha):
    def model(x):
        numpyro.sample("obs", dist.Normal(0, 1), obs=x)

    def value_and_grad(loss):
        return jax.value_and_grad(lambda x: loss.loss(KEY, {}, model, lambda x: None, x))(2.0)

    expected = value_and_grad(RenyiELBO(alpha=alpha, num_particles=10))
    close(value_and_grad(Renyi(alpha=alpha, num_particles=10)), expected, 1e-6)
    close(value_and_grad(ELBO()), expected, 1e-6)


@pytest.mark.parametrize("subsample_size", [None, 2])
def test_a_subsampled_plate_multiplies_outside_the_log(subsample_size):
    def model():
        with numpyro.plate("N", 100, subsample_size=subsample_size):
            numpyro.sample("x", dist.Normal(0, 1))
            numpyro.sample("obs", dist.Bernoulli(0.6), obs=1)

    def guide():
        with numpyro.plate("N", 100, subsample_size=subsample_size):
            numpyro.sample("x", dist.Normal(0, 1))

    for loss in (Renyi(num_particles=10), IWELBO(num_particles=10), ELBO(num_particles=10)):
        np.testing.assert_allclose(loss.loss(KEY, {}, model, guide), -100 * jnp.log(0.6), rtol=1e-5)


def test_plates_that_do_not_nest():
    def model():
        for plate, site in (("N", "x"), ("M", "y")):
            with numpyro.plate(plate, 10):
                numpyro.sample(site, dist.Normal(0, 1))

    np.testing.assert_allclose(Renyi(num_particles=10).loss(KEY, {}, model, model), 0.0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Plate '.' is subsampled")
@pytest.mark.parametrize(("n", "k"), [(3, 5), (2, 5), (3, 3), (2, 3)])
def test_three_plates_two_of_them_subsampled(n, k):
    data = jnp.linspace(0.1, 0.9, 60).reshape((3, 4, 5))

    def model():
        with (
            numpyro.plate("N", 3, subsample_size=n, dim=-3),
            numpyro.plate("M", 4, dim=-2),
            numpyro.plate("K", 5, subsample_size=k),
        ):
            numpyro.sample("data", dist.Bernoulli(data[:n, :, :k]), obs=1)

    expected = -jnp.log(data)[:n, :, :k].sum() * 15 / n / k
    for loss in (Renyi(num_particles=10), ELBO()):
        np.testing.assert_allclose(loss.loss(KEY, {}, model, lambda: None), expected, rtol=1e-5)


@pytest.mark.slow
def test_subsample_takes_the_plates_own_indices():
    data = jnp.arange(1.0, 4.0)

    def model():
        with numpyro.plate("N", 3, subsample_size=2):
            numpyro.sample("data", dist.Exponential(1.0), obs=numpyro.subsample(data, event_dim=0))

    losses = {round(float(ELBO().loss(random.PRNGKey(i), {}, model, lambda: None)), 4) for i in range(20)}
    assert losses == {4.5, 6.0, 7.5}  # 3/2 of the sum of any two


def test_constrained_params_of_model_and_guide():
    start = {"a": 2.3, "b": 0.4, "c": -1.4, "d": 0.7}
    constraint = {
        "a": constraints.greater_than(1),
        "b": constraints.positive,
        "c": constraints.interval(-2, -1),
        "d": constraints.unit_interval,
    }

    def program(site, loc, scale):
        loc, scale = (numpyro.param(n, start[n], constraint=constraint[n]) for n in (loc, scale))
        numpyro.sample(site, dist.Normal(loc, scale), obs=0.3)

    svi = SVI(lambda: program("x", "a", "b"), lambda: program("y", "c", "d"), optim.Adam(0.01), ELBO())
    state = svi.init(KEY)
    close(svi.get_params(state), start, 1e-6)
    expected = dist.Normal(-1.4, 0.7).log_prob(0.3) - dist.Normal(2.3, 0.4).log_prob(0.3)
    np.testing.assert_allclose(svi.evaluate(state), expected, rtol=1e-5)


def test_a_guide_whose_value_is_given():
    prior = dist.TransformedDistribution(
        dist.Normal(), [AffineTransform(0, 2), SigmoidTransform(), AffineTransform(0, 3)]
    )
    guide = substitute(lambda: numpyro.sample("x", dist.Uniform(0, 3)), data={"x": 2.0})
    loss = ELBO().loss(KEY, {}, lambda: numpyro.sample("x", prior), guide)
    np.testing.assert_allclose(loss, dist.Uniform(0, 3).log_prob(2.0) - prior.log_prob(2.0), rtol=1e-6)


def test_a_shared_param_and_no_site():
    def model():
        numpyro.factor("neg_loss", -((numpyro.param("shared") - 5.0) ** 2))

    def guide():
        numpyro.param("shared", lambda _: 1.0)

    result = SVI(model, guide, optim.Adam(0.05), ELBO()).run(KEY, 500, progress_bar=False)
    np.testing.assert_allclose(result.params["shared"], 5.0, atol=0.1)


def test_an_empty_model_and_a_single_step():
    SVI(lambda: None, lambda: None, optim.Adam(1), ELBO()).run(KEY, 1, progress_bar=False)


@pytest.mark.slow
@pytest.mark.parametrize("stable", [True, False])
def test_stable_update_keeps_the_last_finite_state(stable):
    def model():
        var = numpyro.sample("var", dist.Exponential(1))
        numpyro.sample("obs", dist.Normal(0, jnp.sqrt(var)), obs=0.0)

    def guide():
        numpyro.sample("var", dist.Normal(numpyro.param("loc", 0.0), 10))

    result = SVI(model, guide, optim.Adam(1), ELBO()).run(KEY, 300, stable_update=stable, progress_bar=False)
    assert np.isfinite(result.params["loc"]) == stable


@pytest.mark.parametrize("num_particles", [1, 10])
def test_mutable_state_of_model_and_guide(num_particles):
    """NumPyro refuses this with several particles; here each number is the mean over them."""

    def model():
        mutable("x1p", numpyro.sample("x", dist.Normal(-1, 1)) + 1)

    def guide():
        loc = numpyro.param("loc", 0.0)
        mutable("loc1p", {"value": None})["value"] = loc + 2
        numpyro.sample("x", dist.Normal(loc, 0.1))

    result = SVI(model, guide, optim.Adam(0.1), ELBO(num_particles=num_particles)).run(
        KEY, 300, progress_bar=False
    )
    state = result.state.mutable_state
    assert set(state) == {"x1p", "loc1p"}
    np.testing.assert_allclose(result.params["loc"], -1.0, atol=0.1)
    np.testing.assert_allclose(state["loc1p"]["value"], result.params["loc"] + 2, atol=0.1)
    np.testing.assert_allclose(state["x1p"], 1.0, atol=0.3)  # nobody writes to it


# --- conjugate posteriors by the score function, where NumPyro needs TraceGraph_ELBO


def test_normal_normal_by_score():
    precision, loc, noise = jnp.array([0.1, 0.1]), jnp.array([0.0, 0.5]), jnp.array([6.0, 4.0])
    data = jnp.array([[-0.1, 0.3], [0.0, 0.4], [0.2, 0.5], [0.1, 0.7]])
    posterior = precision + 4 * noise
    mean, log_sd = (data.sum(0) * noise + loc * precision) / posterior, -0.5 * jnp.log(posterior)

    def model():
        with numpyro.plate("plate", 2):
            z = numpyro.sample("z", dist.Normal(loc, precision**-0.5))
            for i, x in enumerate(data):
                numpyro.sample(f"obs_{i}", dist.Normal(z, noise**-0.5), obs=x)

    def guide():
        q = numpyro.param("loc_q", mean + 0.334), jnp.exp(numpyro.param("log_sd_q", log_sd - 0.29))
        with numpyro.plate("plate", 2):
            numpyro.sample("z", dist.Normal(*q))

    params = optimum(model, scored(guide), ELBO(num_particles=2), 3_000, 0.005)
    close(params, {"loc_q": mean, "log_sd_q": log_sd}, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["bernoulli", "exponential"])
def test_conjugate_pairs_by_score(likelihood):
    data = {"bernoulli": jnp.array([0.0, 1.0, 1.0, 1.0]), "exponential": jnp.array([3.0, 2.0])}[likelihood]
    prior, observed, posterior = {
        "bernoulli": (dist.Beta, dist.Bernoulli, (4.0, 2.0)),
        "exponential": (dist.Gamma, dist.Exponential, (3.0, 6.0)),
    }[likelihood]

    def model():
        p = numpyro.sample("p", prior(1.0, 1.0))
        with numpyro.plate("data", len(data)):
            numpyro.sample("obs", observed(p), obs=data)

    def guide():
        a, b = (
            jnp.exp(numpyro.param(n, jnp.log(x) + d))
            for n, x, d in zip("ab", posterior, (0.17, -0.143), strict=True)
        )
        numpyro.sample("p", prior(a, b))

    params = optimum(model, scored(guide), ELBO(num_particles=4), 2_000, 0.01)
    close(params, dict(zip("ab", np.log(posterior), strict=True)), 0.15)


@pytest.mark.parametrize("num_latents", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_gaussian_chain_partly_by_score(num_latents):
    """The guide runs down the chain from its end; the posterior's coefficients follow by conditioning
    Gaussians from its start.
    """
    n, loc, data = num_latents, 0.2, jnp.array([-0.1, 0.03, 0.2, 0.1])
    precision = [1.5 * (k + 1) / n for k in range(n + 1)]
    marginal = [precision[0]]  # of x_k under the prior
    for k in range(1, n):
        marginal.append(precision[k] * marginal[-1] / (precision[k] + marginal[-1]))
    posterior = [precision[k + 1] + marginal[k] for k in range(n - 1)] + [
        len(data) * precision[n] + marginal[n - 1]
    ]
    exact = {f"kappa_{k}": precision[k + 1] / posterior[k] for k in range(n - 1)}
    exact |= {f"loc_{k}": loc * marginal[k] / posterior[k] for k in range(n - 1)}
    exact[f"loc_{n - 1}"] = float((data.sum() * precision[n] + loc * marginal[n - 1]) / posterior[n - 1])
    exact |= {f"log_sd_{k}": -0.5 * np.log(posterior[k]) for k in range(n)}

    def model():
        x = loc
        for k in range(n):
            x = numpyro.sample(f"x_{k}", dist.Normal(x, precision[k] ** -0.5))
        with numpyro.plate("data", len(data)):
            numpyro.sample("obs", dist.Normal(x, precision[n] ** -0.5), obs=data)

    def guide():
        q, x = {name: numpyro.param(name, value - 0.3) for name, value in exact.items()}, 0.0
        for k in reversed(range(n)):
            mean = q[f"loc_{k}"] + (q[f"kappa_{k}"] * x if k < n - 1 else 0.0)
            x = numpyro.sample(f"x_{k}", dist.Normal(mean, jnp.exp(q[f"log_sd_{k}"])))

    strategies = {f"x_{k}": "reparam" if k % 3 == 1 else "score" for k in range(n)}
    params = optimum(model, gradient(guide, strategies), ELBO(num_particles=4), 4_000, 0.005)
    close(params, exact, 0.15)


# --- automatic guides: the optimum that NumPyro's objective finds in the same test


def two_coins(data):
    f = numpyro.sample("beta", dist.Beta(jnp.ones(2), jnp.ones(2)).to_event())
    with numpyro.plate("N", len(data)):
        numpyro.sample("obs", dist.Bernoulli(f).to_event(1), obs=data)


COINS = jnp.array([[1.0] * 8 + [0.0] * 2, [1.0] * 4 + [0.0] * 6]).T


@pytest.mark.parametrize(
    "automatic",
    [
        AutoNormal,
        *(pytest.param(g, marks=pytest.mark.slow) for g in (AutoDiagonalNormal, AutoMultivariateNormal)),
    ],
)
@pytest.mark.slow
def test_automatic_guides_of_two_coins(automatic):
    guide = automatic(two_coins)
    ours, theirs = (
        optimum(two_coins, guide, loss(num_particles=4), 2_000, 0.02, COINS) for loss in (ELBO, Trace_ELBO)
    )
    close(ours, theirs, 0.06)
    mean = guide.sample_posterior(KEY, ours, sample_shape=(2_000,))["beta"].mean(0)
    np.testing.assert_allclose(mean, (COINS.sum(0) + 1) / 12, atol=0.03)


def logistic(data, labels):
    coefs = numpyro.sample("coefs", dist.Normal(0, 1).expand([3]).to_event())
    with numpyro.plate("N", len(data)):
        numpyro.sample("obs", dist.Bernoulli(logits=data @ coefs), obs=labels)


@pytest.mark.slow
@pytest.mark.parametrize("theirs", [Trace_ELBO, TraceMeanField_ELBO])
def test_logistic_regression(theirs):
    data = random.normal(KEY, (100, 3))
    labels = dist.Bernoulli(logits=data @ jnp.arange(1.0, 4.0)).sample(random.PRNGKey(1))
    guide = AutoNormal(logistic)
    found = [
        optimum(logistic, guide, loss(num_particles=8), 2_000, 0.02, data, labels) for loss in (ELBO, theirs)
    ]
    close(*found, 0.08)


@pytest.mark.parametrize(
    "theirs", [TraceGraph_ELBO, pytest.param(TraceMeanField_ELBO, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_subsampled_plate_of_local_means(theirs):
    """A global mean over local ones, ten of forty at a time; conjugate, so the optimum of the guide is known
    where the others are.
    """
    y = jnp.linspace(-1.0, 3.0, 40)

    def model():
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
        with numpyro.plate("N", 40, subsample_size=10) as index:
            local = numpyro.sample("local", dist.Normal(loc, 1.0))
            numpyro.sample("y", dist.Normal(local, 0.5), obs=y[index])

    def guide():
        positive = constraints.positive
        numpyro.sample(
            "loc", dist.Normal(numpyro.param("m", 0.0), numpyro.param("s", 0.3, constraint=positive))
        )
        ms, ss = (
            numpyro.param("ms", jnp.zeros(40)),
            numpyro.param("ss", 0.5 * jnp.ones(40), constraint=positive),
        )
        with numpyro.plate("N", 40, subsample_size=10) as index:
            numpyro.sample("local", dist.Normal(ms[index], ss[index]))

    ours, found = (optimum(model, guide, loss(num_particles=4), 3_000, 0.02) for loss in (ELBO, theirs))
    close(ours, found, 0.12)
    # Mean field: each precision is that of the full conditional, each mean solves the normal equations.
    np.testing.assert_allclose(ours["ss"], 5**-0.5, atol=0.05)
    np.testing.assert_allclose(ours["s"], (40 + 1 / 9) ** -0.5, atol=0.05)
    mean = 40 * y.mean() / (40 + (1 + 0.25) / 9)
    np.testing.assert_allclose(ours["m"], mean, atol=0.05)
    np.testing.assert_allclose(ours["ms"], (mean + 4 * y) / 5, atol=0.12)
