# %% [markdown]
# # Which five of forty places to measure
#
# A mask over measurements is learned by gradients: k places are drawn without replacement, with learned
# logits. The paper's way through the discrete draw is a straight-through gradient of Gumbel top-k. `Subset`
# is scored by default, which is unbiased; `StraightThrough` and `SoftTopK` are strategies that one asks for.
#
# The task is the design of an experiment, where every mask's cost is known exactly: the mean posterior
# variance of a Gaussian process (A-optimality). Taking one place after another is short-sighted: the best
# first place has to serve alone, and stays when four others come.

# %%
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax

from ppl_ext import expectation, replicate
from ppl_ext.gradients import ScoreFunction
from ppl_ext.gradients.subsets import StraightThrough, Subset

PAPER = (
    "Huijben, Veeling, van Sloun (2020). Deep probabilistic subsampling for task-adaptive compressed "
    "sensing. ICLR."
)
PLACES = jnp.linspace(0.0, 1.0, 40)
KERNEL = jnp.exp(-0.5 * (PLACES[:, None] - PLACES) ** 2 / 0.135**2) + 1e-3 * jnp.eye(40)
NOISE = 0.1


# %%
@jax.jit
def variance(mask):
    """Mean posterior variance; a mask between 0 and 1 is a measurement of less precision."""
    gain = jnp.sqrt(mask)[:, None] * KERNEL
    inner = gain * jnp.sqrt(mask) + NOISE * jnp.eye(40)
    return jnp.mean(jnp.diag(KERNEL) - (gain * jnp.linalg.solve(inner, gain)).sum(0))


def design(places):
    return variance(jnp.zeros(40).at[jnp.array(places)].set(1.0))


def greedy():
    chosen: list[int] = []
    for _ in range(5):
        costs = [design([*chosen, i]) for i in range(40)]
        chosen.append(int(np.argmin(costs)))
    return float(design(chosen))


def every():
    """The costs of all the masks, 658,008 of them."""
    kernel = np.asarray(KERNEL, float)
    for part in np.array_split(np.array(list(itertools.combinations(range(40), 5))), 40):
        rows, inner = kernel[part], kernel[part[:, :, None], part[:, None]] + NOISE * np.eye(5)
        yield np.trace(kernel) / 40 - (rows * np.linalg.solve(inner, rows)).sum((1, 2)) / 40


# %% [markdown]
# ## Learned masks


# %%
def mean_variance(strategy):
    def one(logits):
        z = numpyro.sample("z", Subset(logits, 5), infer={"gradient": strategy})
        return variance(jnp.clip(z.sum(-2), 1e-6, 1.0))

    return expectation(lambda logits: replicate(lambda: one(logits), 16).mean())


def learned(strategy, seed, num_steps):
    optim, of = optax.adam(0.1), mean_variance(strategy)

    def step(state, key):
        logits, memory = state
        updates, memory = optim.update(of.value_and_grad(key, logits)[1], memory)
        return (optax.apply_updates(logits, updates), memory), None

    start = 0.01 * jax.random.normal(jax.random.key(seed), (40,))
    keys = jax.random.split(jax.random.key(seed + 1), num_steps)
    (logits, _), _ = jax.lax.scan(step, (start, optim.init(start)), keys)
    return float(design(jnp.argsort(logits)[-5:]))


def mean_slope(strategy, num):
    """At logits that have begun to differ."""
    keys, of = jax.random.split(jax.random.key(9), num), mean_variance(strategy)
    logits = 2.0 * jax.random.normal(jax.random.key(8), (40,))
    slope = jax.lax.map(lambda key: of.value_and_grad(key, logits)[1], keys, batch_size=50).mean(0)
    return slope / jnp.linalg.norm(slope)


# %%
def claims(small=False):
    costs, greed = np.concatenate(list(every())), greedy()
    found = f"{costs.mean():.3f}, {greed:.3f}, {costs.min():.3f}"
    rows = [("masks: the mean of all, the greedy one, the best", "0.347, 0.217 (aim), –", found)]
    known = f"greedy {greed:.3f}, best {costs.min():.3f}"
    seeds, num = (1, 0) if small else (4, 2000)
    ways = {
        "scored": ScoreFunction(),
        "straight-through 0.5": StraightThrough(0.5),
        "the same, 2": StraightThrough(2.0),
    }
    unbiased = mean_slope(ScoreFunction(), num) if num else None
    for name, strategy in list(ways.items())[:: 2 if small else 1]:
        found = [learned(strategy, seed, 200 if small else 400) for seed in range(seeds)]
        text = ", ".join(f"{x:.3f}" for x in sorted(found))
        rows.append((f"{name}: the learned masks", known, text))
        if num and name != "scored":
            cosine = float(unbiased @ mean_slope(strategy, num // 4))
            rows.append((f"{name}: cosine with the unbiased gradient", "below 1", f"{cosine:.2f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
