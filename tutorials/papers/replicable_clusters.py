# %% [markdown]
# # Clusters that come out the same twice
#
# A clustering is replicable if two people who draw samples of their own, and share the random bits of the
# method, come to exactly the same partition of space, with high probability. The fit of a mixture to rows is
# not: it moves with the sample. The fit to a coarse picture of the sample is, where the picture is the same:
# cells of a grid with a random corner, and their shares s of the rows, rounded to k = ⌊s / w + o⌋ steps of
# width w with a random o. Two shares are rounded alike unless o puts an edge between them, so
#
#     P(two pictures differ) ≤ Σ_cells E |s − s'| / w,  E |s − s'| ≈ 2 (p (1 − p) / (π n))^{1/2},
#
# which falls with n. The paper has a tree of cells, and any K-means that is good enough on their centres.
# Here it is one level, and a mixture of normals; the rows are ours.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import norm

from ppl_ext.infer import RegularizedNewton, fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Esfandiari, Karbasi, Mirrokni, Velegkas, Zhou (2023). Replicable clustering. NeurIPS. arXiv:2302.10359."
)
MEANS, CELL, SIDE = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]]), 3.0, 9
TASK = ELBO(), RegularizedNewton(), 25
POINTS = np.stack(np.meshgrid(np.linspace(-8.0, 8.0, 81), np.linspace(-4.0, 10.0, 71)), -1).reshape(-1, 2)


def parts(mean, log_scale, logits):
    scale = 0.5 + jnp.exp(log_scale)
    return dist.Categorical(logits=logits), dist.Normal(mean, scale[:, None]).to_event(1)


def mixture(x, shares):
    mean = numpyro.param("mean", jnp.asarray(0.7 * MEANS, float))
    rest = (numpyro.param(name, jnp.zeros(3)) for name in ("log_scale", "logits"))
    terms = shares * dist.MixtureSameFamily(*parts(mean, *rest)).log_prob(x)
    numpyro.factor("rows", 100.0 * terms.sum())


def no_guide(x, shares):
    """There is nothing to guide."""


def partition(centres, shares):  # of the points of a fine grid
    data = jnp.asarray(centres, float), jnp.asarray(shares, float)
    run = fit(jax.random.key(0), mixture, no_guide, *TASK, *data, progress_bar=False)
    who, where = parts(*(run.params[name][0] for name in ("mean", "log_scale", "logits")))
    return np.asarray((who.logits + where.log_prob(POINTS[:, None])).argmax(1))


# %% [markdown]
# ## The picture


# %%
def corner(bits):
    return CELL * np.random.default_rng(bits).uniform(size=2) - 12.0


def shares(x, bits):  # centres of cells, and how many of the rows they have
    at = np.clip((x - corner(bits)) // CELL, 0, SIDE - 1).astype(int) @ [SIDE, 1]
    cells = np.stack(np.divmod(np.arange(SIDE**2), SIDE), -1)
    return corner(bits) + CELL * (cells + 0.5), np.bincount(at, minlength=SIDE**2) / len(x)


def rounded(share, bits, width):
    o = np.random.default_rng([bits, 1]).uniform()
    k = np.floor(share / width + o)
    return width * (k + 0.5 - o) * (k > 0)


def bound(n, bits, width):  # on the probability of two pictures
    edges = corner(bits)[:, None] + CELL * np.arange(SIDE + 1)
    one, two = (np.diff(norm.cdf(e - MEANS[:, k, None]), axis=1) for k, e in enumerate(edges))
    p = np.einsum("ki,kj->ij", one, two) / 3
    return min(1.0, 2 * np.sqrt(p * (1 - p) / (np.pi * n)).sum() / width)


def sample(seed, n):
    rng = np.random.default_rng([seed, 2])
    return MEANS[rng.integers(3, size=n)] + rng.normal(size=(n, 2))


WIDTH, WAYS = 0.08, ("bits shared", "bits of one's own", "bits shared, not rounded")


def twice(seed, n, way):  # the partitions of two
    for who in range(2):
        bits = seed + 1000 * who * (way == WAYS[1])
        centres, share = shares(sample(2 * seed + who, n), bits)
        yield partition(centres, share if way == WAYS[2] else rounded(share, bits, WIDTH))


# %% [markdown]
# ## The same twice, and the weight of what is on the wrong side of the best partition


# %%
def claims(small=False):
    rows, seeds, best = [], range(4 if small else 15), ((POINTS[:, None] - MEANS) ** 2).sum(2).argmin(1)
    weight = np.exp(-((POINTS - MEANS[best]) ** 2).sum(1) / 2)
    for n in (400_000,) if small else (20_000, 400_000):
        least = len(seeds) * (1 - np.mean([bound(n, seed, WIDTH) for seed in seeds]))
        for way in WAYS:
            pairs = [tuple(twice(seed, n, way)) for seed in seeds]
            same = sum((one == two).all() for one, two in pairs)
            wrong = np.mean([weight[one != best].sum() for one, _ in pairs]) / weight.sum()
            known = f"at least {least:.1f} of {len(seeds)} expected" if way == WAYS[0] else "–"
            rows.append((f"{n} rows, {way}: same; wrong", known, f"{same} of {len(seeds)}; {wrong:.1e}"))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
