# %% [markdown]
# # The posterior as the next prior, and prototypes
#
# Digits come two labels at a time. A Bayesian network whose posterior, by NUTS, is the prior of the next task
# ought to forget nothing. But what is handed on is a density that was fitted to the draws, and no more than
# that; the network forgets. A model of how the data of each label come about does not: each label has a
# normal law of its own, with a conjugate prior, and a new label leaves the others as they are.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive
from sklearn.datasets import load_digits

from ppl_ext.meta import NIW

PAPER = (
    "Kessler, Cobb, Rudner, Zohren, Roberts (2023). On sequential Bayesian inference for continual learning. "
    "Entropy 25(6), 884."
)
HIDDEN = 10


# %%
def digits(num_tasks, per_task):
    """Training rows by task, two labels each, and test rows."""
    data, rng = load_digits(), np.random.default_rng(0)
    order = rng.permutation(len(data.target))
    x, y = data.data[order] / 8.0 - 1.0, data.target[order]
    tasks = []
    for task in range(num_tasks):
        rows = np.flatnonzero(y // 2 == task)
        tasks.append((rows[:per_task], rows[per_task:]))
    test = np.concatenate([rest for _, rest in tasks])
    return [(jnp.asarray(x[rows]), jnp.asarray(y[rows])) for rows, _ in tasks], (
        jnp.asarray(x[test]),
        y[test],
    )


def network(x, y, prior):
    """Layers' weights, whose prior is normal with these means and standard deviations."""
    weights = {
        name: numpyro.sample(name, dist.Normal(mean, scale).to_event(2))
        for name, (mean, scale) in prior.items()
    }
    hidden = jnp.tanh(x @ weights["w1"][:-1] + weights["w1"][-1])
    logits = numpyro.deterministic("logits", hidden @ weights["w2"][:-1] + weights["w2"][-1])
    numpyro.sample("y", dist.Categorical(logits=logits).to_event(1), obs=y)


def first_prior(num_labels):
    shapes = {"w1": (65, HIDDEN), "w2": (HIDDEN + 1, num_labels)}
    return {n: (jnp.zeros(s), jnp.full(s, s[0] ** -0.5 * 2.0)) for n, s in shapes.items()}


def posterior(mcmc, key, data, prior):
    mcmc.run(key, *data, prior)
    return mcmc.get_samples()


def handed_on(draws):
    """Normal laws that were fitted to the draws."""
    return {n: (draws[n].mean(0), draws[n].std(0) + 1e-3) for n in ("w1", "w2")}


def accuracy(draws, x, y, prior):
    logits = Predictive(network, {n: draws[n] for n in prior})(jax.random.key(9), x, None, prior)["logits"]
    return np.asarray(jax.nn.softmax(logits).mean(0).argmax(-1) == y)


# %% [markdown]
# ## Prototypes: a normal law a label, and its Normal-Inverse-Wishart posterior


# %%
def prototypes(tasks, x, y):
    laws = {}
    for images, labels in tasks:  # one after another: what was before is not looked at
        for label in np.unique(labels):
            before = NIW(jnp.zeros(64), 0.1, 2.0 * jnp.eye(64), 66.0)
            rows = images[np.asarray(labels) == label]
            laws[int(label)] = before.posterior(rows, jnp.zeros((len(rows), 64, 64))).predictive()
    scores = jnp.stack([laws[label].log_prob(x) for label in sorted(laws)], -1)
    return np.asarray(scores.argmax(-1) == y)


# %%
def claims(small=False):
    num_tasks, per_task, num = (2, 40, 20) if small else (5, 100, 100)
    tasks, test = digits(num_tasks, per_task)
    prior = start = first_prior(2 * num_tasks)
    settings = {"num_warmup": num, "num_samples": num, "progress_bar": False, "jit_model_args": True}
    mcmc, accuracies = MCMC(NUTS(network, max_tree_depth=5), **settings), []
    for number, task in enumerate(tasks):
        draws = posterior(mcmc, jax.random.key(number), task, prior)
        right = accuracy(draws, *test, prior)
        accuracies.append(right[test[1] < 2].mean())
        prior = handed_on(draws)
    everything = tuple(jnp.concatenate(parts) for parts in zip(*tasks, strict=True))
    joint = accuracy(posterior(mcmc, jax.random.key(7), everything, start), *test, start).mean()
    held = prototypes(tasks, *test).mean()
    told = ", ".join(f"{a:.3f}" for a in accuracies)
    return [
        ("accuracy on the first task, after each task: NUTS", "falls", told),
        ("accuracy on all tasks: NUTS one after another", f"all at once {joint:.3f}", f"{right.mean():.3f}"),
        ("accuracy on all tasks: prototypes", f"at least {joint - 0.03:.3f}", f"{held:.3f}"),
    ]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
