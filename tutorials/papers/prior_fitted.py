# %% [markdown]
# # A network that is fitted to a prior
#
# Draw a function from a prior, some points of it, and one more: a network that reads the points and is to say
# how probable the last one is learns the posterior predictive, whatever the prior. After that a new data set
# costs one pass. The prior is a NumPyro model, the network the guide of its site `y_new`, and `Sleep` trains
# it.
#
# All that the network reads is an observed site: how many points there are, where they lie, their values, and
# the place of the prediction. The guide's law is a mixture of two normals.

# %%
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.special import gammaln
from numpyro.infer import MCMC, NUTS

from ppl_ext.infer import SetTransformer, amortise, fit
from ppl_ext.objectives import Sleep

PAPER = (
    "Müller, Hollmann, Pineda Arango, Grabocka, Hutter (2022). Transformers can do Bayesian inference. ICLR."
)
ROWS, SCALE, NOISE = 20, 0.5, 0.3
POWERS = jnp.arange(24)
FULL = jnp.array(ROWS), jnp.zeros(ROWS), jnp.zeros(ROWS), jnp.array(0.0)


# %%
def points(f, num, x, y, x_new):
    num = numpyro.sample("num", dist.DiscreteUniform(1, ROWS), obs=num)
    with numpyro.handlers.mask(mask=jnp.arange(ROWS) < num), numpyro.plate("rows", ROWS):
        x = numpyro.sample("x", dist.Uniform(-1.0, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(f(x), NOISE), obs=y)
    x_new = numpyro.sample("x_new", dist.Uniform(-1.0, 1.0), obs=x_new)
    numpyro.sample("y_new", dist.Normal(f(x_new), NOISE))


def basis(x):
    """Functions whose products sum to the kernel exp(-(x - x')² / 2 s²): the powers of exp(x x' / s²)."""
    t = jnp.asarray(x)[..., None] / SCALE
    return jnp.exp(-0.5 * t**2 - 0.5 * gammaln(POWERS + 1.0)) * t**POWERS


def process(num, x, y, x_new):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([len(POWERS)]).to_event(1))
    points(lambda x: basis(x) @ weights, num, x, y, x_new)


def network_at(first, last, x):
    return jnp.tanh(jnp.stack([x, jnp.ones_like(x)], -1) @ first) @ last


def network(num, x, y, x_new):
    first = numpyro.sample("first", dist.Normal(0.0, 2.0).expand([2, 8]).to_event(2))
    last = numpyro.sample("last", dist.Normal(0.0, 8.0**-0.5).expand([8]).to_event(1))
    points(lambda x: network_at(first, last, x), num, x, y, x_new)


def fitted(prior, num_steps):
    guide = amortise(
        prior, SetTransformer(), *FULL, rows=["x", "y"], count="num", sites=["y_new"], num_components=2
    )
    rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 200, num_steps)
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    settings = Sleep(64), optim, num_steps, *FULL
    return guide, fit(jax.random.key(0), guide.simulator, guide, *settings, progress_bar=False)


# %% [markdown]
# ## A Gaussian process, whose predictive is known


# %%
def divergences(guide, run, num, size):
    """From the exact predictive, a point each of `num` data sets of `size` rows, in nats."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1.0, 1.0, (num, size + 1))
    covariance = np.exp(-0.5 * ((x[:, :, None] - x[:, None]) / SCALE) ** 2) + NOISE**2 * np.eye(size + 1)
    y = (np.linalg.cholesky(covariance) @ rng.normal(size=(num, size + 1, 1)))[..., 0]
    gain = np.linalg.solve(covariance[:, :-1, :-1], covariance[:, :-1, -1:])[..., 0]
    mean = (gain * y[:, :-1]).sum(1)
    sd = np.sqrt(covariance[:, -1, -1] - (gain * covariance[:, :-1, -1]).sum(1))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    at = mean[:, None] + sd[:, None] * nodes

    def log_prob(x, y, x_new, values):
        return guide.laws(run, x=x, y=y, x_new=x_new)["y_new"].log_prob(values)

    found = jax.jit(jax.vmap(log_prob))(x[:, :-1], y[:, :-1], x[:, -1], at)
    entropy = np.log(sd * np.sqrt(2.0 * np.pi * np.e))
    return -entropy - np.asarray(found, float) @ weights / weights.sum()


# %% [markdown]
# ## A Bayesian neural network, beside NUTS


# %%
def beside_nuts(guide, run, num, num_draws):
    """Divergence from the predictive of NUTS at 20 places, for each data set, and seconds."""
    rng, places = np.random.default_rng(2), jnp.linspace(-1.0, 1.0, 20)
    values = jnp.linspace(-6.0, 6.0, 601)
    mcmc = MCMC(
        NUTS(network),
        num_warmup=500,
        num_samples=num_draws,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )

    @jax.jit
    def answer(x, y):
        def at(x_new):
            return guide.laws(run, x=x, y=y, x_new=x_new)["y_new"].log_prob(values)

        return jax.vmap(at)(places)

    found, seconds = [], []
    for k in range(num + 1):  # the first compiles
        x = jnp.asarray(rng.uniform(-1.0, 1.0, ROWS), jnp.float32)
        first, last = 2.0 * rng.normal(size=(2, 8)), 8.0**-0.5 * rng.normal(size=8)
        y = network_at(first, last, x) + NOISE * rng.normal(size=ROWS)
        start = time.perf_counter()
        mcmc.run(jax.random.key(k), jnp.array(ROWS), x, y, jnp.array(0.0))
        draws = jax.block_until_ready(mcmc.get_samples())
        middle = time.perf_counter()
        ours = np.asarray(jax.block_until_ready(answer(x, y)), float)
        seconds.append((middle - start, time.perf_counter() - middle))
        functions = jax.vmap(lambda a, b: network_at(a, b, places))(draws["first"], draws["last"])
        law = np.exp(dist.Normal(functions[..., None], NOISE).log_prob(values)).mean(0)
        gaps = np.where(law > 0.0, law * (np.log(np.maximum(law, 1e-30)) - ours), 0.0)
        found.append(gaps.sum(1).mean() * float(values[1] - values[0]))
    return np.array(found[1:]), np.median(seconds[1:], 0)


# %%
def told(x):
    return f"{np.mean(x):.4f} ± {np.std(x, ddof=1) / len(x) ** 0.5:.4f}"


def claims(small=False):
    num_steps, num = (1000, 500) if small else (5000, 5000)
    of_process = fitted(process, num_steps)
    rows = [
        (
            f"KL to the exact predictive of the process, nats a point at {size} rows",
            "at most 0.02",
            told(divergences(*of_process, num, size)),
        )
        for size in (5, 10, 20)
    ]
    found, (nuts, ours) = beside_nuts(*fitted(network, num_steps), *((2, 100) if small else (8, 500)))
    rows.append(
        (
            "KL to NUTS's predictive of a Bayesian network, nats a point at 20 rows",
            "at most 0.02",
            told(found),
        )
    )
    rows.append(("seconds for 20 predictions", f"{nuts:.2f} (NUTS, compiled)", f"{ours:.4f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
