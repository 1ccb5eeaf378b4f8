# %% [markdown]
# # A classifier that knows what it does not know
#
# Tumours of the breast, benign or malignant, told apart by two measurements of their cells; a hundred of them
# to learn from, and a network with more weights than that. Trained by maximum likelihood it bends around
# single points, and is sure of itself where it should not be. A prior and an average over the posterior mend
# that. The posterior comes from minibatches, by scale-adapted stochastic gradient Hamiltonian Monte Carlo,
# and is read as functions, since weights mean nothing one by one.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, log_likelihood
from sklearn.datasets import load_breast_cancer

from ppl_ext.infer import SGHMC
from ppl_ext.priors import posterior_functions

# %% [markdown]
# ## Data and model
#
# The Wisconsin set, its mean texture and mean number of concave points, scaled by the hundred alone. The
# model takes its data as arguments and is an ordinary NumPyro model: nothing in it knows of minibatches.

# %%
table = load_breast_cancer()
order = np.random.default_rng(0).permutation(len(table.target))
names = ["mean texture", "mean concave points"]
inputs = table.data[order][:, [list(table.feature_names).index(name) for name in names]]
inputs = ((inputs - inputs[:100].mean(0)) / inputs[:100].std(0)).astype(np.float32)
x, x_test = inputs[:100], inputs[100:]
y, y_test = np.split(table.target[order], [100])  # 1 is benign
HIDDEN = 40


def network(x, y=None):
    w1 = numpyro.sample("w1", dist.Normal(0.0, 4.0).expand([2, HIDDEN]).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(0.0, 4.0).expand([HIDDEN]).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(0.0, 10.0).expand([HIDDEN]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0))
    logits = numpyro.deterministic("logits", jnp.tanh(x @ w1 / 2**0.5 + b1) @ w2 / HIDDEN**0.5 + b2)
    with numpyro.plate("points", x.shape[0]):
        numpyro.sample("label", dist.Bernoulli(logits=logits), obs=y)


# %% [markdown]
# ## Three temperatures
#
# At temperature 1 the chain samples the posterior. At 0 it only descends, towards a mode. In between lie
# "cold" posteriors, sharper than the prior and the likelihood say. A draw is kept every hundred steps of
# twenty points each.


# %%
def sampled(temperature):
    kernel = SGHMC(
        network, batch_size=20, step_size=0.06, friction=0.05, temperature=temperature, num_steps=100
    )
    mcmc = MCMC(
        kernel, num_warmup=40, num_samples=100, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), x, y)
    return mcmc.get_samples(group_by_chain=True)


runs = {temperature: sampled(temperature) for temperature in (1.0, 0.1, 0.0)}
# the last weights of one chain
mode = {name: draws[:1, -1:] for name, draws in runs[0.0].items() if name != "logits"}

# %% [markdown]
# ## And without the prior
#
# From that mode on, Adam climbs the likelihood alone: the usual training of a network.


# %%
@jax.jit
def trained(weights, num_steps=5000):
    adam = optax.adam(0.02)

    def step(carry, _):
        weights, state = carry
        slope = jax.grad(lambda w: -log_likelihood(network, w, x, y, batch_ndims=0)["label"].mean())(weights)
        updates, state = adam.update(slope, state)
        return (optax.apply_updates(weights, updates), state), None

    return jax.lax.scan(step, (weights, adam.init(weights)), None, length=num_steps)[0][0]


likeliest = jax.tree.map(lambda w: w[None, None], trained(jax.tree.map(lambda w: w[0, 0], mode)))

# %% [markdown]
# ## Scores
#
# The negative log likelihood of new labels punishes being sure and wrong. The calibration error compares
# stated probabilities with frequencies.

# %%
fits = {"posterior": runs[1.0], "cold, T = 0.1": runs[0.1], "one mode": mode, "maximum likelihood": likeliest}
read = {name: posterior_functions(network, samples, x_test, y=y_test) for name, samples in fits.items()}
for name, functions in read.items():
    print(f"\n{name}")
    functions.print_summary()
assert read["posterior"].nll < read["maximum likelihood"].nll / 2
assert read["posterior"].calibration_error() < read["maximum likelihood"].calibration_error() / 2

# %% [markdown]
# Maximum likelihood pays dearly for being sure. Most of the cure is the prior: one mode scores about as well
# as the whole posterior where the data are, and so does the cold one. Averaging shows where there are none.
#
# ## Where it is unsure
#
# White is "either". Away from the data the posterior's networks disagree about where the border runs, and its
# probabilities fan out. A single network has one border, blurred at the mode and sharp without a prior.

# %%
side = np.linspace(-6.0, 6.0, 60, dtype=np.float32)
grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
shown = ("posterior", "one mode", "maximum likelihood")
surface = {name: posterior_functions(network, fits[name], grid).values.mean((0, 1)) for name in shown}
far = np.linalg.norm(grid[:, None] - x, axis=-1).min(1) > 3.0
sure = {name: np.mean(np.maximum(surface[name], 1 - surface[name])[far]) for name in shown}
print(
    "mean probability of the likelier class, three or more from every point:",
    {name: f"{p:.2f}" for name, p in sure.items()},
)
assert sure["posterior"] < sure["one mode"]

figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", sharey=True)
for ax, name in zip(axes, shown, strict=True):
    shades = ax.contourf(
        side, side, surface[name].reshape(60, 60), levels=np.linspace(0.0, 1.0, 11), cmap="RdBu", alpha=0.8
    )
    ax.scatter(*x.T, c=np.where(y == 1, "darkblue", "darkred"), s=14, edgecolors="white", linewidths=0.4)
    ax.set(title=name, xlabel=names[0])
axes[0].set_ylabel(names[1])
figure.colorbar(shades, ax=axes, label="probability of benign")
plt.show()

# %% [markdown]
# ## Calibration
#
# Of the tumours that a fit gives a probability near .9, nine in ten should be what it says: on the diagonal.
# Each point stands for ten or more; maximum likelihood states hardly anything but certainties.

# %%
figure, ax = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
ax.plot([0.5, 1.0], [0.5, 1.0], color="0.6", lw=1)
for name, functions in read.items():
    predicted = functions.probabilities.mean((0, 1))
    stated, right = predicted.max(-1), predicted.argmax(-1) == y_test
    bins = np.minimum((stated * 10).astype(int), 9)
    filled = [b for b in range(5, 10) if (bins == b).sum() >= 10]
    ax.plot(
        [stated[bins == b].mean() for b in filled],
        [right[bins == b].mean() for b in filled],
        "o-",
        ms=4,
        label=name,
    )
ax.set(xlabel="stated probability", ylabel="how often right")
ax.legend(frameon=False)
plt.show()
