# %% [markdown]
# # A network that is fitted to a prior on networks
#
# The predictive of a Bayesian neural network is an integral over its weights. NUTS takes it for one data set
# at a time. A network that is fitted to the prior, as in `prior_fitted.py`, has learned it for all data sets
# of the prior, and answers in one pass.

# %%
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS

from ppl_ext.infer import SetTransformer, amortise, fit
from ppl_ext.objectives import Sleep

PAPER = (
    "Müller, Hollmann, Pineda Arango, Grabocka, Hutter (2022). Transformers can do Bayesian inference. ICLR. "
    "The prior on networks."
)
ROWS, NOISE = 20, 0.3
FULL = jnp.array(ROWS), jnp.zeros(ROWS), jnp.zeros(ROWS), jnp.array(0.0)


# %%
def network(first, last, x):
    return jnp.tanh(jnp.stack([x, jnp.ones_like(x)], -1) @ first) @ last


def model(num, x, y, x_new):
    first = numpyro.sample("first", dist.Normal(0.0, 2.0).expand([2, 8]).to_event(2))
    last = numpyro.sample("last", dist.Normal(0.0, 8.0**-0.5).expand([8]).to_event(1))
    num = numpyro.sample("num", dist.DiscreteUniform(1, ROWS), obs=num)
    with numpyro.handlers.mask(mask=jnp.arange(ROWS) < num), numpyro.plate("rows", ROWS):
        x = numpyro.sample("x", dist.Uniform(-1.0, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(network(first, last, x), NOISE), obs=y)
    x_new = numpyro.sample("x_new", dist.Uniform(-1.0, 1.0), obs=x_new)
    numpyro.sample("y_new", dist.Normal(network(first, last, x_new), NOISE))


def fitted(num_steps, reader):
    reads = dict(rows=["x", "y"], count="num", sites=["y_new"], num_components=2)
    guide = amortise(model, reader, *FULL, **reads)
    rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 200, num_steps)
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    settings = Sleep(64), optim, num_steps, *FULL
    return guide, fit(jax.random.key(0), guide.simulator, guide, *settings, progress_bar=False)


# %% [markdown]
# ## Beside NUTS
#
# For each of several data sets of 20 rows: the divergence of the network's predictive from that of a chain
# of NUTS, a mean over 20 places, and the seconds of both. The first data set compiles, and is left out.


# %%
PLACES, VALUES = jnp.linspace(-1.0, 1.0, 20), jnp.linspace(-6.0, 6.0, 601)


def beside_nuts(guide, run, num, num_draws):
    mcmc = MCMC(NUTS(model), num_warmup=num_draws, num_samples=2 * num_draws, progress_bar=False)

    def at(x, y, x_new):
        return guide.laws(run, x=x, y=y, x_new=x_new)["y_new"].log_prob(VALUES)

    answer, found = jax.jit(jax.vmap(at, (None, None, 0))), []
    for k in range(num + 1):
        rng = np.random.default_rng(k)
        x, noise = jnp.asarray(rng.uniform(-1.0, 1.0, ROWS), jnp.float32), NOISE * rng.normal(size=ROWS)
        y = network(2.0 * rng.normal(size=(2, 8)), 8.0**-0.5 * rng.normal(size=8), x) + noise
        start = time.perf_counter()
        mcmc.run(jax.random.key(k), jnp.array(ROWS), x, y, jnp.array(0.0))
        draws = jax.block_until_ready(mcmc.get_samples())
        middle = time.perf_counter()
        ours = np.asarray(answer(x, y, PLACES), float)
        end = time.perf_counter()
        f = jax.vmap(network, (0, 0, None))(draws["first"], draws["last"], PLACES)
        law = np.exp(np.asarray(dist.Normal(f[..., None], NOISE).log_prob(VALUES), float)).mean(0)
        gap = (law * (np.log(np.maximum(law, 1e-300)) - ours)).sum(1).mean() * float(VALUES[1] - VALUES[0])
        found.append((gap, middle - start, end - middle))
    return np.array(found[1:]).T


# %%
def claims(small=False):
    run = fitted(300, SetTransformer(16, num_layers=1)) if small else fitted(2500, SetTransformer())
    gaps, nuts, ours = beside_nuts(*run, *((3, 100) if small else (8, 500)))
    told = f"{gaps.mean():.4f} ± {gaps.std(ddof=1) / len(gaps) ** 0.5:.4f}"
    seconds = f"{np.median(nuts):.2f} (NUTS, compiled)", f"{np.median(ours):.4f}"
    return [
        ("KL to the predictive of NUTS, nats a point", "at most 0.02", told),
        ("seconds for a data set, 20 predictions", *seconds),
    ]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
