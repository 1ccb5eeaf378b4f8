# %% [markdown]
# # A Bayesian network in a twentieth of its weights
#
# A mean-field guide of a network has two numbers for every weight. Here it has them for five in a hundred,
# and all other weights are exactly zero; which those are it finds on its way, by exchanging weights that are
# lost in their own noise for others along which the joint density is steep. The model is the same NumPyro
# program for both guides. Both are at first too sure of few weights, and calibration comes late.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits

from ppl_ext.infer import SparseSubspace, fit
from ppl_ext.meta import expected_calibration_error
from ppl_ext.objectives import ELBO

PAPER = (
    "Li, Miao, Qiu, Zhang (2024). Training Bayesian neural networks with sparse subspace variational "
    "inference. ICLR; arXiv:2402.11025."
)
HIDDEN, BATCH = 100, 128
ORDER = np.random.default_rng(0).permutation(1797)
X, Y = load_digits().data[ORDER] / 16.0, load_digits().target[ORDER]
TRAIN, TEST = slice(0, 1200), slice(1200, None)


def network(x, y):
    w1 = numpyro.sample("w1", dist.Normal(0.0, 0.3).expand([64, HIDDEN]).to_event(2))
    w2 = numpyro.sample("w2", dist.Normal(0.0, 0.3).expand([HIDDEN, 10]).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(0.0, 0.3).expand([HIDDEN]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 0.3).expand([10]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=BATCH):
        x, y = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


WEIGHTS = 64 * HIDDEN + HIDDEN * 10


# %%
def guides(density):
    return {
        "dense": AutoNormal(network, init_scale=0.02),
        "sparse": SparseSubspace(network, ["w1", "w2"], int(density * WEIGHTS), every=50, init_scale=0.02),
    }


@partial(jax.jit, static_argnums=0)
def probabilities(guide, params, key):
    def of(key):
        draw = Predictive(guide, params=params, num_samples=1)(key, X[TRAIN], Y[TRAIN])
        draw = {name: draw[name][0] for name in ("w1", "b1", "w2", "b2")}
        return jax.nn.softmax(jax.nn.relu(X[TEST] @ draw["w1"] + draw["b1"]) @ draw["w2"] + draw["b2"])

    return jax.lax.map(of, jax.random.split(key, 50)).mean(0)


def measured(guide, seed, num_steps):
    """Accuracy, calibration error, and the numbers that the guide holds for weights."""
    optim = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
    data = jnp.asarray(X[TRAIN]), jnp.asarray(Y[TRAIN])
    run = fit(jax.random.key(seed), network, guide, ELBO(), optim, num_steps, *data, progress_bar=False)
    params = jax.tree.map(lambda p: p[0], run.params)
    p = np.asarray(probabilities(guide, params, jax.random.key(seed + 100)))
    of_weights = ("w", "subspace_loc", "subspace_scale")
    held = sum(np.size(value) for name, value in params.items() if name.startswith(of_weights))
    right = p.argmax(1) == Y[TEST]
    return right.mean(), expected_calibration_error(p.max(1), right), held


# %%
def claims(small=False):
    num_steps, seeds, rows, found = (1500, 1, [], {}) if small else (4000, 3, [], {})
    for name, guide in guides(0.05).items():
        found[name] = np.array([measured(guide, seed, num_steps) for seed in range(seeds)])
    dense, sparse = found["dense"].mean(0), found["sparse"].mean(0)
    error = found["sparse"].std(0) / seeds**0.5
    for i, what in enumerate(("accuracy", "calibration error")):
        told = f"{sparse[i]:.4f} ± {error[i]:.4f}"
        rows.append((f"{what} at a density of .05", f"dense {dense[i]:.4f}", told))
    rows.append(("numbers held for weights", f"dense {dense[2]:.0f}", f"{sparse[2]:.0f}"))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
