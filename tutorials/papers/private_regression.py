# %% [markdown]
# # A regression on moments that hide their rows
#
# Under local privacy nobody sees a row: each person sends the moments $x x^\top$ and $x y$ of her own with so
# much noise that they could be anybody's. Their mean over a million people still tells the coefficients.
# Solving the equations as they stand takes the noise in $\hat A$ for data. With covariates that are public,
# its noise can be left out. And the noise of the release has a known law, so that the posterior can know of
# it: then intervals hold what they say, and a prior for few coefficients does its work.
#
# The paper is of pure ε-privacy; here it is (ε, δ), of normal noise.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from ppl_ext.designs import private_moments

PAPER = (
    "Zhu, Ding, Aggarwal, Xu, Wang (2024). Improved analysis of sparse linear regression in local "
    "differential privacy model. ICLR."
)
SIZE, NOISE = 10, 0.5
TRUE = np.array([0.8, -0.6] + [0.0] * (SIZE - 2))


def people(num):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, SIZE)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x @ TRUE + NOISE * rng.normal(size=num), float)


# %% [markdown]
# A horseshoe prior: most coefficients next to zero, some not.


# %%
def model(moments, public=None):
    overall = numpyro.sample("overall", dist.HalfCauchy(0.2))
    own = numpyro.sample("own", dist.HalfCauchy(1.0).expand([SIZE]).to_event(1))
    raw = numpyro.sample("raw", dist.Normal().expand([SIZE]).to_event(1))
    b = numpyro.deterministic("b", raw * own * overall)
    numpyro.sample("cross", moments.law(b, NOISE, public), obs=moments.cross)


def posterior(mcmc, seed, moments, public=None):
    """The mean, and how many coefficients lie in their intervals of 90 %."""
    mcmc.run(jax.random.key(seed), moments, public)
    b = np.asarray(mcmc.get_samples()["b"])
    low, high = np.quantile(b, [0.05, 0.95], axis=0)
    return b.mean(0), float(((low <= TRUE) & (TRUE <= high)).mean())


# %%
def claims(small=False):
    num, seeds, draws = (300_000, 2, 150) if small else (1_000_000, 8, 500)
    x, y = people(num)
    others, _ = people(num // 10)
    public = others.T @ others / len(others)
    kernel = NUTS(model, target_accept_prob=0.9)
    chain = MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False)
    errors, held = {}, {}
    for seed in range(seeds):
        key = jax.random.key(100 + seed)
        told = private_moments(key, x, y, epsilon=2.0, delta=1e-7, bounds=(5.0, 4.0))
        found = {
            "naive": jnp.linalg.solve(told.second, told.cross),
            "public covariance": jnp.linalg.solve(public, told.cross),
        }
        for name, args in (("aware", (told,)), ("aware, public covariance", (told, public))):
            found[name], inside = posterior(chain, seed, *args)
            held.setdefault(name, []).append(inside)
        for name, b in found.items():
            errors.setdefault(name, []).append(float(jnp.linalg.norm(b - TRUE)))
    aims = {"naive": "0.465", "public covariance": "0.263", "aware": "0.224"}
    known = {name: f"{aim} (aim, other noise)" for name, aim in aims.items()}
    rows = [
        (
            f"error, {name}",
            known.get(name, "below the others"),
            f"{np.mean(e):.3f} ± {np.std(e) / seeds**0.5:.3f}",
        )
        for name, e in errors.items()
    ]
    for name, inside in held.items():
        rows.append((f"coefficients in intervals of 90 %, {name}", "at least 0.90", f"{np.mean(inside):.2f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
