# %% [markdown]
# # How many clusters, where some rows have labels: splits and merges
#
# Some classes are known, by a few labelled rows each; most rows have no label, and are of known classes or
# of new ones. How many classes there are is asked of the marginal likelihood: a cluster's mean and covariance
# have a Normal-Inverse-Wishart law, and with them integrated out a partition into clusters c has the weight
#
#     Π_c α Γ(n_c) m(x_c),    m(x) = π^{−nd/2} (λ_0/λ_n)^{d/2} g(ν_n, V_n) / g(ν_0, V_0),
#
# with g(ν, V) = Γ_d(ν/2) |V|^{−ν/2}, and V_n, λ_n, ν_n those of the posterior law.
#
# Rows of one label move together, and a cluster with two labels has the weight zero. A step picks two rows,
# or groups of one label. If they share a cluster it is split: each of the two founds one, and the others join
# in random order, as likely as they are there. If they do not, their clusters are merged. Either is accepted
# by Metropolis and Hastings; then the first of the two is drawn anew by itself. It is a kernel of NumPyro's
# `MCMC`.
#
# The paper splits and merges the prototypes of images while it learns their features; its criterion is in
# Chang and Fisher (2013) and in DeepDPM (Ronen, Finder, Freifeld 2022), the moves in order are Dahl's (2005)
# after Jain and Neal (2004). The rows here are in the plane, and drawn by us.

# %%
from collections import namedtuple
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, multigammaln
from numpyro.infer.mcmc import MCMC, MCMCKernel

from ppl_ext.meta import NIW

PAPER = (
    "Zhao, Wen, Han (2023). Learning semi-supervised Gaussian mixture models for generalized category "
    "discovery. ICCV. arXiv:2305.06144."
)
PRIOR, ALPHA = NIW(jnp.zeros(2), 0.02, 7.0 * jnp.eye(2), 10.0), 0.1
MEANS = np.array([[-6.0, 0.0], [-4.0, 0.0], [4.0, 5.0], [4.0, -5.0], [9.0, 0.0]])  # the first two are close
NAME = "five clusters: the likeliest number, by set, and the probability of five"
SIX = np.array([[0.0, 0.0], [1.5, 0.5], [-1.0, 1.0], [4.0, 0.0], [5.0, 1.0], [4.5, -1.5]])


# %% [markdown]
# Groups, (group, 9), are sums over their rows: of ones, values, squares and labels. A row without a label is
# a group of its own.


# %%
def grouped(x, labels):
    group = np.unique(np.where(labels < 0, np.arange(len(x)) + 2, labels), return_inverse=True)[1]
    squares = np.einsum("ni,nj->nij", x, x).reshape(-1, 4)
    parts = np.column_stack([np.ones(len(x)), x, squares, labels == 0, labels == 1])
    return jnp.asarray(np.eye(group.max() + 1)[group].T @ parts, float)


def weight_of(sums):  # the log of α Γ(n) m(x), of nothing for two labels; 0 for no rows
    n, mean = sums[0], sums[1:3] / jnp.maximum(sums[0], 1.0)
    spread = sums[3:7].reshape(2, 2) / jnp.maximum(n, 1.0) - jnp.outer(mean, mean)
    laws = PRIOR.posterior(mean[None], spread[None], num_episodes=n), PRIOR
    after, before = (multigammaln(p.df / 2, 2) - p.df * p.log_det_scale() / 2 for p in laws)
    log_m = after - before - n * jnp.log(jnp.pi) - jnp.log1p(n / PRIOR.mean_precision)
    return jnp.where(n > 0, jnp.log(ALPHA * (sums[7:] == 0).any()) + gammaln(n) + log_m, 0.0)


weight = jnp.vectorize(weight_of, signature="(f)->()")
log_weight = jax.jit(jax.vmap(lambda sums, z: weight(jnp.zeros_like(sums).at[z].add(sums)).sum(), (None, 0)))


# %% [markdown]
# One step. `sides` are the sums of the two clusters that a split makes, or that a merge would have to come
# back to; `moves` are the groups that are with the second of the pair.


# %%
State = namedtuple("State", "z rng_key")


class SplitMerge(MCMCKernel):
    sample_field = "z"

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        return State(init_params.astype(int), rng_key)

    def sample(self, state, model_args, model_kwargs):
        (sums,), z, (rng_key, *keys) = model_args, state.z, jax.random.split(state.rng_key, 6)
        pair = jax.random.choice(keys[0], len(z), (2,), replace=False)
        together, free = z[pair[0]] == z[pair[1]], (z[:, None] == z[pair]).any(1).at[pair].set(False)
        order = jnp.argsort(jnp.where(free, jax.random.uniform(keys[1], z.shape), 2.0))

        def join(k, carry):
            (sides, moves, log_q), group = carry, sums[order[k]]
            logits, key = weight(sides + group) - weight(sides), jax.random.fold_in(keys[2], k)
            side = jnp.where(together, jax.random.categorical(key, logits), z[order[k]] == z[pair[1]])
            log_q += jax.nn.log_softmax(logits)[side]
            return sides.at[side].add(group), moves.at[order[k]].set(side == 1), log_q

        start = sums[pair], jnp.arange(len(z)) == pair[1], 0.0
        sides, moves, log_q = jax.lax.fori_loop(0, free.sum(), join, start)
        gain = weight(sides).sum() - weight(sides.sum(0)) - log_q
        unused = jnp.argmin(jnp.zeros_like(z).at[z].add(1))
        other = jnp.where(moves, jnp.where(together, unused, z[pair[0]]), z)
        z = jnp.where(-jax.random.exponential(keys[3]) < jnp.where(together, gain, -gain), other, z)
        # the first anew: to a cluster that there is, or to an empty one
        clusters, one = jnp.zeros_like(sums).at[z].add(sums.at[pair[0]].set(0.0)), sums[pair[0]]
        open_ = (clusters[:, 0] > 0).at[jnp.argmin(clusters[:, 0])].set(True)
        logits = jnp.where(open_, weight(clusters + one) - weight(clusters), -jnp.inf)
        return State(z.at[pair[0]].set(jax.random.categorical(keys[4], logits)), rng_key)


# %% [markdown]
# A chain begins with all groups apart, or with all in one cluster that may be.


# %%
@jax.jit
@jax.vmap
def sizes(seed, sums):  # how often there were 0 to 9 clusters along a chain
    mcmc = MCMC(SplitMerge(), num_warmup=500, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(seed), sums, init_params=jnp.where(seed % 2, jnp.arange(len(sums)), sums[:, 8]))
    there = jax.vmap(lambda z: jnp.zeros(len(sums)).at[z].add(1) > 0)(mcmc.get_samples())
    return (there.sum(1)[:, None] == jnp.arange(10)).mean(0)


# %% [markdown]
# Five clusters, of which two have labels: six rows each, or none. And six rows, whose 203 partitions can be
# counted out.


# %%
def five(seed, labelled):
    truth, noise = np.arange(100) % 5, np.random.default_rng(seed).normal(size=(100, 2))
    return grouped(MEANS[truth] + noise, np.where(labelled & (np.arange(100) < 30) & (truth < 2), truth, -1))


def claims(small=False):
    sums, num = grouped(SIX, np.array([0, 1, -1, -1, -1, -1])), 4 if small else 12
    z = np.unique([[z.index(k) for k in z] for z in product(range(6), repeat=6)], axis=0)
    exact = jax.nn.softmax(log_weight(sums, z)) @ ((z == np.arange(6)).sum(1)[:, None] == np.arange(2, 5))
    found = sizes(jnp.arange(num), jnp.stack([sums] * num))[:, 2:5]
    exact, *told = (", ".join(f"{p:.3f}" for p in q) for q in (exact, found.mean(0), found.std(0) / num**0.5))
    rows = [("probabilities of 2, 3, 4 clusters, six rows, two labelled apart", exact, " ± ".join(told))]
    for labelled, known in ((True, "5 (two labelled)"), (False, "– (no labels)"))[: 1 if small else 2]:
        laws = sizes(jnp.arange(num // 2), jnp.stack([five(k, labelled) for k in range(num // 2)]))
        rows.append((NAME, known, f"{laws.argmax(1).tolist()}, {laws[:, 5].mean():.2f}"))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
