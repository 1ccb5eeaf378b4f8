# %% [markdown]
# # A few draws to look at
#
# Who looks at five draws of a posterior sees its large mode five times. A subset that is chosen for its
# diversity shows the small one too. Here a source is at one of two places, since its distance alone is
# measured, and prior knowledge makes one of them nineteen times as likely as the other.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext import diagnostics

PAPER = (
    "Cohen, Manor, Bahat, Michaeli (2024). From Posterior Sampling to Meaningful Diversity in Image "
    "Restoration. ICLR."
)
K, PLACES = 5, jnp.array([[4.0, 0.0], [-4.0, 0.0]])
METHODS = ("farthest", "kmeans", "dpp")


# %%
def prior():
    side = numpyro.sample("side", dist.Categorical(probs=jnp.array([0.95, 0.05])))
    return numpyro.sample("place", dist.Normal(PLACES[side], 0.6).to_event(1)), side == 1


@partial(jax.jit, static_argnums=1)
def posterior(key, num):
    """Exact draws (num, 2) of the place, by rejection, and whether they are in the small mode, whose
    probability is that of the prior: the distance is the same on both sides.
    """
    of_prior, of_choice = jax.random.split(key)
    keys = jax.random.split(of_prior, 4 * num)
    place, rare = jax.vmap(lambda key: numpyro.handlers.seed(prior, key)())(keys)
    off = jnp.linalg.norm(place, axis=-1) - 4.0  # measured as 4, with an error of 0.3
    kept = jax.random.uniform(of_choice, off.shape) < jnp.exp(-0.5 * (off / 0.3) ** 2)
    first = jnp.argsort(~kept)[:num]
    return place[first], rare[first], kept.sum() >= num


# %% [markdown]
# How often no draw of the small mode is among the five, and how far a draw is from the nearest of them, on
# average and at most.


# %%
def looked_at(num_sets, num=300):
    """By way of choosing: the share of sets without the small mode, and both distances."""
    missed = {name: [] for name in ("plain", *METHODS)}
    away = {name: [] for name in missed}
    for key in jax.random.split(jax.random.key(0), num_sets):
        of_draws, of_choice = jax.random.split(key)
        draws, rare, enough = map(np.asarray, posterior(of_draws, num))
        assert enough
        for name in missed:
            if name == "plain":
                chosen = np.asarray(jax.random.choice(of_choice, num, (K,), replace=False))
            else:
                chosen = diagnostics.diverse_subset(draws, K, name, rng_key=of_choice)
            missed[name].append(not rare[chosen].any())
            distance = np.linalg.norm(draws[:, None] - draws[chosen], axis=-1).min(1)
            away[name].append((distance.mean(), distance.max()))
    return {name: (np.mean(missed[name]), *np.mean(away[name], 0)) for name in missed}


# %%
def claims(small=False):
    num = 40 if small else 200
    found = looked_at(num)
    half = (0.95**K * (1 - 0.95**K) / num) ** 0.5
    known = {"plain": f"{0.95**K:.3f} ± {half:.2g} (exact)"}
    return [
        (
            f"share of sets of {K} without the small mode, {name}",
            known.get(name, "0"),
            f"{missed:.3f}; distance to the set {mean:.2f}, at most {most:.2f}",
        )
        for name, (missed, mean, most) in found.items()
    ]


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
