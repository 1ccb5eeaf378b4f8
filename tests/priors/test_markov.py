"""A Gaussian process as a scan: against tinygp's dense answers, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoNormal
from tinygp import GaussianProcess, kernels
from tinygp.kernels import quasisep

import ppl_ext
from ppl_ext.algorithms import ExactFilter
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.priors import markov
from ppl_ext.smoothing import smooth
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower
from tests.on_devices import run_on

RNG = np.random.default_rng(0)
TIMES = np.sort(np.concatenate([RNG.uniform(0.0, 6.0, 20), [2.0, 2.0, 2.0001]]))
Y = np.sin(TIMES) + 0.3 * RNG.normal(size=len(TIMES))
NOISE = 0.3
DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KERNELS = {
    "Matérn 1/2": lambda s: quasisep.Exp(scale=s),
    "Matérn 3/2": lambda s: quasisep.Matern32(scale=s, sigma=1.3),
    "Matérn 5/2": lambda s: quasisep.Matern52(scale=s),
    "SHO": lambda s: quasisep.SHO(omega=2.0 / s, quality=0.8),
    "Celerite": lambda s: quasisep.Celerite(a=1.0, b=0.1, c=0.5 * s, d=1.0),
    "sum": lambda s: quasisep.Matern32(scale=s) + 0.5 * quasisep.SHO(omega=2.0, quality=0.8),
    "product": lambda s: quasisep.Matern32(scale=s) * quasisep.Cosine(scale=2.0),
}


def model(t, y, kernel, also_at=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))

    def observe(f, y_t):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y_t)

    return markov("f", kernel(scale), t, observe, y, also_at=also_at)


def dense(kernel, s, a, b):
    k = kernel(s)
    return jax.vmap(lambda x: jax.vmap(lambda y: k.evaluate(x, y))(b))(a)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", KERNELS)
def test_the_evidence_and_its_gradient_are_those_of_the_dense_process(name, double):
    kernel = KERNELS[name]
    t, y = jnp.asarray(TIMES), jnp.asarray(Y)
    of_scale = ppl_ext.marginal(model, ["scale"], ExactFilter())

    def ours(s):
        return ppl_ext.log_density(of_scale, {"scale": s}, t, y, kernel).total

    def right(s):
        law = dist.MultivariateNormal(0.0, dense(kernel, s, t, t) + NOISE**2 * jnp.eye(len(t)))
        return law.log_prob(y) + dist.LogNormal(0.0, 1.0).log_prob(s)

    found, expected = jax.value_and_grad(ours)(0.7), jax.value_and_grad(right)(0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_posterior_and_what_it_says_of_other_times(double):
    kernel, new = KERNELS["Matérn 5/2"], np.array([7.0, -1.0, 2.0, 3.3])
    t, y = jnp.asarray(TIMES), jnp.asarray(Y)
    space = lower(model, (t, y, kernel), {"also_at": new}, {"scale": jnp.asarray(0.7)})
    found = smooth_exactly(space)
    order = np.argsort(np.concatenate([TIMES, new]), kind="stable")
    back = np.argsort(order)
    mean, variance = np.asarray(found.mean[:, 0])[back], np.asarray(found.covariance[:, 0, 0])[back]
    every = jnp.concatenate([t, new])
    gain = jnp.linalg.solve(
        dense(kernel, 0.7, t, t) + NOISE**2 * jnp.eye(len(t)), dense(kernel, 0.7, t, every)
    ).T
    np.testing.assert_allclose(mean, gain @ y, atol=1e-6)
    right = jnp.diag(dense(kernel, 0.7, every, every) - gain @ dense(kernel, 0.7, t, every))
    np.testing.assert_allclose(variance, right, atol=1e-6)


def test_what_is_returned_is_in_the_order_of_what_was_asked_for():
    new = np.array([7.0, -1.0, 2.0])
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as record:
        f, g = model(TIMES, Y, KERNELS["Matérn 1/2"], also_at=new)
    states = record["f_state"]["value"][:, 0]
    order = np.argsort(np.concatenate([TIMES, new]), kind="stable")
    np.testing.assert_array_equal(jnp.concatenate([f, g])[order], states)
    np.testing.assert_array_equal(record["f"]["value"], states)


def test_reports_show_no_data_where_nothing_was_observed():
    """The data of the first time stood at each of the other times."""
    t, y = jnp.arange(3.0), jnp.array([0.5, 0.1, -0.3])
    result = smooth(model, backward="exact").run(
        jax.random.key(0), t, y, KERNELS["Matérn 1/2"], also_at=jnp.array([3.0, 0.5]), params={"scale": 1.0}
    )
    seen = [0.5, np.nan, 0.1, -0.3, np.nan]
    np.testing.assert_array_equal(result.to_arviz().observed_data["y"], np.float32(seen))


def test_states_at_other_times_are_not_taken_for_predictions():
    """Two states of the run stood for f at two other times; with three, redraw= was said to be the way."""
    t, y, kernel = jnp.arange(3.0), jnp.array([0.5, 0.1, -0.3]), KERNELS["Matérn 1/2"]
    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), t, y, kernel, also_at=jnp.array([3.0, 0.5]))
    other = jnp.array([2.5, 0.2])
    with pytest.warns(UserWarning, match="'f_state' has another law.*run again.*priors.markov, also_at="):
        ppl_ext.predict(jax.random.key(1), mcmc, t, None, kernel, also_at=other)
    with pytest.raises(ArgumentError, match="'f_state' has shape.*run again.*priors.markov, also_at="):
        ppl_ext.predict(jax.random.key(1), mcmc, t, None, kernel, also_at=other[:1])
    same = ppl_ext.predict(jax.random.key(1), mcmc, t, None, kernel, also_at=jnp.array([3.0, 0.5]))
    np.testing.assert_allclose(same["f"][0], mcmc.get_samples()["f"], atol=1e-5)


def test_the_law_of_draws_is_the_kernel():
    kernel, t = KERNELS["sum"], np.array([0.0, 0.4, 0.5, 3.0])

    def prior():
        return markov("f", kernel(0.7), t, lambda f, _: None)

    draws = jax.vmap(lambda key: numpyro.handlers.seed(prior, key)())(
        jax.random.split(jax.random.key(1), 20_000)
    )
    expected = np.asarray(dense(kernel, 0.7, jnp.asarray(t), jnp.asarray(t)))
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / 20_000)
    assert (np.abs(np.cov(draws.T) - expected) < 4.5 * error).all()
    assert (np.abs(draws.mean(0)) < 4.5 * np.sqrt(np.diag(expected) / 20_000)).all()


def test_several_processes_mixed(double):
    t, mixing = jnp.asarray(TIMES), jnp.array([[1.0, 0.5], [0.0, 2.0]])
    y = jnp.stack([jnp.asarray(Y), jnp.cos(t)], 1)
    kernel = [KERNELS["Matérn 3/2"](0.7), KERNELS["SHO"](1.0)]

    def several(t, y):
        def observe(f, y_t):
            numpyro.sample("y", dist.Normal(mixing @ f, NOISE).to_event(1), obs=y_t)

        return markov("f", kernel, t, observe, y)

    found = smooth_exactly(lower(several, (t, y), {})).log_evidence
    blocks = [dense(lambda _, k=k: k, None, t, t) for k in kernel]
    law = sum(jnp.kron(block, jnp.outer(row, row)) for block, row in zip(blocks, mixing.T, strict=True))
    right = dist.MultivariateNormal(0.0, law + NOISE**2 * jnp.eye(2 * len(t))).log_prob(y.ravel())
    np.testing.assert_allclose(found, right, rtol=1e-8)


def test_single_precision():
    t, y = jnp.asarray(TIMES, jnp.float32), jnp.asarray(Y, jnp.float32)
    of_scale = ppl_ext.marginal(model, ["scale"], ExactFilter())
    for name in ("Matérn 1/2", "Matérn 5/2"):
        found = float(ppl_ext.log_density(of_scale, {"scale": 0.7}, t, y, KERNELS[name]))
        with jax.enable_x64(True):
            process = GaussianProcess(KERNELS[name](0.7), jnp.asarray(TIMES), diag=NOISE**2)
            right = float(process.log_probability(jnp.asarray(Y)) + dist.LogNormal(0.0, 1.0).log_prob(0.7))
        np.testing.assert_allclose(found, right, atol=5e-3)


def counts(t, y):
    markov("f", quasisep.Exp(scale=1.0), t, _counted, y)


def _counted(f, y_t):
    numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y_t)


def test_other_likelihoods_by_particles_and_by_a_guide():
    """Of counts, against a sum over a grid of three values of a process that is Markov in f itself."""
    t, y = np.array([0.0, 0.5, 1.5]), np.array([0, 3, 1])
    grid = np.linspace(-4.0, 4.0, 161)
    step = grid[1] - grid[0]
    log_p = -(grid**2) / 2 - 0.5 * np.log(2 * np.pi)
    for i, y_t in enumerate(y):
        if i:
            a = np.exp(-(t[i] - t[i - 1]))
            move = -((grid[None] - a * grid[:, None]) ** 2) / (2 * (1 - a**2)) - 0.5 * np.log(
                2 * np.pi * (1 - a**2)
            )
            log_p = np.log(np.exp(log_p[:, None] + move).sum(0) * step)
        log_p = log_p + y_t * grid - np.exp(grid) - float(jax.scipy.special.gammaln(y_t + 1.0))
    evidence = np.log(np.exp(log_p).sum() * step)
    last = (np.exp(log_p) * grid).sum() / np.exp(log_p).sum()
    runs = [
        smooth(counts, num_particles=2000, backward="mcmc").run(jax.random.key(k), t, y) for k in range(3)
    ]
    np.testing.assert_allclose(np.mean([r.log_evidence for r in runs]), evidence, atol=0.05)
    result = fit(
        jax.random.key(0),
        counts,
        AutoNormal(counts),
        ELBO(8),
        optax.adam(0.03),
        800,
        t,
        y,
        progress_bar=False,
    )
    draws = result.sample(num_samples=4000)
    assert draws.values["f"].shape == (1, 4000, 3) and abs(draws.values["f"][..., -1].mean() - last) < 0.15
    np.testing.assert_allclose(np.log(np.exp(draws.log_weights).mean()), evidence, atol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kernel": kernels.ExpSquared()}, ArgumentTypeError, "'f': kernel must have a state-space form"),
        ({"kernel": []}, ArgumentTypeError, "'f': kernel must have a state-space form"),
        ({"times": np.array([0.0, 2.0, 1.0])}, ArgumentError, "'f': times must not decrease.*at index 2"),
        ({"times": np.array([0.0, np.nan, 1.0])}, ArgumentError, "'f': times must not decrease"),
        ({"times": 3.0}, ArgumentError, "'f': times must be a vector"),
        ({"times": np.zeros(0), "data": np.zeros(0)}, ArgumentError, "'f': times is empty"),
        ({"times": "now"}, ArgumentTypeError, "'f': times must be an array of numbers"),
        ({"data": np.zeros(4)}, ArgumentError, "'f': data must have one entry for each of the 3 times"),
        ({"also_at": np.zeros((2, 2))}, ArgumentError, "'f': also_at must be a vector"),
        ({"observe": 3}, ArgumentTypeError, "'f': observe"),
        ({"name": 3}, ArgumentTypeError, "markov: name must be a string, got 3"),
    ],
)
def test_what_is_no_process_is_refused_by_name(change, error, words):
    given = {
        "name": "f",
        "kernel": quasisep.Exp(scale=1.0),
        "times": np.arange(3.0),
        "observe": lambda f, y: None,
        "data": np.zeros(3),
    } | change
    with pytest.raises(error, match=words), numpyro.handlers.seed(rng_seed=0):
        markov(**given)


def test_a_long_series_comes_to_an_end():
    """Before jax 0.12, large solves side by side wait for each other for ever: they are taken in parts."""
    run_on(1, "tests.priors.long_series", timeout=200.0)
