# %% [markdown]
# # A classifier that knows what it does not know
#
# Two moons that overlap, a hundred labelled points, and a network with far more weights than it needs. One set of weights that fits best is
# sure of itself where it should not be; an average over the posterior is not. The posterior comes from minibatches, by scale-adapted
# stochastic gradient Hamiltonian Monte Carlo, and is read as functions, since weights mean nothing one by one.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from sklearn.datasets import make_moons

from ppl_ext.infer import SGHMC
from ppl_ext.priors import posterior_functions

# %% [markdown]
# ## Data and model
#
# The model takes its data as arguments and is an ordinary NumPyro model: nothing in it knows of minibatches.

# %%
x, y = make_moons(100, noise=0.35, random_state=0)
x_test, y_test = make_moons(2000, noise=0.35, random_state=1)
x, x_test = x.astype(np.float32), x_test.astype(np.float32)
HIDDEN = 40


def network(x, y=None):
    w1 = numpyro.sample("w1", dist.Normal(0.0, 4.0).expand([2, HIDDEN]).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(0.0, 4.0).expand([HIDDEN]).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(0.0, 6.0).expand([HIDDEN]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0))
    logits = numpyro.deterministic("logits", jnp.tanh(x @ w1 / 2**0.5 + b1) @ w2 / HIDDEN**0.5 + b2)
    with numpyro.plate("points", x.shape[0]):
        numpyro.sample("label", dist.Bernoulli(logits=logits), obs=y)


# %% [markdown]
# ## Three temperatures
#
# At temperature 1 the chain samples the posterior. At 0 it only descends, and the four chains are four best fits. In between lie "cold"
# posteriors, sharper than the prior and the likelihood say. A draw is kept every hundred steps of twenty points each.


# %%
def sampled(temperature):
    kernel = SGHMC(network, batch_size=20, step_size=0.06, friction=0.05, temperature=temperature, num_steps=100)
    mcmc = MCMC(kernel, num_warmup=40, num_samples=100, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), x, y)
    return mcmc


runs = {temperature: sampled(temperature) for temperature in (1.0, 0.1, 0.0)}

# %% [markdown]
# ## Scores
#
# The negative log likelihood of new labels punishes being sure and wrong. The calibration error compares stated probabilities with
# frequencies. For the best fit, take a single chain's last draw: that is what training a network gives. On these data averaging is what
# helps; whether at temperature 1 or .1 makes little difference.

# %%
best = {name: x[:1, -1:] for name, x in runs[0.0].get_samples(group_by_chain=True).items()}
fits = {"posterior": runs[1.0], "cold, T = 0.1": runs[0.1], "one best fit": best}
read = {name: posterior_functions(network, samples, x_test, y=y_test) for name, samples in fits.items()}
for name, functions in read.items():
    print(f"\n{name}")
    functions.print_summary()
assert read["posterior"].nll < read["one best fit"].nll
assert read["posterior"].calibration_error() < read["one best fit"].calibration_error()

# %% [markdown]
# ## Where it is unsure
#
# The posterior's probability flattens away from the data; the best fit goes on to draw sharp borders through empty space.

# %%
side = np.linspace(-3.0, 4.0, 60, dtype=np.float32)
grid = np.stack(np.meshgrid(side, side - 0.5), -1).reshape(-1, 2)
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
for ax, name in zip(axes, ("posterior", "one best fit"), strict=False):
    probability = posterior_functions(network, fits[name], grid).values.mean((0, 1)).reshape(60, 60)
    shades = ax.contourf(side, side - 0.5, probability, levels=np.linspace(0.0, 1.0, 11), cmap="RdBu_r", alpha=0.8)
    ax.scatter(*x.T, c=np.where(y == 1, "darkred", "darkblue"), s=14, edgecolors="white", linewidths=0.4)
    ax.set_title(name)
figure.colorbar(shades, ax=axes[:2], label="probability of the second moon")

ax = axes[2]
ax.plot([0.5, 1.0], [0.5, 1.0], color="0.6", lw=1)
for name, functions in read.items():
    predicted = functions.probabilities.mean((0, 1))
    sure, right = predicted.max(-1), predicted.argmax(-1) == y_test
    bins = np.minimum((sure * 20).astype(int), 19)
    shown = [b for b in range(10, 20) if (bins == b).sum() > 20]
    ax.plot([sure[bins == b].mean() for b in shown], [right[bins == b].mean() for b in shown], "o-", ms=4, label=name)
ax.set(xlabel="stated probability", ylabel="how often right", title="calibration")
ax.legend(frameon=False)
plt.show()
