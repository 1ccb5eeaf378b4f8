# %% [markdown]
# # A forecast for a decision: how much to order
#
# Each day some units are ordered before demand is known. A unit that is missing costs more than one that is
# left over, and the best order is a quantile of demand: missing / (missing + left over). A forecast that is
# only a mean and a standard deviation takes the normal law's quantile, and demand is skewed.
#
# Demand here is a count with weekdays and overdispersion. The model is fitted by NUTS, `Predictive` draws the
# next week, and orders are its quantiles. Beside it are a normal law with the same mean and variance, and a
# regression with normal noise. What an order costs is exact, since the law of demand is known here.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive
from scipy import stats

PAPER = (
    "Halkos, Kevork (2012). Evaluating alternative estimators for optimal order quantities in the newsvendor "
    "model with skewed demand. MPRA paper 36205."
)
MEANS = np.array([6.0, 5.0, 5.0, 7.0, 12.0, 18.0, 9.0])  # of the weekdays
SHAPE, WEEKS = 1.5, 20
RATIOS = (0.7, 0.95, 0.99)


def skewed(demand=None):
    mean = jnp.exp(numpyro.sample("log_mean", dist.Normal(jnp.full(7, 2.0), 1.0).to_event(1)))
    shape = numpyro.sample("shape", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("weeks", WEEKS, dim=-2), numpyro.plate("days", 7, dim=-1):
        return numpyro.sample("demand", dist.GammaPoisson(shape, shape / mean), obs=demand)


def normal(demand=None):
    mean = numpyro.sample("mean", dist.Normal(jnp.full(7, 8.0), 8.0).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(10.0))
    with numpyro.plate("weeks", WEEKS, dim=-2), numpyro.plate("days", 7, dim=-1):
        return numpyro.sample("demand", dist.Normal(mean, noise), obs=demand)


@functools.cache
def chain(model):
    return MCMC(NUTS(model), num_warmup=300, num_samples=500, progress_bar=False, jit_model_args=True)


def forecast(key, model, demand):
    """Draws (n, 7) of the demand of a week to come."""
    of_chain, of_week = jax.random.split(key)
    chain(model).run(of_chain, demand)
    week = Predictive(model, chain(model).get_samples())(of_week)["demand"]
    return np.asarray(week).reshape(-1, 7)


# %% [markdown]
# The cost of an order, in units left over: sums over the law of demand.


# %%
def cost(order, ratio):
    """Expected by day, for whole orders (7,)."""
    counts = np.arange(2000)[:, None]
    probs = stats.nbinom.pmf(counts, SHAPE, SHAPE / (SHAPE + MEANS))
    missing, left = np.maximum(counts - order, 0), np.maximum(order - counts, 0)
    return float((probs * (ratio / (1.0 - ratio) * missing + left)).sum(0).mean())


def costs(key, ratios):
    """By ratio: the best that can be, and of the three forecasts, from one history of demand."""
    of_history, of_skewed, of_normal = jax.random.split(key, 3)
    law = dist.GammaPoisson(SHAPE, jnp.asarray(SHAPE / MEANS))
    history = law.sample(of_history, (WEEKS,)).astype(float)
    draws, plain = forecast(of_skewed, skewed, history), forecast(of_normal, normal, history)
    rows = []
    for ratio in ratios:
        orders = (
            stats.nbinom.ppf(ratio, SHAPE, SHAPE / (SHAPE + MEANS)),
            np.quantile(draws, ratio, axis=0),
            draws.mean(0) + draws.std(0) * stats.norm.ppf(ratio),
            np.quantile(plain, ratio, axis=0),
        )
        rows.append([cost(np.maximum(np.ceil(order), 0.0), ratio) for order in orders])
    return rows


# %%
def claims(small=False):
    found = np.array([costs(k, RATIOS) for k in jax.random.split(jax.random.key(0), 2 if small else 8)])
    rows = []
    for ratio, (best, ours, same, plain) in zip(RATIOS, found.mean(0), strict=True):
        known = f"{best:.2f} at best; normal of the same moments {same:.2f}, regression {plain:.2f}"
        rows.append((f"cost a day where the quantile {ratio:g} is best", known, f"{ours:.2f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
