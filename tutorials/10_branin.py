# %% [markdown]
# # Looking for a minimum with functions drawn from a posterior
#
# Bayesian optimisation asks: given what was measured so far, where might the function be lower than the best
# yet? Any model that can draw functions from its posterior can answer. Here three do, side by side, on
# Branin's function: a Gaussian process, a small network with the usual prior, and the same network with a
# prior that was tuned to draw functions like the Gaussian process does. One run each is a story and no study.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import tinygp
from numpyro.infer import MCMC

from ppl_ext.designs import ExpectedImprovement, next_measurements
from ppl_ext.infer import SGHMC
from ppl_ext.priors import Gaussian, GaussianProcess, lift_prior, match

HIDDEN, FIRST, MOST, NOISE = 40, 6, 18, 0.05


def branin(x):
    """Inputs in [-1, 1]^2; the values are standardised. There are three equal minima."""
    a, b = 7.5 * x[..., 0] + 2.5, 7.5 * x[..., 1] + 7.5
    value = (
        (b - 5.1 / (4 * jnp.pi**2) * a**2 + 5 / jnp.pi * a - 6) ** 2
        + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(a)
        + 10
    )
    return (value - 54.3) / 51.3


LOWEST = (0.397887 - 54.3) / 51.3

# %% [markdown]
# ## The network
#
# Two inputs, forty hidden units. `seen` says which rows hold data already: with arrays of one size all along,
# everything compiles once.


# %%
def forward(weights, x):
    return (jnp.tanh(x @ weights["w1"] + weights["b1"]) @ weights["w2"])[:, 0] + weights["b2"]


def network(x, y=None, seen=True):
    weights = {
        "w1": numpyro.sample("w1", dist.Normal(0.0, 2**-0.5).expand([2, HIDDEN]).to_event(2)),
        "b1": numpyro.sample("b1", dist.Normal(0.0, 1.0).expand([HIDDEN]).to_event(1)),
        "w2": numpyro.sample("w2", dist.Normal(0.0, HIDDEN**-0.5).expand([HIDDEN, 1]).to_event(2)),
        "b2": numpyro.sample("b2", dist.Normal(0.0, 1.0)),
    }
    f = numpyro.deterministic("f", forward(weights, x))
    with numpyro.plate("measured", x.shape[0]), numpyro.handlers.mask(mask=seen):
        numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


# %% [markdown]
# ## Tuning its prior
#
# The target is a process whose functions turn over a length of .6, in a square of side 2. Only scales are
# tuned, four numbers; the tuned model takes the same arguments and has the same sites.

# %%
kernel = tinygp.kernels.Matern52(scale=0.6, distance=tinygp.kernels.distance.L2Distance())
lifted = lift_prior(network, {"w*": Gaussian(per="site", fan_in="auto"), "b*": Gaussian(per="site")})
tuning = match(
    jax.random.key(0),
    lifted,
    output="f",
    inputs=lambda key: jax.random.uniform(key, (50, 2), minval=-1.0, maxval=1.0),
    target=GaussianProcess(kernel),
    num_steps=300,
    progress_bar=False,
)
print(
    {
        site: round(float(value["scale"]), 2)
        for pattern in tuning.hyperparameters.values()
        for site, value in pattern.items()
    }
)

# %% [markdown]
# ## Functions from three posteriors
#
# Each gives draws of the function on a grid of candidates: (draw, candidate). For the networks that is a
# `vmap` over the posterior's weights.

# %%
side = jnp.linspace(-1.0, 1.0, 25)
grid = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)
functions_of = jax.jit(jax.vmap(lambda weights: forward(weights, grid)))


class Network:
    def __init__(self, model):
        kernel = SGHMC(model, step_size=0.03, friction=0.05, num_steps=100)
        options = {
            "num_chains": 4,
            "chain_method": "vectorized",
            "progress_bar": False,
            "jit_model_args": True,
        }
        self.mcmc = MCMC(kernel, num_warmup=20, num_samples=25, **options)
        self.start = None

    def __call__(self, key, x, y, seen):
        self.mcmc.run(key, x, y, seen, init_params=self.start)
        self.start = self.mcmc.last_state.z  # one more measurement changes little
        return functions_of({name: self.mcmc.get_samples()[name] for name in ("w1", "b1", "w2", "b2")})


@jax.jit
def process(key, x, y, seen):
    # A row without data is one measured with a noise that drowns it.
    posterior = (
        tinygp.GaussianProcess(kernel, x, diag=jnp.where(seen, NOISE**2, 1e6))
        .condition(y, grid, diag=1e-4)
        .gp
    )
    return posterior.sample(key, (100,))


# %% [markdown]
# ## The search
#
# Expected improvement is the mean, over the drawn functions, of how far each lies below the best value so
# far. Measure where that is largest, and start again. Acquisitions look for a maximum, and take the negated
# functions. They know draws alone, so that one line serves the process and the networks;
# `KnowledgeGradient`, `EntropySearch` and `NoisyExpectedImprovement` stand in the same place.


# %%
def search(draw_functions):
    x = jax.random.uniform(jax.random.key(8), (MOST, 2), minval=-1.0, maxval=1.0)
    found = []
    for n in range(FIRST, MOST + 1):
        seen = jnp.arange(MOST) < n
        y = jnp.where(seen, branin(x), 0.0)
        found.append(float(y[:n].min() - LOWEST))
        if n < MOST:
            functions = draw_functions(jax.random.key(n), x, y, seen)
            improvement = ExpectedImprovement(best=-y[:n].min())
            x = x.at[n].set(grid[next_measurements(improvement, -functions)[0]])
    return np.array(found), np.asarray(x), np.asarray(functions)


models = {
    "Gaussian process": process,
    "network, usual prior": Network(network),
    "network, tuned prior": Network(tuning.model),
}
searches = {name: search(model) for name, model in models.items()}
for name, (found, *_) in searches.items():
    after = ", ".join(f"{found[n - FIRST]:.3f} after {n}" for n in (FIRST, (FIRST + MOST) // 2, MOST))
    print(f"{name:<22} above the minimum: {after} measurements")
assert all(found[-1] < found[0] for found, *_ in searches.values())

# %% [markdown]
# ## What they believed at the end
#
# Colours: the posterior mean. White points: where each measured, the first six the same for all. Below: how
# far the best value was above the true minimum, and how much the drawn functions differ from each other along
# the middle of the square.

# %%
figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
for ax, (name, (_, x, functions)) in zip(axes[0], searches.items(), strict=True):
    shades = ax.contourf(
        side,
        side,
        functions.mean(0).reshape(25, 25),
        levels=np.linspace(-1.5, 3.5, 21),
        extend="both",
        cmap="viridis",
    )
    ax.plot(*x[:FIRST].T, "x", color="white", ms=6)
    ax.plot(*x[FIRST:].T, "o", color="white", ms=4, mec="black", mew=0.4)
    ax.set(title=name, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
figure.colorbar(shades, ax=axes[0], label="posterior mean")
for name, (found, *_) in searches.items():
    axes[1, 0].semilogy(range(FIRST, MOST + 1), np.maximum(found, 1e-4), "o-", ms=3, label=name)
axes[1, 0].set(xlabel="measurements", ylabel="best value above the minimum")
axes[1, 0].legend(frameon=False)
for ax, name in zip(axes[1, 1:], ("Gaussian process", "network, tuned prior"), strict=True):
    middle = searches[name][2].reshape(-1, 25, 25)[:, 12]
    ax.plot(side, middle[:30].T, color="C0" if name == "Gaussian process" else "C2", lw=0.6, alpha=0.6)
    ax.plot(
        side, branin(jnp.stack([side, jnp.zeros(25)], -1)), color="black", lw=1.5, label="Branin's function"
    )
    ax.set(title=f"{name}, second input 0", xlabel="first input", ylim=(-2.5, 3.0))
    ax.legend(frameon=False)
plt.show()
