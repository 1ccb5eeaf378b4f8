# %% [markdown]
# # Where to measure: points that repel each other
#
# A function on an interval is to be approximated by a polynomial of degree nine from n measurements. Least
# squares at uniform points are now and then far off, and at independent points that prefer the ends as well.
# A projection DPP draws points whose features span much volume. With ten features it draws ten points; more
# come by volume-rescaled sampling, or by repetition.
#
# The error is the L² distance to the function over that of the best polynomial: its root mean square over
# draws of the design. Candidates are the nodes of a quadrature, and their measure its weights.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpy.polynomial.legendre import leggauss, legvander

from ppl_ext.designs import ProjectionDPP, repeated, volume_rescaled

PAPER = (
    "Nouy, Michel (2024). Weighted least-squares approximation with determinantal point processes and "
    "generalized volume sampling. arXiv:2312.14057; Derezinski, Warmuth, Hsu (2018). Leveraged volume "
    "sampling for linear regression. NeurIPS."
)
M = 10
X, W = leggauss(500)
MU = W / W.sum()
FEATURES = legvander(X, M - 1) * np.sqrt(2 * np.arange(M) + 1)
F = np.exp(X)
BEST = FEATURES.T @ (MU * F)
LEAST = MU @ (F - FEATURES @ BEST) ** 2
DPP = ProjectionDPP(FEATURES, MU)


# %%
def designs(n):
    """By name: the design and whether its rows are weighted."""
    laws = (DPP.measure, DPP.inclusion)
    uniform, leverage = (dist.Categorical(logits=jnp.log(p)).expand([n]) for p in laws)
    return {
        "uniform": (uniform, False),
        "i.i.d.": (leverage, True),
        "volume": (volume_rescaled(DPP, n), True),
        "repeated": (repeated(DPP, n // M), True),
    }


def errors(key, n, num):
    """By design: the error of each of ``num`` draws, over the best, squared."""
    found = {}
    for name, (design, weighted) in designs(n).items():
        rows = np.asarray(jax.jit(lambda key, d=design: d.sample(key, (num,)))(key))
        scale = np.sqrt(np.asarray(DPP.weights(rows), float)) if weighted else np.ones(rows.shape)
        # least squares in double precision
        coefficients = (np.linalg.pinv(FEATURES[rows] * scale[..., None]) @ (F[rows] * scale)[..., None])[
            ..., 0
        ]
        found[name] = 1.0 + ((coefficients - BEST) ** 2).sum(1) / LEAST
    return found


# %% [markdown]
# That the draws have the law that they should: inclusions and pairs of candidates against the kernel, in
# standard errors.


# %%
def off_the_kernel(key, num):
    rows = np.asarray(jax.jit(lambda key: DPP.sample(key, (num,)))(key)) // 10  # in fifty cells
    kernel = np.asarray(DPP.basis, float) @ np.asarray(DPP.basis, float).T
    cells = np.kron(np.eye(50), np.ones(10))
    counts = np.stack([np.bincount(r, minlength=50) for r in rows]).astype(float)
    alone = cells @ np.diag(kernel)
    pairs = np.outer(alone, alone) - cells @ kernel**2 @ cells.T + np.diag(alone)
    products = counts[:, :, None] * counts[:, None]
    spread = products.std(0) / num**0.5 + 1.0 / num
    of_one = (counts.mean(0) - alone) / (counts.std(0) / num**0.5)
    return float(np.abs(of_one).max()), float(np.abs((products.mean(0) - pairs) / spread).max())


# %%
def claims(small=False):
    aims = {20: (82.6, 23.6, 1.76, 1.29), 40: (8.8, 1.37, 1.21, 1.09)}
    rows = []
    for n, known in aims.items():
        found = errors(jax.random.key(n), n, 300 if small else 3000)
        for (name, squares), figure in zip(found.items(), known, strict=True):
            error = np.sqrt(squares.mean())
            half = squares.std() / len(squares) ** 0.5 / error / 2
            told = f"{error:.3g} ± {half:.1g}"
            rows.append((f"error over the best, {n} points, {name}", f"{figure:g} (aim)", told))
    squares = errors(jax.random.key(1), M, 300 if small else 3000)["repeated"]
    told = f"{squares.mean():.2f} ± {squares.std() / len(squares) ** 0.5:.1g}"
    rows.append((f"its mean square, {M} points, once", f"{M + 1} (exact)", told))
    one, two = off_the_kernel(jax.random.key(0), 2000 if small else 5000)
    rows.append(
        ("inclusions and pairs off the kernel's, in standard errors", "below 4.5", f"{one:.1f}, {two:.1f}")
    )
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
