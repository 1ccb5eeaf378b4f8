# %% [markdown]
# # A solver that learned from no solution, and the way back
#
# A neural process learns to solve an equation from the equation alone. Each step draws new problems, and for
# each a new grid of points, so that the grid is averaged over like anything else; that the equation holds at
# its points is a factor, and the objective is the ELBO. Here it is the equation of heat in a rod of random
# conductivity, (e^a u')' = -1 with u = 0 at both ends; divided by e^a it is u'' + a' u' + e^-a = 0.
#
# The process reads a on whatever grid there is, through a kernel, onto nodes of its own, and gives a normal
# law to each weight of a series for u, so that u is a Gaussian process. The way back, from noisy readings of
# u at random places to a, is such a network too, and learns by `Sleep` from what the solver draws: nowhere is
# there a solution to learn from. Problems and sizes are our own. The field's standard deviation is some 0.5.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import flax_module
from numpyro.handlers import block, seed, substitute

from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, Sleep

PAPER = (
    "Vadeboncoeur, Kazlauskaite, Papandreou, Cirak, Girolami, Akyildiz (2023). Random grid neural processes "
    "for parametric partial differential equations. ICML; arXiv:2301.11040."
)
SIZES, TERMS, POINTS, MISFIT, NOISE = jnp.array([0.3, 0.5, 0.4, 0.2]), 12, 30, 0.05, 0.003
NODES, ORDERS, AT = jnp.linspace(0.0, 1.0, 16), jnp.pi * jnp.arange(1, TERMS), jnp.linspace(0.0, 1.0, 41)
WEIGHTS, GRID = dist.Normal(jnp.zeros(4), 1.0).to_event(1), dist.Uniform(jnp.zeros(POINTS), 1.0).to_event(1)


# %%
def field(z, x):
    return jnp.cos(jnp.pi * jnp.arange(4) * x[:, None]) @ (SIZES * z)


# What u is a sum of: 0 at both ends, and with the second derivatives 1 and cosines.
def terms(x):
    waves = 1.0 - jnp.cos(ORDERS * x[:, None]) - x[:, None] * (1.0 - jnp.cos(ORDERS))
    return jnp.concatenate([(x**2 - x)[:, None] / 2.0, waves / ORDERS**2], 1)


# Numbers from values y on any grid x.
def network(name, x, y, size):
    near = jax.nn.softmax(-0.5 * ((x - NODES[:, None]) / 0.05) ** 2, 1)
    layers = nn.Sequential([nn.Dense(128), nn.gelu, nn.Dense(128), nn.gelu, nn.Dense(size)])
    return flax_module(name, layers, input_shape=(32,))(jnp.concatenate([near @ x, near @ y]))


def solver(z, x):
    loc, scale = network("solver", x, field(z, x), 2 * TERMS).reshape(2, TERMS)
    return dist.Normal(loc, 0.1 * jax.nn.softplus(scale)).to_event(1)


def guide():
    numpyro.sample("w", solver(numpyro.sample("z", WEIGHTS), numpyro.sample("x", GRID)))


def model():
    z, x = numpyro.sample("z", WEIGHTS), numpyro.sample("x", GRID)
    w = numpyro.sample("w", dist.Normal(0.0, 2.0).expand([TERMS]).to_event(1))
    slope = lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]  # noqa: E731
    a, first = lambda x: field(z, x), slope(lambda x: terms(x) @ w)
    left = slope(first)(x) + slope(a)(x) * first(x) + jnp.exp(-a(x))
    numpyro.sample("equation", dist.Normal(left, MISFIT).to_event(1), obs=jnp.zeros(POINTS))


# %% [markdown]
# ## The way back


# %%
def readings(params, x, y):
    z, x = numpyro.sample("z", WEIGHTS), numpyro.sample("x", GRID, obs=x)
    w = numpyro.sample("w", block(substitute(solver, data=params))(z, NODES), infer={"is_auxiliary": True})
    numpyro.sample("y", dist.Normal(terms(x) @ w, NOISE).to_event(1), obs=y)


def inverse(params, x, y):
    loc, tril = jnp.split(network("inverse", x, 10.0 * y, 14), [4])
    law = dist.MultivariateNormal(loc, scale_tril=dist.biject_to(dist.constraints.lower_cholesky)(tril))
    return numpyro.sample("z", law), law


def trained(num_steps, objective, model, guide, *data):
    optim = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, num_steps))
    run = fit(jax.random.key(0), model, guide, objective, optim, num_steps, *data, progress_bar=False)
    return jax.tree.map(lambda p: p[0], run.params)


# %% [markdown]
# ## Beside the exact solution, by quadrature: e^a u' = c - x


# %%
def solution(z, x):
    at = jnp.linspace(0.0, 1.0, 2001)
    inner = jnp.exp(-field(z, at))
    once, times = (jnp.pad(jnp.cumsum(f[1:] + f[:-1]), (1, 0)) for f in (inner, inner * at))
    return jnp.interp(x, at, times[-1] / once[-1] * once - times) / 4000.0


def error(params, z, x):
    w, known = substitute(solver, data=params)(z, x).mean, solution(z, AT)
    return jnp.linalg.norm(terms(AT) @ w - known) / jnp.linalg.norm(known)


# How many standard deviations the field is off, and these.
def off(params, z, x, noise):
    _, law = seed(substitute(inverse, data=params), 0)(None, x, solution(z, x) + NOISE * noise)
    design = jax.vmap(field, (0, None))(jnp.eye(4), AT)
    scale = jnp.linalg.norm(law.scale_tril.T @ design, axis=0)
    return abs((z - law.mean) @ design) / scale, scale


def claims(small=False):
    (num, num_steps), rows = (100, 200) if small else (1000, 3000), []
    params, z = trained(num_steps, ELBO(64), model, guide), WEIGHTS.sample(jax.random.key(1), (num,))
    for points in (15, 30, 100):
        x = jax.random.uniform(jax.random.key(points), (num, points))
        found = jax.vmap(error, (None, 0, 0))(params, z, x)
        told = f"{found.mean():.4f} ± {found.std() / num**0.5:.4f}"
        rows.append((f"relative L2 error of u, from {points} random points", "at most 0.05", told))
    back = trained(num_steps, Sleep(128), readings, inverse, params, jnp.zeros(POINTS), jnp.zeros(POINTS))
    noise = jax.random.normal(jax.random.key(2), (num, POINTS))
    away, scale = jax.vmap(off, (None, 0, 0, 0))(back, z, x[:, :POINTS], noise)
    told = f"{(away < 0.6745).mean():.3f}, {(away < 1.6449).mean():.3f}; deviation {scale.mean():.2f}"
    rows.append(("coverage of the field by bands from 30 readings of u", "0.5, 0.9", told))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
