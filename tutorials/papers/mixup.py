# %% [markdown]
# # Mixtures of rows, where no temperature helps
#
# A network that interpolates its rows is over-confident, and where classes overlap one temperature cannot
# mend it: `temperature_scaling.py`. Mixup trains on rows between rows. A share λ ~ Beta(a, a) and two rows
# give x = λ x₁ + (1 − λ) x₂, whose loss is λ that of y₁ and 1 − λ that of y₂. Then no row is ever met as it
# is, confidence of one is rarely asked for, and calibration is better before any temperature.
#
# In NumPyro: share and second row are sites of model and guide alike, so that they cancel in the ELBO and are
# averaged over, step by step. The network has no prior, and its parameters are those of greatest likelihood.
#
# Classes are four pairs of Gaussians in five dimensions; the two of a pair are `apart` standard deviations
# from each other. The claim is that where they overlap, mixing alone is calibrated better than rows as they
# are with a temperature. Rows and network are ours; the paper's theorem is of a modified Mixup, this is the
# plain one, and how it does depends on a. Where classes lie apart it makes the network too modest.

# %%
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import flax_module
from numpyro.handlers import substitute

from ppl_ext.infer import fit
from ppl_ext.meta import expected_calibration_error
from ppl_ext.objectives import ELBO

PAPER = (
    "Chidambaram, Ge (2024). On the Limitations of Temperature Scaling for Distributions with Overlaps. "
    "ICLR; Zhang, Cisse, Dauphin, Lopez-Paz (2018). mixup: Beyond empirical risk minimization. ICLR."
)
CLASSES, DIM, ROWS, BATCH, HELD_OUT, TEST = 8, 5, 400, 100, 2000, 4000
TEMPERATURES = np.logspace(-0.5, 2.0, 101)


def rows(rng, n, apart):
    pairs = np.repeat(np.eye(DIM)[:-1], 2, axis=0) * 6.0 / 2**0.5
    centres = pairs + apart * np.outer(np.arange(CLASSES) % 2, np.eye(DIM)[-1])
    y = rng.integers(CLASSES, size=n)
    return jnp.asarray(centres[y] + rng.normal(size=(n, DIM)), float), jnp.asarray(y)


# %%
def network():
    layers = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(CLASSES)])
    return flax_module("network", layers, input_shape=(DIM,))


def mixed(a):
    """The second rows, and shares of the first; of a = 0 a row is met as it is."""
    second = numpyro.sample("second", dist.DiscreteUniform(0, ROWS - 1))
    return second, numpyro.sample("share", dist.Beta(a, a)) if a else jnp.ones(BATCH)


def model(x, y, a):
    of = network()
    with numpyro.plate("batch", ROWS, subsample_size=BATCH) as first:
        second, share = mixed(a)
        log_p = jax.nn.log_softmax(of(share[:, None] * x[first] + (1 - share[:, None]) * x[second]))
        one, other = (jnp.take_along_axis(log_p, y[k][:, None], 1)[:, 0] for k in (first, second))
        numpyro.factor("labels", share * one + (1 - share) * other)


def guide(x, y, a):
    with numpyro.plate("batch", ROWS, subsample_size=BATCH):
        mixed(a)


@cache  # the same for all runs, which are compiled once then
def task(num_steps):
    return ELBO(), optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)), num_steps


# %%
def errors(seed, apart, a, num_steps):
    """The share of wrong answers, and the errors of calibration before and after one temperature."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    train, held_out, test = (rows(rng, n, apart) for n in (ROWS, HELD_OUT, TEST))
    run = fit(key, model, guide, *task(num_steps), *train, a, progress_bar=False)
    of = substitute(network, jax.tree.map(lambda p: p[0], run.params))()
    logits, fitting = (np.asarray(of(x), float) for x, _ in (test, held_out))
    log_p = [jax.nn.log_softmax(fitting / t) for t in TEMPERATURES]
    t = TEMPERATURES[np.argmax([p[np.arange(HELD_OUT), held_out[1]].mean() for p in log_p])]
    right, found = logits.argmax(1) == test[1], []
    for scaled in (logits, logits / t):
        found.append(expected_calibration_error(np.asarray(jax.nn.softmax(scaled)).max(1), right))
    return 1 - right.mean(), *found


def claims(small=False):
    rows, seeds, num_steps = [], range(2 if small else 4), 800 if small else 2000
    for apart in (0.0,) if small else (6.0, 0.0):
        name = f"calibration error, classes {apart:g} apart, rows"
        for a in (0.0, 4.0) if small else (0.0, 1.0, 4.0):
            found = np.array([errors(seed, apart, a, num_steps) for seed in seeds])
            mean, error = found.mean(0), found.std(0, ddof=1) / len(seeds) ** 0.5
            told = "{:.3f} ± {:.3f}, after a temperature {:.3f} ± {:.3f}; wrong {:.3f}"
            told = told.format(mean[1], error[1], mean[2], error[2], mean[0])
            if a == 0.0:
                plain = mean[2]
                rows.append((f"{name} as they are", "0", told))
                continue
            missed = bool(apart == 0.0 and mean[1] > plain)
            known = f"below {plain:.3f}" if apart == 0.0 else "–"
            rows.append((f"{name} mixed, a = {a:g}", known, "not reproduced: " * missed + told))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
