# %% [markdown]
# # Why units of an encoder fall silent
#
# In a linear conditional VAE a unit is active if, and only if, an eigenvalue of the covariance of
# $y - \mathbb{E}[y \mid x]$ exceeds $\beta \eta^2$: the weight of the divergence times the decoder's noise.
# `diagnostics.collapse` counts active units, predicts their number, and names the cause.
#
# With two levels $y \leftarrow z_1 \leftarrow z_2$ and a learned variance of the first encoder, the second
# level can be removed at no cost; with a larger weight on the first level the loss has no lower bound.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext import log_density, objective, simulate
from ppl_ext.diagnostics import collapse
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Dang, Tran, Nguyen, Ho (2024). Beyond vanilla variational autoencoders: detecting posterior collapse in "
    "conditional and hierarchical variational autoencoders. ICLR."
)
LEFT = np.array([4.0, 2.0, 1.0, 0.5, 0.25])
ROWS = 128

# %% [markdown]
# ## A linear conditional VAE, on data whose residual covariance is exact


# %%
def data():
    raw = np.random.default_rng(0).normal(size=(ROWS, 7))
    raw = np.linalg.qr(raw - raw.mean(0))[0] * ROWS**0.5
    return jnp.array(raw[:, 2:] * LEFT**0.5 + raw[:, :2] @ (3 * np.eye(2, 5, 3)), float), jnp.array(
        raw[:, :2], float
    )


def matrix(name, rows, columns):
    return numpyro.param(name, lambda key: 0.3 * jax.random.normal(key, (rows, columns)))


def model(y, x, beta, eta):
    with numpyro.plate("rows", ROWS):
        with numpyro.handlers.scale(scale=beta):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(5), 1.0).to_event(1))
        mean = z @ matrix("decode", 5, 5) + x @ matrix("inputs", 2, 5)
        numpyro.sample("y", dist.Normal(mean, eta).to_event(1), obs=y)


def guide(y, x, beta, eta):
    spread = numpyro.param("spread", jnp.ones(5), constraint=dist.constraints.positive)
    with numpyro.plate("rows", ROWS), numpyro.handlers.scale(scale=beta):
        mean = jnp.concatenate([y, x], 1) @ matrix("encode", 7, 5)
        numpyro.sample("z", dist.Normal(mean, spread).to_event(1))


def report(beta, variance, num_steps):
    optim = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    args = (*data(), jnp.array(beta), jnp.array(variance**0.5))
    run = fit(jax.random.key(1), model, guide, ELBO(), optim, num_steps, *args, progress_bar=False)
    return collapse(run, num_samples=20, weights=beta, inputs=args[1])


# %% [markdown]
# ## Two levels
#
# `u` is the strength of the second level's map; all else is the optimum in closed form, so that the loss can
# be compared with the log evidence of probabilistic principal components.


# %%
def two_levels(y, u):
    with numpyro.plate("rows", ROWS):
        z_2 = numpyro.sample("z2", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        z_1 = numpyro.sample("z1", dist.Normal(u * z_2, 1.0).to_event(1))
        mean = z_1 @ jnp.diag((LEFT[:2] - 0.7) ** 0.5) @ jnp.eye(2, 5) / (1 + u**2) ** 0.5
        numpyro.sample("y", dist.Normal(mean, 0.7**0.5).to_event(1), obs=y)


def encoder(y, u):
    c, kept = (1 + u**2) ** 0.5, LEFT[:2] - 0.7
    spread = numpyro.param("spread", (0.7 / LEFT[:2]) ** 0.5, constraint=dist.constraints.positive)
    with numpyro.plate("rows", ROWS):
        z_1 = numpyro.sample("z1", dist.Normal(c * y[:, :2] * kept**0.5 / LEFT[:2], c * spread).to_event(1))
        numpyro.sample("z2", dist.Normal(u * z_1 / c**2, 1 / c).to_event(1))


@objective
def Weighted(model, guide, first: float = 1.0):
    draw = simulate(guide)
    return (log_density(model, draw.values) - draw.log_density).weigh({"z1": first})


def of_levels(u, first):
    y = data()[0] - data()[1] @ jnp.linalg.lstsq(*data()[::-1])[0]
    programs = two_levels, encoder, Weighted(first=first), optax.sgd(0.0), 100
    run = fit(jax.random.key(0), *programs, y, jnp.array(u), progress_bar=False)
    return run.losses.mean() / ROWS, collapse(run, num_samples=20, weights={"z1": first})


# %%
def claims(small=False):
    settings = [(b, v) for b in (0.5, 1.0, 2.0) for v in (0.35, 0.7, 1.6)]
    found = [report(*s, 3000 if small else 4000) for s in (settings[3:6] if small else settings)]
    counts = [" ".join(str(getattr(r, n)) for r in found) for n in ("predicted", "observed")]
    (alone, _), (both, told) = of_levels(0.0, 1.0), of_levels(2.0, 1.0)
    (before, _), (after, endless) = of_levels(1.0, 2.0), of_levels(100.0, 2.0)
    known = 0.5 * (np.log(2 * np.pi * np.append(LEFT[:2], [0.7] * 3)).sum() + 2 + LEFT[2:].sum() / 0.7)
    causes = [r.causes[-1].split(",")[1].split(":")[0].strip() for r in (found[-1], told, endless)]
    nats = told.sites["z2"].kl.sum()
    return [
        ("active units, a number for each setting", *counts),
        ("loss a datum without the second level", f"{known:.4f}", f"{alone:.4f}"),
        ("with it; its nats", f"{known:.4f}; {np.log(5):.3f}", f"{both:.4f}; {nats:.3f}"),
        ("fall of the loss, weights 2 and 1", f"{np.log((1e4 + 1) / 2):.3f}", f"{before - after:.3f}"),
        ("the causes named", "inputs, levels, unbounded", ", ".join(causes)),
    ]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
