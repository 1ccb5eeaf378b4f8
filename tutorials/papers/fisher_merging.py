# %% [markdown]
# # Merging fits by their precisions
#
# Two networks that were trained on different data can be made one by averaging their weights. The plain
# average treats all weights alike. If each fit is a Gaussian posterior, their product weighs each weight by
# its precision, which is the Fisher information in a Laplace approximation. `merge` does it, with the prior
# counted once.
#
# The first claim is exact: halves of a linear-Gaussian data set. The second is about digits that are split by
# their labels, so that no half has seen all of them.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from sklearn.datasets import load_digits

from ppl_ext.infer import fit, merge
from ppl_ext.objectives import ELBO

PAPER = "Matena, Raffel (2022). Merging models with Fisher-weighted averaging. NeurIPS 35."


# %%
def line(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def distance_of_halves():
    """The largest error of the merged mean and covariance."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(20, 3))
        y = x @ [1.0, -1.0, 2.0] + 0.5 * rng.normal(size=20)
        guide, settings = AutoLaplaceApproximation(line), (ELBO(), optax.sgd(0.01), 2000)
        parts = [
            fit(jax.random.key(0), line, guide, *settings, x[rows], y[rows], progress_bar=False)
            for rows in (slice(0, 8), slice(8, 20))
        ]
        merged = merge(parts, None, x, y)
        covariance = np.linalg.inv(np.eye(3) + x.T @ x / 0.25)
        root = merged.params["auto_scale_tril"][0]
        away = merged.params["auto_loc"][0] - covariance @ x.T @ y / 0.25
        return max(np.abs(away).max(), np.abs(root @ root.T - covariance).max())


# %% [markdown]
# ## Digits: the labels below 5 here, the others there, and a tenth of each on the wrong side


# %%
def softmax(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([65, 10]).to_event(2))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Categorical(logits=x @ w[:-1] + w[-1]), obs=y)


def accuracies(guide_kind, num_rows, num_steps):
    """On rows that no fit has seen: of each half, the plain average, the merged fit, and that of all data."""
    data = load_digits()
    order = np.random.default_rng(1).permutation(len(data.target))
    x, y = jnp.asarray(data.data[order] / 16.0), jnp.asarray(data.target[order])
    test, x, y = (x[-500:], y[-500:]), x[:num_rows], y[:num_rows]
    here = (np.asarray(y) < 5) ^ (np.random.default_rng(2).uniform(size=num_rows) < 0.1)
    optim = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))

    def fitted(*data):
        guide = guide_kind(softmax)
        return fit(jax.random.key(0), softmax, guide, ELBO(4), optim, num_steps, *data, progress_bar=False)

    def weights(run):
        return run.params["auto_loc" if "auto_loc" in run.params else "w_auto_loc"][0].reshape(65, 10)

    def accuracy(w):
        return float((jnp.argmax(test[0] @ w[:-1] + w[-1], -1) == test[1]).mean())

    halves = [fitted(x[rows], y[rows]) for rows in (here, ~here)]
    merged = merge(halves, None, x, y)
    plain = (weights(halves[0]) + weights(halves[1])) / 2
    return [accuracy(w) for w in (*map(weights, halves), plain, weights(merged), weights(fitted(x, y)))]


# %%
def claims(small=False):
    sizes = (300, 100) if small else (1200, 1000)
    rows = [
        ("merged halves of a linear model: error of mean and covariance", "0", f"{distance_of_halves():.0e}")
    ]
    for kind in (AutoLaplaceApproximation, AutoNormal)[: 1 if small else 2]:
        *halves, plain, merged, together = accuracies(kind, *sizes)
        rows.append(
            (
                f"accuracy on digits, merged {kind.__name__}",
                f"plain average {plain:.3f}, all data {together:.3f}",
                f"{merged:.3f}; halves {halves[0]:.3f}, {halves[1]:.3f}",
            )
        )
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
