"""Leave-one-out where ArviZ has nothing to smooth: refused in words, by either of its versions."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from ppl_ext.diagnostics import loo
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
