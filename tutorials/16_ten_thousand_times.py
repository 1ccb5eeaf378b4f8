# %% [markdown]
# # Counts at ten thousand irregular times
#
# A counter was read ten thousand times, whenever somebody passed by. The rate behind the counts moves slowly,
# and nobody knows how slowly. A Gaussian process with a dense covariance would have a matrix of a hundred
# million entries. A stationary process over time is a `scan` instead, `priors.markov`, and whatever serves a
# `scan` serves it, one time after another.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive
from tinygp.kernels import Matern32 as Dense
from tinygp.kernels.quasisep import Matern32

from ppl_ext.priors import markov
from ppl_ext.smoothing import smooth


def counts(times, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(1.5, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def observe(f, y_t):
        numpyro.sample("y", dist.Poisson(jnp.exp(level + f)), obs=y_t)

    markov("f", Matern32(scale=scale, sigma=sigma), times, observe, y)


TRUTH = {"scale": jnp.array(8.0), "sigma": jnp.array(0.7), "level": jnp.array(-0.5)}
times = np.sort(np.random.default_rng(1).uniform(0.0, 1000.0, 10_000)).astype(np.float32)
drawn = Predictive(numpyro.handlers.condition(counts, TRUTH), num_samples=1)(jax.random.key(3), times)
y, rate = np.asarray(drawn["y"][0]), np.exp(np.asarray(TRUTH["level"] + drawn["f"][0]))
print(f"{len(y):,} readings, {y.sum():,} counts, the longest gap {np.diff(times).max():.1f}")

# %% [markdown]
# How slowly, and how far? A particle filter gives the evidence of any values in one pass; the level is such
# that the mean rate is that of the counts.

# %%
smoother = smooth(counts, num_particles=400)


def evidence(scale, sigma):
    level = np.log(y.mean()) - sigma**2 / 2
    params = {"scale": scale, "sigma": sigma, "level": level}
    return float(smoother.run(jax.random.key(0), times, y, params=params).log_evidence), params


found = [evidence(scale, sigma) for sigma in (0.4, 0.7, 1.1) for scale in (2.0, 4.0, 8.0, 16.0, 32.0)]
best, params = max(found, key=lambda pair: pair[0])
for log_p, at in found:
    print(f"scale {at['scale']:4g}, sigma {at['sigma']:.1f}: {log_p - best:8.1f}")

# %% [markdown]
# With the best of these, what was the rate? Backward draws of particles (PaRIS) give whole paths given all
# counts.

# %%
run = smooth(counts, num_particles=1000).run(jax.random.key(1), times, y, params=params)


def functions(run, rng_key, num, times):
    """The process itself, a deterministic site, is what NumPyro makes of drawn states."""
    held = numpyro.handlers.condition(counts, params)
    return np.asarray(Predictive(held, run.sample(rng_key, num))(rng_key, times)["f"])


log_rate = params["level"] + functions(run, jax.random.key(2), 200, times)
low, middle, high = np.exp(np.quantile(log_rate, [0.05, 0.5, 0.95], 0))
inside = np.mean((low < rate) & (rate < high))
print(f"the 90 % band holds the rate at {100 * inside:.0f} % of times")
assert 0.8 < inside < 0.97

figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
shown = (times > 300) & (times < 420)
axes.plot(times[shown], y[shown], "k|", ms=4, alpha=0.5, label="counts")
axes.fill_between(times[shown], low[shown], high[shown], color="C0", alpha=0.3, label="90 % band")
axes.plot(times[shown], middle[shown], "C0", label="median")
axes.plot(times[shown], rate[shown], "C1", lw=1, label="rate")
axes.set(xlabel="time", ylabel="counts, rate", title=f"{shown.sum():,} of {len(y):,} readings")
axes.legend(ncols=4, loc="upper right")
figure.savefig("ten_thousand_times.png", dpi=110)

# %% [markdown]
# Is it right? On the first hundred and twenty readings a dense covariance is small enough for NUTS, and says
# the same.

# %%
few, few_y = times[:120], y[:120]


def dense(times, y):
    kernel = params["sigma"] ** 2 * Dense(scale=params["scale"])
    root = jnp.linalg.cholesky(kernel(times, times) + 1e-5 * jnp.eye(len(times)))
    f = root @ numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(times)]).to_event(1))
    numpyro.deterministic("f", f)
    numpyro.sample("y", dist.Poisson(jnp.exp(params["level"] + f)), obs=y)


mcmc = MCMC(NUTS(dense), num_warmup=500, num_samples=4000, progress_bar=False)
mcmc.run(jax.random.key(4), few, few_y)
right = np.asarray(mcmc.get_samples()["f"])
by_time = smooth(counts, num_particles=4000).run(jax.random.key(5), few, few_y, params=params)
ours = functions(by_time, jax.random.key(6), 4000, few)
apart = np.abs(ours.mean(0) - right.mean(0)) / right.std(0)
print(f"means are {apart.mean():.3f} posterior sd apart, at most {apart.max():.3f}")
assert apart.mean() < 0.06
