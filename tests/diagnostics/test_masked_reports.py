"""Reports of masks that the model computes, wherever they are put: terms and what is left of them, against
NumPyro's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block
from numpyro.infer import MCMC, NUTS
from numpyro.infer import log_likelihood as of_numpyro
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import to_arviz
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

LENGTHS, Y = jnp.array([3, 0, 2]), jnp.arange(9.0).reshape(3, 3) / 4
SEEN = jnp.arange(3) < LENGTHS[:, None]
KEY = jax.random.key(0)
ROWS, ELEMENTS = LENGTHS > 0, SEEN
DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py


def event(m, lengths, y):
    seen = jnp.arange(3) < lengths[:, None]
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(m, jnp.ones((3, 3))).mask(seen).to_event(1), obs=y)


def expanded_event(m, lengths, y):
    seen = jnp.arange(3) < lengths[:, None]
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(m, 1.0).expand([3, 3]).mask(seen).to_event(1), obs=y)


def batch(m, lengths, y):
    with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 3, dim=-1):
        numpyro.sample("y", dist.Normal(m, 1.0).mask(jnp.arange(3) < lengths[:, None]), obs=y)


def handler(m, lengths, y):
    with numpyro.plate("rows", 3), numpyro.handlers.mask(mask=lengths > 0):
        numpyro.sample("y", dist.Normal(m, 1.0).expand([3, 3]).to_event(1), obs=y)


def in_scan(m, lengths, y):
    def step(carry, t):
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Normal(m, 1.0).mask(t < lengths), obs=y[:, t])
        return carry, None

    scan(step, None, jnp.arange(3))


def twice(m, lengths, y):
    seen = jnp.arange(3) < lengths[:, None]
    with numpyro.plate("rows", 3), numpyro.handlers.mask(mask=jnp.arange(3) < 2):
        numpyro.sample("y", dist.Normal(m, jnp.ones((3, 3))).mask(seen).to_event(1), obs=y)


def from_a_draw(m, lengths, y):
    """As a threshold on a latent site would: known at each draw alone."""
    with numpyro.plate("rows", 3):
        numpyro.sample(
            "y",
            dist.Normal(m, jnp.ones((3, 3)))
            .mask((m * 0 < lengths[:, None]) & (jnp.arange(3) < lengths[:, None]))
            .to_event(1),
            obs=y,
        )


PROGRAMS = {
    "event": (event, ROWS),
    "expanded_event": (expanded_event, ROWS),
    "batch": (batch, ELEMENTS),
    "handler": (handler, ROWS),
    "in_scan": (in_scan, ELEMENTS.T),
    "twice": (twice, ROWS & (jnp.arange(3) < 2)),
    "from_a_draw": (from_a_draw, ROWS),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_terms_are_those_of_numpyro(name):
    observe, seen = PROGRAMS[name]

    def model(lengths, y):
        observe(numpyro.sample("m", dist.Normal(0.0, 1.0)), lengths, y)

    mcmc = MCMC(NUTS(model), num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.run(KEY, LENGTHS, Y)
    terms = to_arviz(mcmc).log_likelihood["y"].values[0]
    expected = np.asarray(of_numpyro(model, mcmc.get_samples(), LENGTHS, Y)["y"])
    np.testing.assert_allclose(terms, expected[:, np.asarray(seen)], rtol=1e-5)


HIDDEN = {"handler": ~ROWS[:, None], "twice": ~(SEEN & (jnp.arange(3) < 2)[:, None]), "in_scan": ~SEEN.T}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_mask_hides_is_no_observation(name):
    """What fills the place stood in ``observed_data`` as if it had been seen."""
    observe, _ = PROGRAMS[name]

    def model(lengths, y):
        observe(numpyro.sample("m", dist.Normal(0.0, 1.0)), lengths, y)

    result = fit(KEY, model, AutoNormal(model), ELBO(), optax.adam(0.1), 1, LENGTHS, Y, progress_bar=False)
    shown = result.to_arviz(num_samples=2).observed_data["y"]
    y = np.asarray(Y.T if name == "in_scan" else Y)
    np.testing.assert_array_equal(shown, np.where(HIDDEN.get(name, ~SEEN), np.nan, y))


def test_data_that_are_shared_are_hidden_where_no_one_sees_them():
    seen, counts = jnp.array([[True, False, False], [False, False, True]]), jnp.array([[2, 3, 5]])

    def model(counts):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3):
            numpyro.sample("y", dist.Poisson(rate).mask(seen), obs=counts)

    result = fit(KEY, model, AutoNormal(model), ELBO(), optax.adam(0.1), 1, counts, progress_bar=False)
    shown = result.to_arviz(num_samples=2).observed_data["y"]
    np.testing.assert_array_equal(np.ravel(shown)[:3], [2, np.nan, 5])


@pytest.mark.parametrize("name", PROGRAMS)
def test_beside_a_finite_site_that_is_summed_out(name):
    """As much mass for each of two means, so the terms are those of a mixture of two."""
    observe, _ = PROGRAMS[name]

    def model(lengths, y):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        shift = numpyro.sample("shift", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        observe(m + shift, lengths, y)

    guide = AutoNormal(block(model, hide=["shift"]))
    result = fit(KEY, model, guide, ELBO(), optax.adam(0.01), 3, LENGTHS, Y, progress_bar=False)
    report = result.to_arviz(num_samples=5)
    found = report.log_likelihood["y"].values[0]
    found = found.reshape(5, -1).sum(1)
    m = report.posterior["m"].values[0]
    seen = np.asarray(SEEN.T if name == "in_scan" else SEEN)
    y = np.asarray(Y.T if name == "in_scan" else Y)
    if name == "handler":
        seen = np.broadcast_to(np.asarray(ROWS)[:, None], (3, 3))
    if name == "twice":
        seen = seen & (np.arange(3) < 2)[:, None]

    def total(loc):
        one = -0.5 * (y - loc[:, None, None]) ** 2 - 0.5 * np.log(2 * np.pi)
        return np.where(seen, one, 0.0).sum((1, 2))

    np.testing.assert_allclose(found, np.logaddexp(total(m), total(m + 1)) + np.log(0.5), rtol=1e-5)
