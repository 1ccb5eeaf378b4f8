# %% [markdown]
# # Wide networks that learn features
#
# A network whose layers grow without end is a Gaussian process with a kernel that no data move. If the
# outputs grow in number with the width, the limit is another: the Gram matrix of each layer moves from what
# the layer before makes of it, at a price of ν times a divergence. ν without end is the process again.
#
# The data here are a wave along one of eight directions, which an isotropic kernel cannot find out.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.priors import DeepKernelMachine, nngp_kernel

PAPER = (
    "Yang, Robeyns, Milsom, Anson, Schoots, Aitchison (2023). A theory of representation learning gives a "
    "deep generalisation of kernel methods. ICML."
)
NOISE, BIAS = 0.01, 0.3


# %%
def wave(rng, num_rows):
    x = rng.normal(size=(num_rows, 8))
    return x, np.sin(2.5 * x[:, 0]) + NOISE**0.5 * rng.normal(size=num_rows)


def process(train, test, scale, depth=2):
    """The NNGP's evidence, and its mean and variances at new rows."""

    def kernel(a, b):
        return nngp_kernel(a, b, depth=depth, weight_scale=scale, bias_scale=BIAS)

    (x, y), new = train, test[0]
    whole = kernel(x, x) + NOISE * jnp.eye(len(x))
    gain = jnp.linalg.solve(whole, kernel(x, new)).T
    variance = jnp.diagonal(kernel(new, new)) - (gain * kernel(new, x)).sum(1)
    return dist.MultivariateNormal(0.0, whole).log_prob(y), gain @ y, variance


def machine(train, test, scale, nu, num_steps):
    settings = {"weight_scale": scale, "bias_scale": BIAS}
    fitted = DeepKernelMachine(depth=2, nu=nu, **settings).fit(*train, noise=NOISE, num_steps=num_steps)
    law = fitted.predict(test[0])
    return fitted.objective[-1], law.loc, law.variance


def score(found, test):
    """Log density of a new number, on average."""
    _, mean, variance = found
    return float(dist.Normal(mean, jnp.sqrt(variance + NOISE)).log_prob(test[1]).mean())


def best(candidates):
    """The one with the largest evidence or objective."""
    return max(candidates, key=lambda found: float(found[0]))


# %% [markdown]
# ## One linear layer, whose optimum is that of a quadratic equation


# %%
def distance_from_closed_form(nu=3.0):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(5, 8)), rng.normal(size=(5, 1))
        linear = DeepKernelMachine(depth=1, nu=nu, activation="linear", bias_scale=0.0)
        fitted = linear.fit(x, y, noise=1e-8, num_steps=300)
        root = np.linalg.cholesky(x @ x.T / 8)
        seen = np.linalg.solve(root, y)
        values, vectors = np.linalg.eigh(seen @ seen.T)
        moved = (nu - 1 + np.sqrt((nu - 1) ** 2 + 4 * nu * np.maximum(values, 0.0))) / (2 * nu)
        known = root @ (vectors * moved) @ vectors.T @ root.T
        return float(abs(linear.covariances(fitted.factors, x, x)[0] - known).max())


# %%
def claims(small=False):
    rng = np.random.default_rng(0)
    num_rows, scales, num_steps = (60, (1.4,), 30) if small else (80, (1.4, 2.0), 60)
    train, test = wave(rng, num_rows), wave(rng, 300)
    with jax.enable_x64(True):
        limit = [f(train, test, 1.4, *more) for f, more in ((process, ()), (machine, (1e6, 5)))]
        away = max(float(abs(a - b).max()) for a, b in zip(limit[0][1:], limit[1][1:], strict=True))
    wide = best([process(train, test, scale) for scale in scales])
    rows = [
        ("NNGP at ν = 1e6: error of mean and variance", "0", f"{away:.0e}"),
        ("one linear layer: error of its Gram matrix", "0", f"{distance_from_closed_form():.0e}"),
    ]
    for nu in (10.0,) if small else (10.0, 3.0):
        found = best([machine(train, test, scale, nu, num_steps) for scale in scales])
        known = f"NNGP {score(wide, test):.3f}"
        rows.append((f"log density of a new number at ν = {nu:g}", known, f"{score(found, test):.3f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
