"""Draws of a warm-up are no posterior draws, whatever kernel made them."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import ESS, HMCECS, MCMC, NUTS, SA, BarkerMH, DiscreteHMCGibbs
from numpyro.infer.gibbs import DiscreteGibbs, Gibbs

from ppl_ext import predict, to_arviz
from ppl_ext.errors import ArgumentError
from ppl_ext.infer import SGHMC

Y = jnp.array([0.3, 1.2, 0.8])


def subsampled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)


def mixed(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    shift = numpyro.sample("shift", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(mu + shift, 1.0).expand([3]).to_event(1), obs=y)


def finite(y):
    shift = numpyro.sample("shift", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(1.0 * shift, 1.0).expand([3]).to_event(1), obs=y)


KERNELS = {
    "NUTS": lambda: NUTS(model),
    "SA": lambda: SA(model),
    "BarkerMH": lambda: BarkerMH(model),
    "HMCECS": lambda: HMCECS(NUTS(subsampled), num_blocks=1),
    "DiscreteHMCGibbs": lambda: DiscreteHMCGibbs(NUTS(mixed)),
    "Gibbs": lambda: Gibbs([(NUTS(mixed), ["mu"]), (DiscreteGibbs(mixed), ["shift"])]),
    "DiscreteGibbs": lambda: DiscreteGibbs(finite),
    "SGHMC": lambda: SGHMC(model, step_size=0.05),
    "ESS": lambda: ESS(model),
}
DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py


@pytest.mark.parametrize("name", KERNELS)
def test_a_warm_up_is_no_run(name):
    chains = {"num_chains": 4, "chain_method": "vectorized"} if name == "ESS" else {}
    mcmc = MCMC(KERNELS[name](), num_warmup=4, num_samples=6, progress_bar=False, **chains)
    mcmc.warmup(jax.random.key(0), Y, collect_warmup=True)
    with pytest.raises(ArgumentError, match=r"to_arviz: this MCMC has warmed up and not run.*mcmc\.run"):
        to_arviz(mcmc)
    mcmc.run(jax.random.key(1), Y)
    assert to_arviz(mcmc).posterior.sizes["draw"] == 6
    mcmc.post_warmup_state = mcmc.last_state  # as NumPyro says how to go on
    assert to_arviz(mcmc).posterior.sizes["draw"] == 6
    mcmc.run(jax.random.key(2), Y)
    assert to_arviz(mcmc).posterior.sizes["draw"] == 6


def test_nor_is_one_whose_draws_were_not_kept():
    mcmc = MCMC(NUTS(model), num_warmup=4, num_samples=6, progress_bar=False)
    mcmc.warmup(jax.random.key(0), Y)
    with pytest.raises(ArgumentError, match="predict: this MCMC has warmed up and not run"):
        predict(jax.random.key(0), mcmc, None)
