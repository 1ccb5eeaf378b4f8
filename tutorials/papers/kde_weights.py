# %% [markdown]
# # Kernel density estimates in many dimensions: how many points count
#
# A kernel estimate at a point x is an average of weights, one for each of n data points. In many dimensions
# their logs are far apart, as energies of a random-energy model are: with a wide kernel many points count,
# and the central limit theorem holds; below a bandwidth h_CLT the estimate has heavy tails; below h_G a few
# points are all of it. For Gaussian data the thresholds are roots of one equation.
#
# `weight_regime` is to tell the regime from the weights alone. It would tell the same of importance weights.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.diagnostics import weight_regime

PAPER = "Biroli, Mézard (2024). Kernel Density Estimators in Large Dimensions. arXiv:2408.05807."

DIM = 50


def nats(h, power):
    """How far the points that decide the mean of weight**power are, a dimension, at a typical x."""
    return 0.5 * np.log1p(power / h**2) - 0.5 * power * h**2 / (h**2 + power) ** 2


def threshold(power, num, dim=DIM):
    """The bandwidth at which n points just reach them."""
    low, high = 0.01, 100.0
    for _ in range(100):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if dim * nats(middle, power) > np.log(num) else (low, middle)
    return low


# %%
def log_weights(num, h, num_points, dim=DIM):
    """Of n Gaussian data points each, at points of their own law whose length is typical."""

    def at(key):
        data, point = jax.random.split(key)
        x = jax.random.normal(point, (dim,))
        x = x * jnp.sqrt(dim / (x @ x))
        y = jax.random.normal(data, (num, dim))
        return -0.5 * ((x - y) ** 2).sum(-1) / h**2

    return np.asarray(jax.lax.map(at, jax.random.split(jax.random.key(0), num_points)), float)


def looked_at(num, h, num_points, dim=DIM):
    """The mean of the largest weight and its standard error, and the shares of the regimes found."""
    found = [weight_regime(x) for x in log_weights(num, h, num_points, dim)]
    largest = np.array([f.largest for f in found])
    shares = {r: np.mean([f.regime == r for f in found]) for r in ("clt", "heavy_tail", "condensed")}
    return largest.mean(), largest.std() / num_points**0.5, shares


# %%
def claims(small=False):
    num, num_points = (2000, 60) if small else (30_000, 200)
    few, normal = threshold(1, num), threshold(2, num)
    rows = []
    for name, h, known in (
        ("0.75 h_G", 0.75 * few, "condensed"),
        ("h_G", few, "between condensed and heavy_tail"),
        ("between h_G and h_CLT", np.sqrt(few * normal), "heavy_tail"),
        ("h_CLT", normal, "between heavy_tail and clt"),
        ("1.5 h_CLT", 1.5 * normal, "clt"),
    ):
        largest, error, shares = looked_at(num, h, num_points)
        told = ", ".join(f"{r} {share:.2f}" for r, share in shares.items() if share)
        rows.append(
            (f"bandwidth {name} = {h:.3f}", known, f"{told}; largest weight {largest:.3f} ± {error:.3f}")
        )
    # How large it is at a threshold depends on the size: the more points, the nearer to the limit.
    for size, dim in ((1000, 50), (3000, 50), (3000, 20))[: 1 if small else 3]:
        few, normal = threshold(1, size, dim), threshold(2, size, dim)
        told = [looked_at(size, h, num_points, dim)[:2] for h in (few, normal, 1.5 * normal)]
        rows.append(
            (
                f"largest weight at h_G, h_CLT, 1.5 h_CLT: {size} points of {dim} numbers",
                "0.37 to 0.54, 0.10 to 0.18, at most 0.024",
                ", ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in told),
            )
        )
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
