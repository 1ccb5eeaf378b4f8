"""Particle Gibbs with NUTS for the parameters, against NUTS on the exact marginal of a linear Gaussian
model.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.infer import PMMH, ParticleGibbs, PathSweep
from ppl_ext.infer.particle_mcmc.particle_gibbs import path_sites

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

T = 20
RNG = np.random.default_rng(5)
X = np.zeros(T + 1)
for t in range(T):
    X[t + 1] = 0.8 * X[t] + 0.7 * RNG.normal()
Y = (X[1:] + 0.7 * RNG.normal(size=T)).astype(np.float32)


def priors():
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))
    return phi, scale


def model(y):
    phi, scale = priors()

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, scale))
        numpyro.sample("y", dist.Normal(x, 0.7), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def marginal(y):
    phi, scale = priors()

    def step(state, y_t):
        mean, var = phi * state[0], phi**2 * state[1] + scale**2
        gain = var / (var + 0.49)
        return (mean + gain * (y_t - mean), (1 - gain) * var), dist.Normal(
            mean, jnp.sqrt(var + 0.49)
        ).log_prob(y_t)

    numpyro.factor("y", jax.lax.scan(step, (0.0, 1.0), y)[1].sum())


def means(kernel, num_samples, num_warmup=300):
    """Posterior means of the parameters, with Monte Carlo standard errors, and the run."""
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(0), Y, extra_fields=("renewed",) if isinstance(kernel, ParticleGibbs) else ())
    draws = {
        name: np.asarray(x, np.float64) for name, x in mcmc.get_samples().items() if name in ("phi", "scale")
    }
    errors = {name: x.std() / np.sqrt(effective_sample_size(x[None])) for name, x in draws.items()}
    return {name: x.mean() for name, x in draws.items()}, errors, mcmc


@pytest.fixture(scope="module")
def reference():
    return means(NUTS(marginal), 4000)[:2]


def assert_close(found, errors, reference):
    for name, mean in reference[0].items():
        error = np.hypot(errors[name], reference[1][name])
        assert error < 0.05 and abs(found[name] - mean) < 4.0 * error, (name, found[name], mean, error)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("num_particles", "num_samples"),
    [(5, 4000), pytest.param(5, 20_000, marks=SLOW), pytest.param(50, 10_000, marks=SLOW)],
)
@pytest.mark.slow
def test_particle_gibbs_equals_nuts_on_the_marginal(num_particles, num_samples, reference):
    found, errors, mcmc = means(ParticleGibbs(model, num_particles), num_samples)
    assert_close(found, errors, reference)
    assert mcmc.get_samples()["x"].shape == (num_samples, T)
    renewed = np.asarray(mcmc.get_extra_fields()["renewed"]).mean(0)
    assert renewed.shape == (T + 1,) and (renewed > 0.2).all()


@pytest.mark.slow
def test_a_sweep_that_forgets_the_frozen_path_is_seen(reference, monkeypatch):
    from ppl_ext.smoothing import conditional_paris as conditional

    kept = conditional.kept
    monkeypatch.setattr(conditional, "kept", lambda key, space, path: kept(key, space))
    found, errors, _ = means(ParticleGibbs(model, 2), 4000)
    with pytest.raises(AssertionError):
        assert_close(found, errors, reference)


@pytest.mark.slow
def test_pmmh_equals_nuts_on_the_marginal(reference):
    found, errors, mcmc = means(PMMH(model, 50), 6000, 1000)
    assert_close(found, errors, reference)
    assert set(mcmc.get_samples()) == {"phi", "scale"}


@pytest.mark.slow
def test_it_is_a_block_of_numpyros_gibbs():
    kernel = Gibbs([(NUTS(model), ["phi", "scale"]), (PathSweep(model, 5), ["x0", "x"])])
    own = means(ParticleGibbs(model, 5), 50, 20)[0]
    found, errors, mcmc = means(kernel, 50, 20)
    assert set(mcmc.get_samples()) == {"phi", "scale", "x0", "x"} and set(own) == set(found)


def test_the_state_is_told_from_the_parameters():
    assert path_sites(model, (Y,), {}) == ["x0", "x"]


@pytest.mark.parametrize("num_chains", [3, 4])  # a raw key may have four words, too
def test_chains_that_numpyro_expects_to_be_vectorised_are_refused_with_the_way_to_go(num_chains):
    mcmc = MCMC(
        ParticleGibbs(model, 3), num_warmup=1, num_samples=1, num_chains=num_chains, chain_method="vectorized"
    )
    with pytest.raises(ArgumentError, match=f"got {num_chains}.*chain_method=jax.vmap"):
        mcmc.run(jax.random.key(0), Y[:3])


def waits(hidden):
    def model(y):
        drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x + drift, 1.0))
            law = dist.Exponential(jnp.exp(x))
            numpyro.sample("y", law.mask(False) if hidden else law, obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    return model


@pytest.mark.filterwarnings("ignore:Out-of-support")  # NumPyro's own, of data that nobody looks at too
def test_data_that_no_path_has():
    """A sweep whose particles are all impossible leaves its path as it is, which is no sample."""

    def start(y, hidden=False):
        kernel = ParticleGibbs(waits(hidden), 4)
        kernel.init(jax.random.key(0), 1, None, (jnp.array(y),), {})

    with pytest.raises(ModelError, match=r"1 of 3 observed values of site 'y' lie outside .* of Exponential"):
        start([1.0, -1.0, 2.0])
    start([1.0, -1.0, 2.0], hidden=True)  # nobody looks at these
    with pytest.raises(ModelError, match=r"site 'y' hold 1 NaN, which the kernel of 'drift' cannot .*Mask"):
        start([1.0, jnp.nan, 2.0])


def test_what_cannot_work_is_refused():
    with pytest.raises(ArgumentError, match="at least 2"):
        ParticleGibbs(model, 1)
    with pytest.raises(ArgumentError, match="same model"):
        ParticleGibbs(model, 5, inner=NUTS(marginal))
    with pytest.raises(ModelError, match="'phi'"):
        MCMC(
            Gibbs([(NUTS(model), ["x0"]), (PathSweep(model, 5), ["x", "phi", "scale"])]),
            num_warmup=1,
            num_samples=1,
        ).run(jax.random.key(0), Y)
    for nothing in ({}, None):
        with pytest.raises(ArgumentError, match="use it as a block of Gibbs"):
            PathSweep(model, 5).init(jax.random.key(0), 0, nothing, (Y,), {})
    with pytest.raises(ModelError, match="scan"):
        MCMC(ParticleGibbs(marginal, 5), num_warmup=1, num_samples=1, progress_bar=False).run(
            jax.random.key(0), Y
        )


def test_states_that_the_model_marks_to_be_summed_out_are_drawn_all_the_same():
    """NumPyro's ``Gibbs`` has no place for such a site in a block."""
    marked = {"enumerate": "parallel"}

    def model(y, infer):
        p = numpyro.sample("p", dist.Beta(2.0, 2.0))

        def step(z, y):
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(z == 1, p, 1 - p)), infer=dict(infer))
            numpyro.sample("y", dist.Normal(0.5 * z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    def run(infer):
        kernel = ParticleGibbs(partial(model, infer=infer), num_particles=5)
        mcmc = MCMC(kernel, num_warmup=5, num_samples=20, progress_bar=False)
        mcmc.run(jax.random.key(0), jnp.array([0.3, 1.0, -0.4]))
        return mcmc.get_samples()

    plain, summed = run({}), run(marked)
    assert marked == {"enumerate": "parallel"} and plain["z"].std() > 0
    jax.tree.map(np.testing.assert_array_equal, plain, summed)
