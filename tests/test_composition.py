"""The pieces combine, two by two, in programs that know only NumPyro and the public names: no pair has code
of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import Enumeration, ExactFilter, ImportanceSampling, ParticleFilter
from ppl_ext.errors import ModelError
from ppl_ext.infer import fit
from ppl_ext.meta import EpisodeStream, ExactLinearGaussian, LaplaceGGN, VariationalLocal, lift
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.priors import Gaussian, GaussianProcess, lift_prior, match
from ppl_ext.smoothing import smooth

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 8)


def series(y):
    """A linear-Gaussian series with one unknown coefficient."""
    phi = numpyro.sample("phi", dist.Normal(0.0, 0.7))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def simulated(phi, length, seed):
    noise = np.random.default_rng(seed).normal(size=(2, length + 1)).astype(np.float32)
    x, out = noise[0, 0], []
    for t in range(length):
        x = phi * x + noise[0, t + 1]
        out.append(x + 0.5 * noise[1, t + 1])
    return np.array(out, np.float32)


def basis(x, y=None):
    """Weights on four fixed bumps: Gaussian functions, linear in the local site of an episode."""
    features = jnp.exp(-0.5 * ((x[:, None] - jnp.array([-0.9, -0.3, 0.3, 0.9])) / 0.4) ** 2)
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
    f = numpyro.deterministic("f", features @ weights)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(f, 0.2), obs=y)
    return f


@pytest.fixture(scope="module")
def tuned():
    """Bumps whose functions are those of a wide Gaussian process with standard deviation 2."""
    target = GaussianProcess(lambda a, b: 4.0 * jnp.exp(-0.5 * (a - b.T) ** 2 / 0.5**2))
    return match(
        KEY,
        lift_prior(basis, {"weights": Gaussian()}),
        output="f",
        inputs=X,
        target=target,
        num_steps=150,
        num_draws=64,
        progress_bar=False,
    )


@pytest.mark.slow
def test_an_objective_over_a_particle_filter_finds_the_exact_posterior():
    """VI and smoothing: the filtering objective. The states are summed out by a filter, the coefficient has a
    guide.
    """
    y = simulated(0.8, 20, seed=0)
    filtered = marginal(series, ["phi"], ParticleFilter(30, gradient="fisher"))
    result = fit(
        KEY,
        filtered,
        AutoNormal(filtered),
        ELBO(num_particles=4),
        optax.adam(0.03),
        600,
        y,
        progress_bar=False,
    )
    exact = marginal(series, ["phi"], ExactFilter())
    grid = jnp.linspace(-1.5, 1.5, 121)
    weights = jax.nn.softmax(jax.vmap(lambda phi: log_density(exact, {"phi": phi}, y).total)(grid))
    mean = (weights * grid).sum()
    sd = jnp.sqrt((weights * (grid - mean) ** 2).sum())
    # The bound of a noisy density is a little off; the exact sd is 0.13.
    np.testing.assert_allclose(result.params["phi_auto_loc"][0], mean, atol=0.35 * sd)
    np.testing.assert_allclose(result.params["phi_auto_scale"][0], sd, rtol=0.3)


@pytest.mark.slow
def test_several_particles_of_a_bound_each_run_a_filter():
    """Fisher's gradient under the vmap of an objective's particles, in the filter's scan. Two particles are
    the mean of two filters.
    """
    filtered = marginal(series, ["phi"], ParticleFilter(200, gradient="fisher"))

    def guide(y):
        numpyro.sample("phi", dist.Normal(numpyro.param("loc", 0.6), 1e-3))

    grad = jax.jit(
        jax.grad(
            lambda loc: ELBO(num_particles=4).loss(
                KEY, {"loc": loc}, filtered, guide, simulated(0.8, 5, seed=0)
            )
        )
    )(0.6)
    exact = marginal(series, ["phi"], ExactFilter())
    slope = jax.grad(lambda phi: log_density(exact, {"phi": phi}, simulated(0.8, 5, seed=0)).total)(0.6)
    np.testing.assert_allclose(-grad, slope, atol=0.2)


def test_only_an_exact_sum_needs_no_key():
    def program():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(numpyro.sample("c", dist.Normal(a + b, 1.0)), 1.0), obs=1.0)

    exact = marginal(
        lambda: numpyro.deterministic(
            "f", numpyro.sample("b", dist.Bernoulli(0.3)) * numpyro.sample("a", dist.Normal(0, 1))
        ),
        ["a"],
        Enumeration(),
    )
    np.testing.assert_allclose(
        log_density(exact, {"a": 0.5}).total, dist.Normal(0, 1).log_prob(0.5), rtol=1e-6
    )
    noisy_inside = marginal(marginal(program, ["a", "b"], ImportanceSampling(2)), ["a"], Enumeration())
    with pytest.raises(ModelError, match="No random key"):
        log_density(noisy_inside, {"a": 0.5})
    assert np.isfinite(log_density(noisy_inside, {"a": 0.5}, rng_key=KEY).total)


@pytest.mark.slow
def test_any_objective_serves_a_tuned_prior(tuned):
    """VI and functional priors: the tuned scale is a constant, and the bound that of the Gaussian process it
    stands for.
    """
    scale = float(tuned.hyperparameters["weights"]["weights"]["scale"])
    y = jnp.sin(3.0 * X)
    result = fit(
        KEY,
        tuned.model,
        AutoNormal(tuned.model),
        IWELBO(num_particles=8),
        optax.adam(0.03),
        600,
        X,
        y,
        progress_bar=False,
    )
    features = jnp.exp(-0.5 * ((X[:, None] - jnp.array([-0.9, -0.3, 0.3, 0.9])) / 0.4) ** 2)
    evidence = dist.MultivariateNormal(
        jnp.zeros(8), scale**2 * features @ features.T + 0.04 * jnp.eye(8)
    ).log_prob(y)
    bound = -result.losses[0, -100:].mean()
    assert evidence - 1.0 < bound < evidence + 0.1
    assert float(tuned.hyperparameters["weights"]["weights"]["scale"]) == scale and set(result.params) == {
        "weights_auto_loc",
        "weights_auto_scale",
    }


@pytest.mark.parametrize(
    ("objective", "near"),
    [(ELBO(num_particles=8), 0.5), pytest.param(IWELBO(num_particles=8), 2.0, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_an_objective_is_a_local_solver(objective, near):
    """VI and NIW: the local posterior of an episode by an objective of the library, beside the exact one."""
    rng = np.random.default_rng(1)
    episodes = [
        (X, np.asarray(np.sin(3 * X) + shift, np.float32) + 0.2 * rng.normal(size=8).astype(np.float32))
        for shift in (-1, 0, 1)
    ]
    hierarchy = lift(basis, local=["weights"])
    exact = hierarchy.fit(
        KEY, EpisodeStream(episodes), num_steps=5, local_solver=ExactLinearGaussian(), progress_bar=False
    )
    varied = hierarchy.fit(
        KEY,
        EpisodeStream(episodes),
        num_steps=5,
        local_solver=VariationalLocal(objective, num_steps=300),
        progress_bar=False,
    )
    ours, theirs = (f.adapt(KEY, *episodes[0]) for f in (varied, exact))
    sd = jnp.sqrt(jnp.diag(theirs.covariance))
    np.testing.assert_array_less(jnp.abs(ours.mean - theirs.mean) / sd, near)


@pytest.mark.slow
def test_series_are_episodes():
    """Smoothing and NIW: dynamics learned across series, each with a coefficient of its own, its states
    summed out exactly.
    """
    episodes = [(simulated(phi, 30, seed),) for seed, phi in enumerate((0.6, 0.7, 0.8, 0.9, 0.75, 0.65))]
    program = marginal(series, ["phi"], ExactFilter())
    trained = lift(program, local=["phi"]).fit(
        KEY, EpisodeStream(episodes), num_steps=15, local_solver=LaplaceGGN(), progress_bar=False
    )
    assert 0.4 < float(trained.niw.loc[0]) < 0.95
    new = simulated(0.75, 10, seed=9)
    adapted = trained.adapt(KEY, new)
    alone = (
        lift(program, local=["phi"], num_episodes=1)
        .fit(KEY, EpisodeStream([(new,)]), num_steps=15, progress_bar=False)
        .adapt(KEY, new)
    )
    # Ten points say little of a coefficient; six other series say much.
    assert float(adapted.covariance[0, 0]) < 0.8 * float(alone.covariance[0, 0])


@pytest.mark.slow
def test_a_tuned_prior_is_the_base_of_a_hierarchy(tuned):
    """Functional priors and NIW: the lift takes the tuned model as any other, and keeps its prior as a factor
    if asked.
    """
    y = jnp.asarray(jnp.sin(3.0 * X))
    episodes = EpisodeStream([(X, y), (X, -y)])
    kept = lift(tuned.model, local=["weights"], keep_prior=True, num_episodes=2)
    plain = lift(basis, local=["weights"], keep_prior=True, num_episodes=2)
    posterior = [
        h.fit(KEY, episodes, num_steps=3, local_solver=ExactLinearGaussian(), progress_bar=False).adapt(
            KEY, X, y
        )
        for h in (kept, plain)
    ]
    # The tuned prior is wider than the model's own, so it pulls less.
    assert float(jnp.sum(posterior[0].mean ** 2)) > float(jnp.sum(posterior[1].mean ** 2))


@pytest.mark.slow
def test_a_tuned_transition_is_smoothed():
    """Functional priors and smoothing: bumps with a tuned prior are the transition of a state-space model,
    learned by NUTS or smoothed.
    """

    def transition(x):
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
        return jnp.exp(-0.5 * ((x[:, None] - jnp.array([-1.5, -0.5, 0.5, 1.5])) / 0.6) ** 2) @ weights

    def state_space(y):
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(4), 1.0).to_event(1))

        def step(x, y_t):
            drift = jnp.exp(-0.5 * ((x - jnp.array([-1.5, -0.5, 0.5, 1.5])) / 0.6) ** 2) @ weights
            x = numpyro.sample("x", dist.Normal(drift, 0.3))
            numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    target = GaussianProcess(lambda a, b: 0.25 * jnp.exp(-0.5 * (a - b.T) ** 2))
    found = match(
        KEY,
        lift_prior(transition, {"weights": Gaussian()}),
        inputs=X,
        target=target,
        num_steps=100,
        num_draws=64,
        progress_bar=False,
    )
    model = found.on(state_space)
    y = jnp.sin(jnp.arange(12.0))
    prior = (
        log_density(model, {"weights": jnp.ones(4), "x0": 0.0, "x": y}, y).total
        - log_density(state_space, {"weights": jnp.ones(4), "x0": 0.0, "x": y}, y).total
    )
    scale = float(found.hyperparameters["weights"]["weights"]["scale"])
    expected = (
        dist.Normal(0.0, scale).log_prob(jnp.ones(4)).sum()
        - dist.Normal(0.0, 1.0).log_prob(jnp.ones(4)).sum()
    )
    np.testing.assert_allclose(prior, expected, rtol=1e-4)
    mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=100, progress_bar=False)
    mcmc.run(KEY, y)
    mean = mcmc.get_samples()["weights"].mean(0)
    smoothed = smooth(model, functionals={"x": lambda t, before, x: x}, num_particles=200).run(
        KEY, y, params={"weights": mean}
    )
    assert np.isfinite(smoothed.log_evidence) and np.isfinite(smoothed.expectations["x"])
