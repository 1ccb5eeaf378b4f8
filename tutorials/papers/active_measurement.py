# %% [markdown]
# # Measuring what is least certain
#
# A signal has many places, and few may be measured. Draws of the posterior say how uncertain each measurement
# is; the most uncertain one is made, draws that disagree with it are dropped, and so on. For a Gaussian
# process that is the place of greatest variance. Of a signal that is one of many templates it is the place
# that tells most of them apart. A variance is large too where one template in many is far from all others,
# and there a measurement says next to nothing.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Predictive
from scipy.special import entr

from ppl_ext.designs import PredictiveEntropy, condition, next_measurements

PAPER = "Nolan, Stevens, van Nierop, van Sloun (2025). Active diffusion subsampling. TMLR; arXiv:2406.14388."
NOISE, TEMPLATES, PLACES = 0.2, 64, 40

# %% [markdown]
# Half of the places are on or off, each in half of the templates. At each of the others one template stands
# out by ten.

# %%
RNG = np.random.default_rng(0)
ON_OFF = np.stack([RNG.permutation(np.arange(TEMPLATES) % 2) for _ in range(PLACES // 2)], 1)
STANDS_OUT = 10.0 * np.eye(TEMPLATES)[RNG.permutation(TEMPLATES)[: PLACES // 2]].T
SHAPES = jnp.asarray(np.concatenate([2.0 * ON_OFF - 1.0, STANDS_OUT], 1))


def signal():
    which = numpyro.sample("which", dist.Categorical(logits=jnp.zeros(TEMPLATES)))
    numpyro.deterministic("f", SHAPES[which])


@partial(jax.jit, static_argnums=(1, 2))
def measured(key, how, num, draws, truth):
    """The places (num,) that were measured of one signal, and the values there."""

    def step(draws, key):
        of_place, of_noise, of_draws = jax.random.split(key, 3)
        worth = {
            "entropy": PredictiveEntropy(NOISE),
            "variance": lambda f, _: f.var(0),
            "random": lambda f, _: jax.random.uniform(of_place, f.shape[1:]),
        }[how]
        row = next_measurements(worth, draws)[0]
        value = truth[row] + NOISE * jax.random.normal(of_noise)
        return condition(draws, row, value, NOISE, rng_key=of_draws), (row, value)

    return jax.lax.scan(step, draws, jax.random.split(key, num))[1]


def nats_left(rows, values):
    """Of which template it is, exactly, after each measurement."""
    off = (np.asarray(values)[:, None] - np.asarray(SHAPES).T[np.asarray(rows)]) / NOISE
    logs = np.cumsum(-0.5 * off**2, 0)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return entr(weights / weights.sum(1, keepdims=True)).sum(1)


# %% [markdown]
# On a Gaussian process the order is that of the greatest variance given those before.


# %%
def orders(num):
    x = np.linspace(0.0, 1.0, PLACES)
    covariance = np.exp(-0.5 * ((x[:, None] - x) / 0.1) ** 2) * (1.0 + x[:, None] * x) + 1e-4 * np.eye(PLACES)
    law = dist.MultivariateNormal(jnp.zeros(PLACES), jnp.asarray(covariance))
    by_entropy = next_measurements(PredictiveEntropy(NOISE), law, num).tolist()
    by_variance = []
    for _ in range(num):
        by_variance.append(int(covariance.diagonal().argmax()))
        across = covariance[by_variance[-1]]
        covariance = covariance - np.outer(across, across) / (across[by_variance[-1]] + NOISE**2)
    return by_entropy, by_variance


# %%
def claims(small=False):
    rows = [("greedy entropy on a Gaussian process, six places", *map(str, reversed(orders(6))))]
    of_draws, of_signals, of_noise = jax.random.split(jax.random.key(0), 3)
    draws = Predictive(signal, num_samples=300 if small else 1000)(of_draws)["f"]
    signals = Predictive(signal, num_samples=10 if small else 100)(of_signals)["f"]
    keys = jax.random.split(of_noise, len(signals))
    for how in ("entropy", "variance", "random"):
        left = [nats_left(*measured(key, how, 8, draws, f)) for key, f in zip(keys, signals, strict=True)]
        mean = np.mean(left, 0)
        told = f"{mean[2]:.2f}, {mean[5]:.2f} and {mean[7]:.2f}"
        known = "at least 2.08, 0 and 0 (a bit each)" if how == "entropy" else "more"
        rows.append((f"nats left of 4.16 after 3, 6 and 8 measurements, {how}", known, told))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
