# %% [markdown]
# # A Schrödinger bridge as a mixture of normals
#
# Two laws are known by samples. The bridge is the diffusion that takes one to the other and is otherwise as
# near to Brownian motion as it can be. With a mixture for its potential the loss needs no simulation: the
# program below has two factors and no latent site, and an optimiser does the rest. Between two normal laws
# the answer is known.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import sqrtm
from sklearn.datasets import make_moons

from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.transport import light_sb

PAPER = "Korotin, Gushchin, Burnaev (2024). Light Schrödinger bridge. ICLR; arXiv:2310.01174."


def no_guide(starts, ends):
    """There is nothing to guide."""


def bridge_between(key, starts, ends, num_steps, **settings):
    model = light_sb(batch_size=512, **settings)
    optim = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
    run = fit(key, model, no_guide, ELBO(), optim, num_steps, starts, ends, progress_bar=False)
    return model.bridge(run.params)


# %%
def exact(a, b, epsilon):
    """The slope of E[y | x] and the covariance of y given x, from N(0, a) to N(0, b)."""
    root = np.real(sqrtm(a))
    middle = np.real(sqrtm(4 * root @ b @ root + epsilon**2 * np.eye(len(a))))
    across = 0.5 * root @ middle @ np.linalg.inv(root) - 0.5 * epsilon * np.eye(len(a))
    slope = across.T @ np.linalg.inv(a)
    return slope, b - slope @ across


def between_normals(dim, epsilon, num, num_steps):
    """Relative squared errors of the mean and relative errors of the covariance of y given x."""
    rng = np.random.default_rng(dim)
    factors = [np.linalg.qr(rng.normal(size=(dim, dim)))[0] * rng.uniform(0.7, 1.4, dim) for _ in range(2)]
    a, b = (factor @ factor.T for factor in factors)
    starts, ends = (rng.normal(size=(num, dim)) @ factor.T for factor in factors)
    slope, left = exact(a, b, epsilon)
    found = bridge_between(jax.random.key(0), starts, ends, num_steps, epsilon=epsilon, num_components=1)
    mean = np.asarray(found.given(jnp.asarray(starts)).mean)
    covariance = epsilon * np.asarray(found.roots[0] @ found.roots[0].T)
    off = ((mean - starts @ slope.T) ** 2).sum() / ((starts @ slope.T) ** 2).sum()
    return off, np.linalg.norm(covariance - left) / np.linalg.norm(left)


# %% [markdown]
# From one normal law to two moons: the ends of paths should be as far from the moons' sample as another
# sample is. The distance is the energy distance.


# %%
def energy(x, y):
    def apart(a, b):
        return np.linalg.norm(a[:, None] - b, axis=-1).mean()

    return 2 * apart(x, y) - apart(x, x) - apart(y, y)


def to_moons(num, num_steps):
    rng = np.random.default_rng(0)
    moons = [make_moons(num, noise=0.1, random_state=seed)[0] for seed in range(3)]
    starts = rng.normal(size=(num, 2)) + [0.5, 0.25]
    settings = {"epsilon": 0.1, "num_components": 20}
    found = bridge_between(jax.random.key(1), starts, moons[0], num_steps, **settings)
    times = jnp.array([0.5, 1.0])
    ends = found.bridge(jax.random.key(2), rng.normal(size=(1000, 2)) + [0.5, 0.25], times)[:, -1]
    return [energy(np.asarray(x[:1000]), moons[1][:1000]) for x in (ends, moons[2], starts)]


# %%
def claims(small=False):
    num, num_steps = (2000, 600) if small else (50_000, 4000)
    rows = []
    for dim, epsilon, *known in ((2, 0.1, 0.0002, 0.005), (2, 1.0, 0.0001, 0.007), (8, 1.0, 0.0045, 0.049)):
        off, of_covariance = between_normals(dim, epsilon, num, num_steps)
        case = f"between normals, d = {dim}, ε = {epsilon}"
        rows.append((f"{case}: squared error of E[y|x], relative", f"{known[0]} (aim)", f"{off:.5f}"))
        rows.append((f"{case}: error of its covariance", f"{known[1]} (aim)", f"{of_covariance:.4f}"))
    ours, other, before = to_moons(2000, 1000 if small else 6000)
    told = f"{ours:.4f}; of the starts {before:.3f}"
    rows.append(("to two moons: energy distance of ends", f"{other:.4f} (another sample)", told))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
