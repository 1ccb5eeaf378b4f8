"""``perturb``: means over noise against closed forms, within 4.5 standard errors of 4,000 keys."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext import log_density
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.handlers import perturb
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

KEYS = jax.random.split(jax.random.key(0), 4_000)
X = jnp.array([0.5, -1.0, 2.0, 0.1])


def model(x, subsample=None):
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("rows", 4, subsample_size=subsample) as rows:
        numpyro.sample("x", dist.Normal(0.0, scale), obs=x[rows])


def assert_mean(samples, expected):
    np.testing.assert_allclose(
        samples.mean(), expected, atol=4.5 * float(samples.std()) / len(samples) ** 0.5
    )


def losses(program, *args, **kwargs):
    guide = lambda *args, **kwargs: None  # noqa: E731
    one = lambda key: ELBO().loss(key, {"scale": jnp.asarray(1.3)}, program, guide, *args, **kwargs)  # noqa: E731
    return jax.jit(jax.vmap(one))(KEYS)


def exact(s):
    """E log N(x + sε; 0, 1.3), of all four."""
    return (
        4 * (np.log(1.3) + 0.5 * np.log(2 * np.pi)) + (np.asarray(X) ** 2 + s**2).sum() / (2 * 1.3**2)
    ).item()


@pytest.mark.parametrize("subsample", [None, 2])
def test_the_mean_over_noise_is_the_convolved_likelihood(subsample):
    found = losses(perturb(model, "x", 0.8), X, subsample=subsample)
    assert_mean(found, exact(0.8))
    for wrong in (0.0, 0.4):
        with pytest.raises(AssertionError):
            assert_mean(found, exact(wrong))


def test_each_element_and_each_particle_has_noise_of_its_own():
    def seen(key):
        return (
            numpyro.handlers.trace(numpyro.handlers.seed(perturb(model, "x", 1.0), key)).get_trace(X)["x"][
                "value"
            ]
            - X
        )

    noise = np.asarray(jax.vmap(seen)(KEYS))
    np.testing.assert_allclose(noise.T @ noise / len(noise), np.eye(4), atol=0.1)
    spread = losses(perturb(model, "x", 1.0), X).std()
    one = lambda key: ELBO(num_particles=4).loss(key, {}, perturb(model, "x", 1.0), lambda x: None, X)  # noqa: E731
    assert jax.vmap(one)(KEYS[:500]).std() < 1.3**2 * 0.7 * spread  # half, but for the other scale


def test_it_nests_with_scale_and_reaches_into_a_scan():
    found = losses(numpyro.handlers.scale(perturb(model, "x", 0.8), scale=3.0), X)
    assert_mean(found, 3 * exact(0.8))

    def chain(x):
        def step(carry, x):
            numpyro.sample("x", dist.Normal(0.0, 1.3), obs=x)
            return carry, None

        scan(step, 0.0, x)

    assert_mean(losses(perturb(chain, "x", 0.8), X), exact(0.8))
    narrow = log_density(perturb(chain, "x", 0.5).removed(), {}, X).total
    np.testing.assert_allclose(narrow, dist.Normal(0.0, 1.2).log_prob(X).sum(), rtol=1e-5)


def test_other_sites_stay_as_they_are():
    found = losses(perturb(model, "y*", 0.8), X)
    np.testing.assert_allclose(found, exact(0.0), rtol=1e-5)


def test_a_fit_learns_the_convolved_scale_and_gives_the_noise_back():
    """The scale's maximum is √(mean x² + s²), of which √(mean x²) is left."""
    noisy, optim = perturb(model, "x", jnp.asarray(0.8)), optax.adam(optax.cosine_decay_schedule(0.05, 2_000))
    run = fit(KEYS[0], noisy, lambda x: None, ELBO(num_particles=50), optim, 2_000, X, progress_bar=False)
    scale = float(run.params["scale"][0])
    np.testing.assert_allclose(scale**2, float((X**2).mean()) + 0.64, rtol=0.05)
    clean = numpyro.handlers.substitute(noisy.removed(), {"scale": scale})
    law = numpyro.handlers.trace(clean).get_trace(X)["x"]["fn"]
    np.testing.assert_allclose(law.variance, scale**2 - 0.64, rtol=1e-5)


@pytest.mark.parametrize("subsample", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_a_fit_is_reported_with_the_noise_and_without(subsample):
    """Beside a latent of each row, under a scale."""

    def with_latent(x, subsample=None):
        with numpyro.plate("rows", 4, subsample_size=subsample) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])

    def guide(x, subsample=None):
        loc = numpyro.param("loc", jnp.zeros(4))
        with numpyro.plate("rows", 4, subsample_size=subsample) as rows:
            numpyro.sample("z", dist.Normal(loc[rows], 0.3))

    noisy = perturb(numpyro.handlers.scale(with_latent, scale=2.0), "x", 0.3)
    programs = noisy, numpyro.handlers.scale(guide, scale=2.0), ELBO(), optax.sgd(0.01), 3
    run = fit(KEYS[0], *programs, X, subsample=subsample, progress_bar=False)
    report = run.to_arviz(num_samples=5)
    assert report.log_likelihood["x"].shape == (1, 5, 4)
    assert (abs(report.observed_data["x"].values - X) > 1e-3).all()
    clean = replace(run, model=noisy.removed(), outside=None).to_arviz(num_samples=5)
    np.testing.assert_array_equal(clean.observed_data["x"].values, X)
    exact = dist.Normal(clean.posterior["z"].values, 0.4).log_prob(X)
    np.testing.assert_allclose(clean.log_likelihood["x"].values, exact, rtol=1e-4)


def test_the_noise_is_taken_off_mixtures_masks_and_events():
    components = dist.Normal(jnp.zeros((2, 3)), jnp.array([[1.0], [2.0]])).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.4, 0.6])), components)

    def mixed():
        with numpyro.plate("rows", 2):
            numpyro.sample("x", law.mask(True), obs=jnp.ones((2, 3)))

    left = dist.Normal(jnp.zeros((2, 3)), jnp.array([[0.75], [3.75]]) ** 0.5).to_event(1)
    expected = 2 * dist.MixtureSameFamily(dist.Categorical(jnp.array([0.4, 0.6])), left).log_prob(jnp.ones(3))
    np.testing.assert_allclose(log_density(perturb(mixed, "x", 0.5).removed(), {}).total, expected, rtol=1e-5)


def test_what_is_refused():
    with pytest.raises(ArgumentError, match="scale must be at least 0"):
        perturb(model, "x", -1.0)
    with pytest.raises(ArgumentError, match="sites must be a name"):
        perturb(model, 3, 1.0)
    count = lambda: numpyro.sample("n", dist.Poisson(1.0), obs=2)  # noqa: E731
    with pytest.raises(ModelError, match="site 'n' is discrete"):
        log_density(perturb(count, "n", 1.0), {}, rng_key=KEYS[0])
    with pytest.raises(ModelError, match="no random key for the noise of site 'x'"):
        log_density(perturb(model, "x", 1.0), {}, X)
    gamma = lambda: numpyro.sample("g", dist.Gamma(1.0), obs=2.0)  # noqa: E731
    with pytest.raises(ModelError, match="site 'g' is a Gamma"):
        log_density(perturb(gamma, "g", 1.0).removed(), {})
