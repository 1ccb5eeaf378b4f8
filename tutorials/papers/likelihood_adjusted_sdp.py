# %% [markdown]
# # Where a mixture should start: clusters by a semidefinite program
#
# The likelihood of a normal mixture has many local maxima, and the one that is reached depends on the start.
# Given the clusters' covariances S_k, the best partition maximises
#
#     Σ_k ⟨−¼ D_k − ½ log|S_k| 11', Z_k⟩,  Z_k = 1_k 1_k' / n_k,
#
# where D_k has the squared distances between rows in the metric of S_k, and 1_k marks the rows of cluster k.
# Means do not occur. Relaxed, Z_k is positive semidefinite, has no negative entry and trace one, and the sum
# of all has rows that sum to one: a problem without local maxima. Covariances come from the partition, and
# the partition from the covariances, in turn; the first covariance is one for all, which is K-means relaxed.
#
# The model sums the labels out. It is fitted from the SDP's partition, from cells of random rows, and from
# the true partition. The turns need not end at the best partition; that of the highest likelihood is taken.

# %%
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import TraceEnum_ELBO, autoguide
from sklearn.cluster import KMeans

from ppl_ext.infer import fit

PAPER = (
    "Zhuang, Chen, Yang (2023). Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data. "
    "ICML. arXiv:2209.15097."
)
K, N, SITES = 3, 60, ("weights_auto_loc", "mean_auto_loc", "root_auto_loc")
MEANS = np.array([[0, 0], [0, 4], [5, 2]])
SCALES = {"round": [[1]] * 3, "of three sizes": [[0.3], [1], [2]], "long": [[2.5, 0.4]] * 2 + [[0.4, 2.5]]}


def mixture(x):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(K, 2.0)))
    with numpyro.plate("clusters", K):
        mean = numpyro.sample("mean", dist.Normal(jnp.zeros(2), 10.0).to_event(1))
        root = numpyro.sample("root", dist.WishartCholesky(4.0, scale_tril=3.0 * jnp.eye(2)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.MultivariateNormal(mean[z], precision_matrix=(root @ root.mT)[z]), obs=x)


GUIDE = autoguide.AutoDelta(numpyro.handlers.block(mixture, hide=["z"]))
TASK = (mixture, GUIDE, TraceEnum_ELBO(), numpyro.optim.Adam(0.05), 500)


# %% [markdown]
# The SDP by ADMM: in turn onto the sums and traces, which is linear, onto the cone, by eigenvalues, and onto
# what is not negative.


# %%
def onto_sums(w):  # the nearest whose sum has rows that sum to one, and whose traces are equal, K in all
    (blocks, n, _), excess, off = w.shape, np.trace(w, axis1=1, axis2=2) - K / len(w), w.sum((0, 2)) - 1
    total = (off.sum() - excess.sum()) / (blocks * (n - 1))
    rows = (2 / blocks * (off - (excess.sum() - blocks * total) / n) - total) / n
    return w - (rows[:, None] + rows) / 2 - ((excess - total) / n)[:, None, None] * np.eye(n)


def sdp(x, root, steps=300):  # Z, (cluster, row, row), for S_k⁻¹ = root root'
    a = np.linalg.slogdet(root)[1][:, None, None] - (((x[:, None] - x) @ root[:, None]) ** 2).sum(3) / 4
    z = p = q = u = v = np.zeros_like(a)
    for _ in range(steps):
        z = onto_sums((p - u + q - v) / 2 + a / np.abs(a - a.mean()).mean() / 200)
        values, vectors = np.linalg.eigh(z + u)
        p, q = (vectors * np.maximum(values, 0)[:, None]) @ vectors.swapaxes(1, 2), np.maximum(z + v, 0)
        u, v = u + z - p, v + z - q
    return z


def moments(x, y):  # shares, means and roots of a partition, the last with the prior's part
    z = np.eye(K)[y]
    mean = z.T @ x / np.maximum(z.sum(0), 1)[:, None]
    square = np.einsum("nk,nki,nkj->kij", z, x[:, None] - mean, x[:, None] - mean) + np.eye(2) / 9
    return z.mean(0), mean, np.linalg.cholesky((z.sum(0)[:, None, None] + 1) * np.linalg.inv(square))


def partitions(x, turns=8):  # the first by K-means relaxed
    found = [KMeans(K, n_init=10, random_state=0).fit_predict(sdp(x, np.eye(2)[None])[0])]
    while len(found) <= turns and not (len(found) > 1 and (found[-1] == found[-2]).all()):
        found.append(sdp(x, moments(x, found[-1])[2]).sum(2).argmax(0))
    return found[0], max(found, key=lambda y: likelihood(x, y))


def likelihood(x, y):  # of a partition, its labels known
    weights, mean, root = moments(x, y)
    off = np.einsum("ni,nij->nj", x - mean[y], root[y])
    return (np.log(weights) + np.linalg.slogdet(root)[1])[y].sum() - (off**2).sum() / 2


# %% [markdown]
# The fits start from the SDP's partition, the true one, and five times from the rows that are nearest to each
# of three random ones.


# %%
def fitted(x, y):  # from a partition: the loss at the end, and the likeliest labels
    start = dict(zip(SITES, map(jnp.asarray, moments(x, y)), strict=True))
    result = fit(jax.random.key(0), *TASK, jnp.asarray(x), init_params=start, progress_bar=False)
    weights, mean, root = (result.params[name][0] for name in start)
    law = dist.MultivariateNormal(mean, precision_matrix=root @ root.mT)
    return result.losses[0, -1], np.argmax(jnp.log(weights) + law.log_prob(x[:, None]), 1)


def compared(case, seed):  # losses by start; errors of the first and last partition, and by start
    rng, truth = np.random.default_rng(seed), np.arange(N) % K
    x = MEANS[truth] + np.array(SCALES[case])[truth] * rng.normal(size=(N, 2))
    blind = [((x[:, None] - x[rng.choice(N, K, False)]) ** 2).sum(2).argmin(1) for _ in range(5)]
    found, names = partitions(x), np.array(list(permutations(range(K))))
    losses, labels = zip(*(fitted(x, y) for y in (found[-1], truth, *blind)), strict=True)
    return losses, [(names[:, y] != truth).mean(1).min() for y in (found[0], found[-1], *labels)]


# %% [markdown]
# A row has the errors of K-means relaxed, of the SDP, and of the fits from it, from the truth, and from
# random rows with its standard error; and the share of fits as high as from the truth, to half a nat.


# %%
def claims(small=False):
    rows, name = [], "errors: K-means relaxed, SDP, fits from SDP, truth, random; as high as truth"
    for case, aim in zip(SCALES, (0.033, 0.017, 0.333), strict=True):
        found = (compared(case, k) for k in range(2 if small else 6))
        losses, errors = map(np.array, zip(*found, strict=True))
        random, high = errors[:, 4:].mean(1), (losses < losses[:, 1:2] + 0.5).mean(0)
        told = f"{', '.join(f'{e:.3f}' for e in (*errors[:, :4].mean(0), random.mean()))} "
        told += f"± {random.std() / len(random) ** 0.5:.3f}; {high[0]:.2f}, {high[2:].mean():.2f}"
        rows.append((f"{case}, {name}", f"SDP {aim}, EM 0.26 (aim, other data)", told))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
