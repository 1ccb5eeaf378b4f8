# %% [markdown]
# # Write the model once, swap the inference
#
# A model in `ppl_ext` is an ordinary NumPyro function. It does not say how it will be fitted. Here one
# regression is fitted by NUTS and by three variational objectives, with one line changed in between. Then a
# model with discrete unknowns is fitted with a gradient strategy chosen for each site. Everything is read in
# ArviZ.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, init_to_median
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_diabetes

import ppl_ext
from ppl_ext.diagnostics import plot_forest
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO, Renyi

# %% [markdown]
# ## A model and data
#
# Ten measurements of 442 patients, and how their diabetes had progressed a year later. The blood serum
# measurements `s1` to `s6` are strongly correlated, so the posterior of their coefficients is too: that is
# what makes the algorithms differ.

# %%
diabetes = load_diabetes()
names = list(diabetes.feature_names)
features = jnp.asarray((diabetes.data - diabetes.data.mean(0)) / diabetes.data.std(0), dtype=jnp.float32)
progress = jnp.asarray((diabetes.target - diabetes.target.mean()) / diabetes.target.std(), dtype=jnp.float32)


def regression(features, progress=None):
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("feature", features.shape[1]):
        coefficient = numpyro.sample("coefficient", dist.Normal(0.0, spread))
    with numpyro.plate("patient", features.shape[0]):
        numpyro.sample("progress", dist.Normal(features @ coefficient, noise), obs=progress)


# %% [markdown]
# ## NUTS
#
# NumPyro's own, with nothing of ours in it. `ppl_ext.to_arviz` names the axes after the plates; `coords`
# gives them labels.

# %%
labels = {"feature": names}
mcmc = MCMC(
    NUTS(regression),
    num_warmup=400,
    num_samples=500,
    num_chains=4,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(0), features, progress)
reports = {"NUTS": ppl_ext.to_arviz(mcmc, coords=labels)}
print(az.summary(reports["NUTS"], var_names=["coefficient"], kind="stats"))

# %% [markdown]
# ## The evidence lower bound
#
# A guide is a program too; this one, NumPyro's `AutoNormal`, has every coefficient independent of the others.
# `num_chains=4` restarts the fit four times, at once, so R-hat can tell whether the restarts agree.
# `print_summary` says whether to believe the result: the Pareto k of the importance weights is over 0.7,
# because a guide of independent coefficients cannot follow correlated ones.

# %%
STEPS = 6000
guide = AutoNormal(regression, init_loc_fn=init_to_median)
optim = optax.adam(optax.cosine_decay_schedule(0.05, STEPS))

result = fit(
    jax.random.key(1),
    regression,
    guide,
    ELBO(),
    optim,
    STEPS,
    features,
    progress,
    num_chains=4,
    progress_bar=False,
)
result.print_summary()
reports["ELBO"] = result.to_arviz(coords=labels)

# %% [markdown]
# ## Swap the objective
#
# The one line that changes is the objective. The importance-weighted bound lets the guide be wider: a draw in
# the wrong place costs little if another of the eight is in the right one. Renyi's bound with alpha = 0.5 is
# in between. The guide can be swapped as well: the last fit has the plain ELBO again, under a guide that
# knows correlations.

# %%
swaps = {
    "IWELBO": (guide, IWELBO(num_particles=8)),
    "Renyi": (guide, Renyi(alpha=0.5, num_particles=8)),
    "ELBO, correlated": (AutoMultivariateNormal(regression, init_loc_fn=init_to_median), ELBO()),
}
for name, (swapped_guide, objective) in swaps.items():
    result = fit(
        jax.random.key(1),
        regression,
        swapped_guide,
        objective,
        optim,
        STEPS,
        features,
        progress,
        num_chains=4,
        progress_bar=False,
    )
    reports[name] = result.to_arviz(coords=labels)

# %%
sds = {
    name: report.posterior["coefficient"].std(("chain", "draw")).values for name, report in reports.items()
}
print("Posterior sds of the coefficients, NUTS's being 1")
print(" " * 16 + "".join(f"{name:>7}" for name in names))
for name, sd in sds.items():
    print(f"{name:<16}" + "".join(f"{ratio:7.2f}" for ratio in sd / sds["NUTS"]))

# %% [markdown]
# ## Read them together
#
# Every report has the same groups and axes, so algorithms are compared as models are.

# %%
_, axes = plt.subplots(figsize=(7, 9), layout="constrained")
plot_forest(reports, ["coefficient"], axes)

# %% [markdown]
# Leave-one-out cross-validation tells what the widths are worth. The independent guide of the ELBO is too
# narrow where the data leave room and about right where they do not, so it predicts almost as well as NUTS.
# Stretched by the IWELBO it covers the posterior, but its draws also fall where the posterior does not: they
# are proposals, to be used with their weights (`sample_stats["log_weight"]`), and as they are they predict
# worse. The correlated guide needs no such repair.

# %%
for name, report in reports.items():
    loo = az.loo(report)
    # ArviZ 1.x, 0.23
    elpd, effective = (loo.elpd, loo.p) if hasattr(loo, "elpd") else (loo.elpd_loo, loo.p_loo)
    print(
        f"{name:<16} expected log predictive density {elpd:8.2f} ± {loo.se:.2f}, effective parameters "
        f"{effective:.2f}"
    )

# %% [markdown]
# ## A discrete site, and a strategy for each site
#
# Which of the six serum measurements matter, beside age, sex, bmi and blood pressure? `included` says so, one
# switch for each. There is no derivative by a switch, so its gradient has to be estimated some other way than
# by differentiating through the draw. The guide is hand-written: a coefficient depends on its switch, and
# while that is off, the coefficient is just drawn from its prior.

# %%
basic, serum = features[:, :4], features[:, 4:]


def selection(basic, serum, progress=None):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("basics", 4):
        level = numpyro.sample("level", dist.Normal(0.0, 0.5))
    with numpyro.plate("sera", 6):
        included = numpyro.sample("included", dist.Bernoulli(0.5))
        size = numpyro.sample("size", dist.Normal(0.0, 0.5))
    with numpyro.plate("patient", basic.shape[0]):
        numpyro.sample(
            "progress", dist.Normal(basic @ level + serum @ (included * size), noise), obs=progress
        )


def positive(name, value):
    return numpyro.param(name, value, constraint=dist.constraints.positive)


def selection_guide(basic, serum, progress=None):
    numpyro.sample("noise", dist.LogNormal(numpyro.param("noise_loc", -0.4), positive("noise_scale", 0.05)))
    with numpyro.plate("basics", 4):
        numpyro.sample(
            "level",
            dist.Normal(numpyro.param("level_loc", jnp.zeros(4)), positive("level_scale", jnp.full(4, 0.1))),
        )
    with numpyro.plate("sera", 6):
        included = numpyro.sample(
            "included", dist.Bernoulli(logits=numpyro.param("included_logits", jnp.full(6, 0.5)))
        )
        loc = jnp.where(included, numpyro.param("size_loc", jnp.zeros(6)), 0.0)
        numpyro.sample(
            "size", dist.Normal(loc, jnp.where(included, positive("size_scale", jnp.full(6, 0.1)), 0.5))
        )


# %% [markdown]
# The continuous sites are reparameterised, as everywhere above. For the switches there is a choice, made by a
# handler around the guide (or by `infer={"gradient": ...}` at the site, which the handler overrides).
# `"enumerate"` sums over all 64 assignments of the six switches, since they meet in one linear predictor.
# `"score"` draws them, and weighs the gradient of their log probability by how well the draw did against the
# other particles. Both estimate the same gradient; they differ in noise and in cost.

# %%
strategies = {
    name: ppl_ext.handlers.gradient(selection_guide, {"included": name}) for name in ["enumerate", "score"]
}
objective = ELBO(num_particles=4)

params = {"included_logits": jnp.full(6, 0.5), "size_loc": jnp.array([-0.4, 0.2, 0.0, 0.1, 0.4, 0.0])}
keys = jax.random.split(jax.random.key(2), 500)
for name, strategic_guide in strategies.items():

    def loss(params, key, guide=strategic_guide):
        return objective.loss(key, params, selection, guide, basic, serum, progress)

    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, keys)["included_logits"]
    sds = " ".join(f"{sd:6.2f}" for sd in gradients.std(0))
    means = " ".join(f"{mean:6.2f}" for mean in gradients.mean(0))
    print(f"{name:<10} gradient by the logits: mean {means}   sd {sds}")

# %% [markdown]
# The two means agree to within their errors (the sds over the square root of 500). Enumeration has a sixth of
# the noise, for 64 evaluations of the model where the score function takes one; a fit with either ends in the
# same place.

# %%
optim = optax.adam(optax.cosine_decay_schedule(0.1, 1000))
result = fit(
    jax.random.key(3),
    selection,
    strategies["enumerate"],
    objective,
    optim,
    1000,
    basic,
    serum,
    progress,
    progress_bar=False,
)
switches = result.sample(num_samples=1000).values["included"].mean((0, 1))
print("Probability of inclusion:")
print(
    "  ".join(
        f"{measurement} {probability:.2f}"
        for measurement, probability in zip(names[4:], switches, strict=True)
    )
)

# %% [markdown]
# ## Where next
#
# `result.save(path)` keeps the report as netCDF. The objectives are short programs in `ppl_ext/objectives/`,
# and `@ppl_ext.objective` makes one of your own out of `simulate` and `log_density`.
