# %% [markdown]
# # A network that is fitted to a prior
#
# Draw a function from a prior, some points of it, and one more: a network that reads the points and is to say
# how probable the last one is learns the posterior predictive, whatever the prior. After that a new data set
# costs one pass. The prior is a NumPyro model, the network the guide of its site `y_new`, and `Sleep` trains
# it; the function is averaged over by the simulations.
#
# All that the network reads is an observed site: how many points there are, where they lie, their values, and
# the place of the prediction. The guide's law is a mixture of two normals. Here the prior is a Gaussian
# process, whose predictive is known.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.special import gammaln

from ppl_ext.infer import SetTransformer, amortise, fit
from ppl_ext.objectives import Sleep

PAPER = (
    "Müller, Hollmann, Pineda Arango, Grabocka, Hutter (2022). Transformers can do Bayesian inference. ICLR."
)
ROWS, SCALE, NOISE = 20, 0.5, 0.3
POWERS = jnp.arange(24)
FULL = jnp.array(ROWS), jnp.zeros(ROWS), jnp.zeros(ROWS), jnp.array(0.0)


# %%
def basis(x):
    """Functions whose products sum to the kernel exp(-(x - x')² / 2 s²): the powers of exp(x x' / s²)."""
    t = jnp.asarray(x)[..., None] / SCALE
    return jnp.exp(-0.5 * t**2 - 0.5 * gammaln(POWERS + 1.0)) * t**POWERS


def process(num, x, y, x_new):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([24]).to_event(1))
    num = numpyro.sample("num", dist.DiscreteUniform(1, ROWS), obs=num)
    with numpyro.handlers.mask(mask=jnp.arange(ROWS) < num), numpyro.plate("rows", ROWS):
        x = numpyro.sample("x", dist.Uniform(-1.0, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(basis(x) @ weights, NOISE), obs=y)
    x_new = numpyro.sample("x_new", dist.Uniform(-1.0, 1.0), obs=x_new)
    numpyro.sample("y_new", dist.Normal(basis(x_new) @ weights, NOISE))


def fitted(num_steps, network=None, seed=0):
    """The guide, and its run."""
    network = SetTransformer() if network is None else network
    reads = dict(rows=["x", "y"], count="num", sites=["y_new"], num_components=2)
    guide = amortise(process, network, *FULL, **reads)
    rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 200, num_steps)
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    settings = Sleep(128), optim, num_steps, *FULL
    return guide, fit(jax.random.key(seed), guide.simulator, guide, *settings, progress_bar=False)


# %% [markdown]
# ## New data sets
#
# The divergence from the exact predictive, by quadrature.


# %%
def data_sets(rng, num, size):
    """Rows, the place of the prediction, and mean and standard deviation of what is to be said there."""
    x = rng.uniform(-1.0, 1.0, (num, size + 1))
    covariance = np.exp(-0.5 * ((x[:, :, None] - x[:, None]) / SCALE) ** 2) + NOISE**2 * np.eye(size + 1)
    y = (np.linalg.cholesky(covariance) @ rng.normal(size=(num, size + 1, 1)))[..., 0]
    gain = np.linalg.solve(covariance[:, :-1, :-1], covariance[:, :-1, -1:])[..., 0]
    variance = covariance[:, -1, -1] - (gain * covariance[:, :-1, -1]).sum(1)
    return x[:, :-1], y[:, :-1], x[:, -1], (gain * y[:, :-1]).sum(1), np.sqrt(variance)


def divergences(guide, run, num, size, seed=1):
    x, y, x_new, mean, sd = data_sets(np.random.default_rng(seed), num, size)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)

    def log_prob(x, y, x_new, values):
        return guide.laws(run, x=x, y=y, x_new=x_new)["y_new"].log_prob(values)

    said = jax.jit(jax.vmap(log_prob))(x, y, x_new, mean[:, None] + sd[:, None] * nodes)
    entropy = np.log(sd * np.sqrt(2.0 * np.pi * np.e))
    return -entropy - np.asarray(said, float) @ weights / weights.sum()


# %%
def claims(small=False):
    found = fitted(600, SetTransformer(16, num_layers=1)) if small else fitted(4000)
    rows = []
    for size in (20,) if small else (5, 10, 20):
        gaps = divergences(*found, 500 if small else 5000, size)
        told = f"{gaps.mean():.4f} ± {gaps.std(ddof=1) / len(gaps) ** 0.5:.4f}"
        rows.append((f"KL to the exact predictive at {size} rows, nats a point", "at most 0.02", told))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
