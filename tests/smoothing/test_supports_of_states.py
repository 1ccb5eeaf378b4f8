"""States that live on part of the real line: no probe of a model runs outside of there, so that NumPyro's
checks of arguments may be on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions.distribution import validation_enabled
from numpyro.infer import MCMC

from ppl_ext import to_arviz
from ppl_ext.infer import ParticleGibbs
from ppl_ext.smoothing import smooth

KEY = jax.random.key(0)
DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


def widths(y):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.1))

    def step(s, y_t):
        s = numpyro.sample("state", dist.Gamma(3.0 * rate, 3.0 / s))
        numpyro.sample("y", dist.Normal(0.0, s), obs=y_t)
        return s, None

    scan(step, numpyro.sample("first", dist.LogNormal(0.0, 1.0)), y)


def shares(y):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.1))

    def step(p, y_t):
        p = numpyro.sample("state", dist.Dirichlet(10 * rate * p + 0.1))
        numpyro.sample("y", dist.Categorical(p), obs=y_t)
        return p, None

    scan(step, numpyro.sample("first", dist.Dirichlet(jnp.ones(3))), y)


def between(y):
    rate = numpyro.sample("rate", dist.Uniform(0.5, 1.5))

    def step(u, y_t):
        u = numpyro.sample("state", dist.TruncatedNormal(u, 1.0, low=rate, high=3.0))
        numpyro.sample("y", dist.Gamma(u, 1.0), obs=y_t)
        return u, None

    scan(step, 1.7, y)


MODELS = {
    "widths": (widths, jnp.array([0.5, 1.0, 2.0]), lambda s: s > 0),
    "shares": (shares, jnp.array([0, 2, 1]), lambda p: np.isclose(p.sum(-1), 1.0) & (p >= 0).all(-1)),
    "between": (between, jnp.array([0.5, 1.0, 2.0]), lambda u: (u > 0.5) & (u < 3.0)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backward", ["mcmc", "path", "dense"])
def test_smoothing_and_its_report(name, backward):
    model, y, inside = MODELS[name]
    with validation_enabled():
        report = (
            smooth(model, num_particles=20, backward=backward)
            .run(KEY, y, params={"rate": 1.0})
            .to_arviz(num_samples=5)
        )
    assert inside(report.posterior["state"].values).all()


@pytest.mark.parametrize("name", MODELS)
def test_particle_gibbs_and_its_report(name):
    model, y, inside = MODELS[name]
    mcmc = MCMC(ParticleGibbs(model, num_particles=5), num_warmup=3, num_samples=5, progress_bar=False)
    with validation_enabled():
        mcmc.run(KEY, y)
        report = to_arviz(mcmc)
    assert inside(report.posterior["state"].values).all()
