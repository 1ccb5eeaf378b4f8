# %% [markdown]
# # A prior on functions
#
# Nobody knows what N(0, 1) on the weights of a network means. It is easier to say what the function should
# look like: how smooth, how large, how wiggly. Here a Gaussian process says it, and the prior of a small
# network is tuned until its functions look the same. Three families of priors are tried, and then the tuned
# prior and the plain one meet the same eight points.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import tinygp
from numpyro.infer import MCMC, NUTS, Predictive

from ppl_ext.diagnostics import plot_functions
from ppl_ext.priors import (
    Conditioned,
    Energy,
    Flow,
    Gaussian,
    GaussianProcess,
    ScaleMixture,
    StudentTProcess,
    lift_prior,
    match,
    values_at,
)

# %% [markdown]
# ## A network, as a NumPyro model
#
# Any model will do, also one with modules of flax or equinox in it. `f` is the function; the priors here are
# what people write by habit.


# %%
def network(x, y=None, width=50):
    h = x[:, None]
    for i, (inputs, outputs) in enumerate(((1, width), (width, 1))):
        weight = numpyro.sample(f"layer{i}.w", dist.Normal(0.0, 1.0).expand([inputs, outputs]).to_event(2))
        bias = numpyro.sample(f"layer{i}.b", dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))
        h = h @ weight + bias
        h = jnp.tanh(h) if i == 0 else h
    f = numpyro.deterministic("f", h[:, 0])
    with numpyro.plate("points", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 0.1), obs=y)


# %% [markdown]
# ## What functions are wanted
#
# Smooth ones, of size one, that bend about every 0.6. Any kernel of tinygp says so, and any function of two
# sets of inputs.

# %%
x = jnp.linspace(-2.0, 2.0, 40)
smooth = GaussianProcess(tinygp.kernels.ExpSquared(scale=0.6))

# %% [markdown]
# ## Lift, and match
#
# `lift_prior` chooses sites by pattern and gives each layer a scale to tune, the weights' divided by the root
# of their fan-in. `match` tunes them. The report judges by a distance that was not optimised.

# %%
lifted = lift_prior(network, {"*.w": Gaussian(fan_in="auto"), "*.b": Gaussian()})
fit = match(jax.random.key(0), lifted, output="f", inputs=x, target=smooth, num_steps=250, progress_bar=False)
fit.print_summary()
fit.plot_function_draws(np.linspace(-2, 2, 80), num_draws=300)
plt.show()

# %% [markdown]
# ## Three families
#
# A Gaussian for each layer; a scale mixture, whose layers draw a variance for each function; a flow over all
# weights of a layer together. For a target with heavy tails, a Student-t process, the Gaussian family cannot
# follow: excess kurtosis says so, and the report names the remedy. The energy distance serves both, since it
# grows with the first moment only.

# %%
families = {
    "Gaussian": {"*.w": Gaussian(fan_in="auto"), "*.b": Gaussian()},
    "scale mixture": {"*.w": ScaleMixture(fan_in="auto"), "*.b": Gaussian()},
    "flow": {"layer*": Flow(num_flows=4)},
}
heavy = StudentTProcess(smooth, shape=2.5, scale=1.5)
tuned = {}
for name, rules in families.items():
    tuned[name] = match(
        jax.random.key(1),
        lift_prior(network, rules),
        output="f",
        inputs=x,
        target=heavy,
        distance=Energy(),
        num_steps=120,
        progress_bar=False,
    )
    before, after, floor = tuned[name].report.distances["SlicedWasserstein"]
    kurtosis = tuned[name].report.kurtosis
    print(
        f"{name:<14} sliced W2: {before:.3f} -> {after:.3f}   kurtosis {kurtosis['after']:.1f}, of the "
        f"target {kurtosis['target']:.1f}"
    )

# %%
figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained", sharey=True)
grid = np.linspace(-2, 2, 80)
for ax, (name, of_family) in zip(axes, tuned.items(), strict=False):
    plot_functions(grid, of_family.functions(jax.random.key(2), grid, 300)["after"], ax)
    ax.set_title(name)
plot_functions(grid, np.asarray(heavy.sample(jax.random.key(2), jnp.asarray(grid), 300)), axes[3])
axes[3].set_title("the target")
plt.show()

# %% [markdown]
# ## A posterior
#
# `fit.model` is an ordinary NumPyro model with the tuned values as constants: the same arguments, the same
# sites. NUTS does not know that anything happened. What the Gaussian process itself would say is known
# exactly, so how near each network comes to it can be told; one short chain each makes the numbers rough.

# %%
at = jnp.array([-1.6, -1.3, -1.2, -0.3, -0.1, 0.2, 1.1, 1.3])
seen = jnp.sin(3.0 * at) + 0.1 * jax.random.normal(jax.random.key(3), at.shape)
exact = Conditioned(smooth, values_at(at), seen, noise=0.1)
mean, sd = np.asarray(exact.mean(jnp.asarray(grid))), np.sqrt(np.diagonal(exact.cov(jnp.asarray(grid))))
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
for ax, (name, model) in zip(axes, {"plain prior": network, "tuned prior": fit.model}.items(), strict=True):
    kernel = NUTS(model, max_tree_depth=6)
    mcmc = MCMC(kernel, num_warmup=150, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(4), at, seen)
    latent = {site: draws for site, draws in mcmc.get_samples().items() if site != "f"}
    functions = Predictive(model, latent, return_sites=["f"])(jax.random.key(5), jnp.asarray(grid))["f"]
    plot_functions(grid, functions, ax, observed=(at, seen))
    ax.plot(grid, np.stack([mean - 1.645 * sd, mean + 1.645 * sd], axis=1), "k--", lw=1)
    ax.set_title(f"{name}; dashed: 90 % of the process")
    off, wide = (np.sqrt(np.mean(e**2)) for e in (functions.mean(0) - mean, np.log(functions.std(0) / sd)))
    print(f"{name}: root mean square error of the mean {off:.2f}, of the log of the sd {wide:.2f}")

# %% [markdown]
# With the tuned prior the mean comes nearer. The bands do not: four scales make a network's functions look
# like the process's, and leave its posterior narrower between points that are far apart.
#
# More: `docs/functional_priors.md` for targets (network limits, conservation laws, any model), distances and
# what each is good for.
