# %% [markdown]
# # Weights whose zeros come in runs
#
# Two hundred weights, twenty of which are not zero, in four runs of five; eighty noisy equations. A prior of
# three layers says which weights are on, how precise each is, and what it is. If neighbours are alike, the
# first layer is a Markov chain, which is summed out exactly. Here each step of variational Bayes is in closed
# form: weights given precisions are a linear regression, switches and precisions given weights are
# `given_weights`. The paper takes switches and precisions apart; taken together, they are bound less loosely.
#
# What keeps the steps from the poor optimum where all is on is to begin with a silent scale that is large,
# and to let it fall.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.priors import KroneckerARD, Support, ThreeLayer, type2_em

PAPER = (
    "Xia, Tsang, Lau (2023). Structured Bayesian compression for deep neural networks based on the Turbo-VBI "
    "approach. IEEE Transactions on Signal Processing 71."
)
NUM_WEIGHTS, NUM_ROWS, DECIBELS = 200, 80, 10
PRIORS = {
    "chain": ThreeLayer(activity=0.1, stay=0.8, silent_scale=0.02, shape=1.0),
    "independent": ThreeLayer(activity=0.1, silent_scale=0.02, shape=1.0),
}


# %%
def problem(rng):
    x = rng.normal(size=(NUM_ROWS, NUM_WEIGHTS)) / NUM_ROWS**0.5
    w = np.zeros(NUM_WEIGHTS)
    for start in rng.choice(NUM_WEIGHTS // 10, 4, replace=False) * 10 + rng.integers(0, 5, 4):
        w[start : start + 5] = rng.normal(size=5)
    noise = np.mean((x @ w) ** 2) / 10 ** (DECIBELS / 10)
    return x, x @ w + noise**0.5 * rng.normal(size=NUM_ROWS), w, noise


def steps(family, x, y, noise, num_steps=200):
    """Means of the weights, and the probability of each to be on."""

    def step(precision, progress):
        prior = x / precision
        gain = jnp.linalg.solve(prior @ x.T + noise * jnp.eye(NUM_ROWS), prior)
        mean, variance = gain.T @ y, (1.0 - (x * gain).sum(0)) / precision
        silent = 0.5 * (family.silent_scale / 0.5) ** jnp.minimum(1.0, 2.0 * progress)
        law = family.precision_law(NUM_WEIGHTS, family.scale, silent)
        on, precision = law.given_weights(mean**2 + variance)
        return precision, (mean, on)

    progress = jnp.arange(num_steps) / num_steps
    _, (means, on) = jax.lax.scan(step, jnp.ones(NUM_WEIGHTS), progress)
    return means[-1], on[-1]


def scores(found, on, w):
    """F1 of the support, and the normalised squared error."""
    true = w != 0
    return 2 * (np.asarray(on) & true).sum() / (on.sum() + true.sum()), ((found - w) ** 2).sum() / (
        w**2
    ).sum()


# %%
def compared(num_runs):
    rng, rows = np.random.default_rng(0), []
    run = jax.jit(steps, static_argnums=0)
    for _ in range(num_runs):
        x, y, w, noise = problem(rng)
        found = [run(family, x, y, noise) for family in PRIORS.values()]
        plain = type2_em(KroneckerARD((NUM_WEIGHTS,)), y, [x], noise, num_steps=100)
        found.append((np.asarray(plain.mean), np.asarray(plain.factors[0])))
        rows.append([scores(mean, on > (0.5 if i < 2 else 0.01), w) for i, (mean, on) in enumerate(found)])
    return np.mean(rows, 0)


def distance_from_enumeration():
    """Marginals of ten switches, from all 1024 patterns."""
    chain, odds = Support(10, 0.1, 0.8), np.random.default_rng(0).normal(size=10) * 3.0
    patterns = (np.arange(1024)[:, None] >> np.arange(10)) % 2
    rise = 0.1 * 0.2 / 0.9
    up = np.where(patterns[:, :-1] == 1, 0.8, rise)
    moves = np.where(patterns[:, 1:] == 1, up, 1.0 - up).prod(1)
    weights = np.where(patterns[:, 0] == 1, 0.1, 0.9) * moves * np.exp(patterns @ odds)
    return np.abs(chain.marginals(odds) - weights @ patterns / weights.sum()).max()


# %%
def claims(small=False):
    (chain, chain_error), (alone, alone_error), (ard, ard_error) = compared(4 if small else 20)
    return [
        ("marginals of a chain of ten: error", "0 (enumeration)", f"{distance_from_enumeration():.0e}"),
        ("F1 of the support with the chain", f"independent {alone:.3f}, ARD {ard:.3f}", f"{chain:.3f}"),
        (
            "squared error of the weights with the chain",
            f"independent {alone_error:.3f}, ARD {ard_error:.3f}",
            f"{chain_error:.3f}",
        ),
    ]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
