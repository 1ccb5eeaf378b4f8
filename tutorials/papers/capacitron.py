# %% [markdown]
# # Capacitron: how many nats a latent may carry
#
# The divergence of an encoder from the prior bounds what a latent says about its datum. Capacitron turns that
# around: the capacity C is set, and the weight b of the divergence is learned as the multiplier of a
# constraint,
#
# $$\min_\theta \max_{b \ge 0} \; \mathbb{E}[-\log p(x \mid z)] + b\,(\mathrm{KL}(q \,\|\, p) - C).$$
#
# `constrain` is that objective. For a linear decoder with fixed noise the answer is known: with eigenvalues
# $\lambda_i$ of the data's covariance and noise variance $s^2$, the divergence is
# $\sum_i \tfrac12 \log(\lambda_i / b s^2)$ over the axes that it pays to use, so that C gives b, which is the
# slope of the rate-distortion curve. Two levels, a latent of each group and one of each of its members, have
# a cap each; a group's latent describes n members at once, so that its eigenvalues count n times.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext import log_density, objective, simulate
from ppl_ext.infer import fit
from ppl_ext.objectives import constrain, kl

PAPER = (
    "Battenberg, Mariooryad, Stanton, Skerry-Ryan, Shannon, Kao, Bagby (2019). Effective use of variational "
    "embedding capacity in expressive end-to-end speech synthesis. arXiv:1906.03402."
)
GROUPS = 16
SIZE = 8
NOISE = 0.3
BETWEEN = np.array([6.0, 3.0])
WITHIN = np.array([8.0, 4.0, 2.0, 1.0])

# %% [markdown]
# ## Data whose covariance is exact
#
# Groups differ along two axes, and the members of a group along four others.


# %%
def white(draws, axis):
    """Draws with mean zero along an axis and the identity as covariance."""
    draws = draws - draws.mean(axis, keepdims=True)
    rows = draws.reshape(-1, draws.shape[-1])
    return draws @ np.linalg.inv(np.linalg.cholesky(rows.T @ rows / len(rows))).T


def data():
    rng = np.random.default_rng(0)
    groups = np.repeat(white(rng.normal(size=(GROUPS, 1, 2)), 0), SIZE, 1)
    members = white(rng.normal(size=(GROUPS, SIZE, 4)), 1)
    x = np.concatenate([groups * BETWEEN**0.5, members * WITHIN**0.5], -1)
    return jnp.asarray(x, dtype=jnp.float32)


# %% [markdown]
# ## Model and encoder, both linear


# %%
def matrix(name, rows, columns):
    return numpyro.param(name, lambda key: 0.3 * jax.random.normal(key, (rows, columns)))


def latents(group, member):
    with numpyro.plate("groups", GROUPS, dim=-2):
        z_h = numpyro.sample("z_h", group.to_event(1))
        with numpyro.plate("members", SIZE, dim=-1):
            return z_h, numpyro.sample("z_l", member.to_event(1))


def model(x):
    z_h, z_l = latents(dist.Normal(jnp.zeros(2), 1.0), dist.Normal(jnp.zeros(4), 1.0))
    with numpyro.plate("groups", GROUPS, dim=-2), numpyro.plate("members", SIZE, dim=-1):
        mean = z_h @ matrix("decode_h", 2, 6) + z_l @ matrix("decode_l", 4, 6)
        numpyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)


def guide(x):
    positive = dist.constraints.positive
    scales = (numpyro.param(f"scale_{k}", jnp.ones(n), constraint=positive) for k, n in (("h", 2), ("l", 4)))
    means = x.mean(1, keepdims=True) @ matrix("encode_h", 6, 2), x @ matrix("encode_l", 6, 4)
    latents(*(dist.Normal(m, s) for m, s in zip(means, scales, strict=True)))


# %% [markdown]
# ## The likelihood under two caps, and the answer


# %%
@objective
def Likelihood(model, guide):
    return log_density(model, simulate(guide).values).select("x")


def run(c_h, c_l, num_steps):
    loss = constrain(Likelihood(), kl("z_h"), at_most=GROUPS * c_h, rate=0.005, initial=20.0)
    loss = constrain(loss, kl("z_l"), at_most=GROUPS * SIZE * c_l, rate=0.0005, initial=10.0)
    optim = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    fitted = fit(jax.random.key(0), model, guide, loss, optim, num_steps, data(), progress_bar=False)
    p, x = jax.tree.map(lambda v: v[0], fitted.params), data()

    def nats(mean, s):
        return float((0.5 * (mean**2 + s**2 - 1) - jnp.log(s)).sum(-1).mean())

    weights = [float(v["multiplier"]) for _, v in sorted(p.items()) if isinstance(v, dict)]
    return [nats(x.mean(1) @ p["encode_h"], p["scale_h"]), nats(x @ p["encode_l"], p["scale_l"])], weights


def exact(eigenvalues, c):
    """The multiplier: fewer axes are in use where it exceeds their signal."""
    for k in range(1, len(eigenvalues) + 1):
        level = np.exp((np.log(eigenvalues[:k]).sum() - 2 * c) / k)
        if k == len(eigenvalues) or level >= eigenvalues[k]:
            return level / NOISE**2


# %%
def claims(small=False):
    rows = []
    for c_h, c_l in ((3.0, 3.0),) if small else ((2.0, 1.0), (3.0, 3.0), (5.0, 6.0)):
        nats, weights = run(c_h, c_l, 1500 if small else 10_000)
        known = exact(SIZE * BETWEEN, c_h), exact(WITHIN, c_l)
        for level, c, *found in zip(("group", "member"), (c_h, c_l), nats, known, weights, strict=True):
            rows.append((f"nats a {level} at caps {c_h:g}, {c_l:g}", f"{c:.3f}", f"{found[0]:.3f}"))
            rows.append((f"multiplier of the {level}", f"{found[1]:.2f}", f"{found[2]:.2f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
