"""Leave-one-out where ArviZ has nothing to smooth: refused in words, by either of its versions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from ppl_ext.diagnostics import loo, psis
from ppl_ext.errors import ArgumentError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def report(automatic, num_samples):
    result = fit(
        KEY, model, automatic(model), ELBO(), optax.adam(0.05), 5, jnp.arange(3.0), progress_bar=False
    )
    return result.to_arviz(num_samples=num_samples)


def test_too_few_draws():
    with pytest.raises(ArgumentError, match="24 draws have no tail.*25 at least, by num_samples="):
        loo(report(AutoNormal, 24))


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_just_enough():
    assert loo(report(AutoNormal, 25)).n_data_points == 3


def test_a_point_has_no_posterior_to_leave_anything_out_of():
    with pytest.raises(
        ArgumentError, match=r"all terms of 'y' are the same at all draws.*point \(AutoDelta\)"
    ):
        loo(report(AutoDelta, 50))


def test_a_hopeless_posterior_is_called_so():
    """Weights over hundreds of nats: in float32 ArviZ's tail underflows, and k-hat reads as 0.05, excellent.
    ``arviz.loo`` of a report must say what ours says, and what double precision says.
    """
    y = np.linspace(-3.0, 3.0, 4, dtype=np.float32)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        with numpyro.plate("n", 4):
            numpyro.sample("y", dist.Normal(mu, 0.1), obs=y)

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 0.5))

    result = fit(KEY, model, guide, ELBO(), optax.sgd(0.0), 1, jnp.asarray(y), progress_bar=False)
    report = result.to_arviz(num_samples=400)
    mu = np.asarray(report.posterior["mu"], float)[..., None]
    exact = -(((y - mu) / 0.1) ** 2) / 2
    expected = psis(np.moveaxis(-exact, -1, 0).reshape(4, -1)).pareto_k
    assert (expected > 5.0).all()
    with pytest.warns(UserWarning, match="Estimated shape parameter"):
        found = loo(report, pointwise=True).pareto_k
    np.testing.assert_allclose(found, expected, rtol=0.3)
