# %% [markdown]
# # When two clusters are as good as one Gaussian
#
# Rows come from two clusters in sixty dimensions, or from one Gaussian with the same mean and covariance;
# labels are coins. How well can a linear classifier fit them? The claim: the least training loss is the same
# for both, for any convex loss, and without a penalty it does not see the covariance either. For squares it
# is ½ (1 − p/n) at any size: labels know nothing of the rows, and p directions of n are fitted. For the
# logistic loss it is a law of large numbers.
#
# It needs labels that know nothing of the clusters. Where they are the sign of the direction in which the
# clusters lie, with one in ten wrong, the Gaussian is no stand-in (Pesce, Krzakala, Loureiro, Stephan 2023,
# arXiv:2302.08923).
#
# The classifier is a NumPyro model, its prior the penalty, and `fit` finds the mode. The rows are ours.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoDelta

from ppl_ext.infer import RegularizedNewton, fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Gerace, Krzakala, Loureiro, Stephan, Zdeborová (2024). Gaussian universality of perceptrons with random "
    "labels. Physical Review E 109, 034305. arXiv:2205.13303."
)
ROWS, COLUMNS, TINY, LARGE = 300, 60, 1e-3, 300.0
SPREAD = np.linspace(0.3, 2.0, COLUMNS)  # within a cluster
BETWEEN = np.full(COLUMNS, 4.0 / COLUMNS**0.5)  # from the middle to a cluster
LAWS = {"squares": lambda at: dist.Normal(at, 1.0), "logistic": lambda at: dist.Bernoulli(logits=at)}


def classifier(x, y, penalty, loss):
    w = numpyro.sample("w", dist.Normal(0.0, penalty**-0.5).expand([COLUMNS]).to_event(1))
    with numpyro.plate("rows", ROWS):
        numpyro.sample("y", LAWS[loss](x @ w), obs=y if loss == "squares" else y > 0)


GUIDE, TASK = AutoDelta(classifier), (ELBO(), RegularizedNewton(), 20)


def least_loss(x, y, penalty, loss):  # a row's, without the penalty
    data = jnp.asarray(x, float), jnp.asarray(y, float), jnp.asarray(penalty)
    run = fit(jax.random.key(0), classifier, GUIDE, *TASK, *data, loss, progress_bar=False)
    at = x @ np.asarray(run.params["w_auto_loc"][0], float)
    return np.mean((y - at) ** 2 / 2 if loss == "squares" else np.logaddexp(0.0, -y * at))


# %%
def cloud(rng, kind):
    noise, side = rng.normal(size=(ROWS, COLUMNS)), rng.choice([-1.0, 1.0], ROWS)
    if kind == "white":
        return noise
    along = side if kind == "clusters" else rng.normal(size=ROWS)
    return along[:, None] * BETWEEN + SPREAD * noise


def losses(kind, coins, penalty, loss, num):
    """Least losses of as many sets."""
    found, rng = [], np.random.default_rng(len(kind))
    for _ in range(num):
        x, wrong = cloud(rng, kind), rng.uniform(size=ROWS) < (0.5 if coins else 0.1)
        found.append(least_loss(x, np.sign(x @ BETWEEN) * np.where(wrong, -1.0, 1.0), penalty, loss))
    return np.array(found)


# %% [markdown]
# Coins are the signs of that direction with one in two wrong.


# %%
def claims(small=False):
    rows, num = [], 5 if small else 20
    for name, coins, penalty, loss, known in (
        ("coins", True, TINY, "squares", f"{(1 - COLUMNS / ROWS) / 2:.3f} in each"),
        ("coins", True, TINY, "logistic", "all the same"),
        ("coins, a penalty", True, LARGE, "logistic", "the first two the same"),
        ("signs", False, TINY, "squares", "the first below the second"),
    ):
        sets = [losses(kind, coins, penalty, loss, num) for kind in ("clusters", "Gaussian", "white")]
        told = [f"{found.mean():.4f} ± {found.std(ddof=1) / num**0.5:.4f}" for found in sets]
        rows.append((f"least loss, {loss}, {name}: clusters, Gaussian, white", known, ", ".join(told)))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
