# %% [markdown]
# # Sparse arrays whose zeros fill slices
#
# 125 noisy equations, 512 unknowns, eight of which are not zero. Automatic relevance determination gives each
# unknown a variance of its own and maximises the evidence over all 512. If the eight are the crossings of
# two rows, two columns and two layers, the variances are a product of three factors of eight numbers:
# `KroneckerARD`. The matrix of the equations is a product too, so that a step of `type2_em` never makes a
# matrix of 512 by 512.

# %%
import jax.numpy as jnp
import numpy as np

from ppl_ext.priors import KroneckerARD, type2_em

PAPER = (
    "He, Joseph (2022). Structure-aware sparse Bayesian learning-based channel estimation for intelligent "
    "reflecting surface-aided MIMO. arXiv:2210.11373."
)


# %%
def problem(rng, decibels):
    """Three matrices, the array, what is seen of it, and the variance of the noise."""
    matrices = [rng.normal(size=(5, 8)) for _ in range(3)]
    x = np.zeros((8, 8, 8))
    x[np.ix_(*(rng.choice(8, 2, replace=False) for _ in range(3)))] = rng.normal(size=(2, 2, 2))
    clean = np.einsum("ai,bj,ck,ijk->abc", *matrices, x)
    noise = np.mean(clean**2) / 10 ** (decibels / 10)
    return matrices, x, clean + noise**0.5 * rng.normal(size=clean.shape), noise


def error(found, x):
    """Normalised squared error."""
    return float(((np.asarray(found).reshape(x.shape) - x) ** 2).sum() / (x**2).sum())


def oracle(matrices, x, y):
    """Least squares by who knows where the eight are."""
    whole = np.kron(np.kron(matrices[0], matrices[1]), matrices[2])
    found = np.zeros(x.size)
    there = x.ravel() != 0
    found[there] = np.linalg.lstsq(whole[:, there], y.ravel(), rcond=None)[0]
    return found, whole


# %%
def errors(decibels, num_runs, num_steps):
    rng, rows = np.random.default_rng(0), []
    for _ in range(num_runs):
        matrices, x, y, noise = problem(rng, decibels)
        best, whole = oracle(matrices, x, y)
        plain = type2_em(KroneckerARD((512,)), y.ravel(), [whole], noise, num_steps=num_steps)
        settings = KroneckerARD(x.shape), y, matrices, noise
        products = type2_em(*settings)
        one_rank = type2_em(*settings, m_step="rank_one")
        unhurried = type2_em(*settings, accelerated=False)
        means = [jnp.asarray(f.mean) for f in (plain, products, one_rank, unhurried)]
        rows.append([error(m, x) for m in (best, *means)])
    return np.mean(rows, 0)


# %%
def claims(small=False):
    rows = []
    for decibels in (15, 25):
        best, plain, *ours = errors(decibels, *((3, 50) if small else (8, 250)))
        kinds = ("250 steps", "by singular vectors", "not accelerated")
        told = ", ".join(f"{x:.4f} ({kind})" for x, kind in zip(ours, kinds, strict=True))
        rows.append((f"squared error at {decibels} dB", f"oracle {best:.4f}, plain ARD {plain:.3f}", told))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
