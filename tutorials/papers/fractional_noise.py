# %% [markdown]
# # Noise with memory, as processes without
#
# Fractional Brownian motion with Hurst index H is no Markov process. A sum of Ornstein-Uhlenbeck processes
# that share one Brownian motion W comes near it, and is one: so a filter gives its likelihood in O(n), and an
# SDE that it drives,
# $$dX = b(X)\,dt + \sigma\,dB^H,$$
# is fitted with a guide whose noise is steered, $dW + u\,dt$, at a price of $\frac12 \int u^2 dt$.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.control_flow import scan

import ppl_ext
from ppl_ext.algorithms import ExactFilter
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.priors import MarkovFBM

PAPER = "Daems, Opper, Crevecoeur, Birdal (2024). Variational inference for SDEs driven by fractional noise."
GRID, NOISE = np.arange(0.05, 0.96, 0.025), 1e-3

# %% [markdown]
# ## The likelihood of H, by the filter and by the dense process
#
# Values are seen with noise of a thousandth of their scale.


# %%
def path(steps, y, kind):
    hurst = numpyro.sample("hurst", dist.Uniform(0.0, 1.0))
    noise = MarkovFBM(hurst, 1.0, finest=1 / len(y), kind=kind)
    noise.path("b", steps, lambda b, y_t: numpyro.sample("y", dist.Normal(b, NOISE), obs=y_t), y)


def best(hurst, num, num_series, kind, seed):
    """Rows of: the filter's H, the dense H, the gap of their log likelihoods."""
    t = np.arange(1, num + 1) / num
    noises = [MarkovFBM(h, 1.0, finest=1 / num, kind=kind) for h in (*GRID, hurst)]
    laws = [noise.exact_covariance(t) + NOISE**2 * np.eye(num) for noise in noises]
    *factors, true = np.linalg.cholesky(laws)
    steps, grid, of_h = noises[0].steps(t), jnp.array(GRID), ppl_ext.marginal(path, ["hurst"], ExactFilter())

    @jax.jit
    def filtered(steps, y):
        return jax.lax.map(lambda h: ppl_ext.log_density(of_h, {"hurst": h}, steps, y, kind).total, grid)

    for z in np.random.default_rng(seed).normal(size=(num_series, num)):
        y = true @ z
        dense = [-0.5 * np.sum(np.linalg.solve(f, y) ** 2) - np.log(np.diag(f)).sum() for f in factors]
        ours, dense = filtered(steps, y), np.array(dense) - 0.5 * num * np.log(2 * np.pi)
        yield GRID[ours.argmax()], GRID[dense.argmax()], abs(float(ours.max()) - dense.max())


# %% [markdown]
# ## An SDE and its guide
#
# With b(x) = −2x everything is Gaussian, so that the evidence is known. The guide is the same scan, steered
# by a control that is affine in the state, with its own numbers at each step.

# %%
STEPS, DATA_NOISE, THETA = 40, 0.3, 2.0
T = np.arange(1, STEPS + 1) / STEPS
SMOOTH = MarkovFBM(0.7, 1.0, kind="II", finest=1 / STEPS)


def fractional_sde(drift, diffusion, noise):
    def model(steps, y, control=None):
        def step(carry, inputs):
            x, state = carry
            row, y_t, gain = inputs
            new = noise.step("noise", state, row, gain[0] + gain[1] * x + gain[2:] @ state.coordinates)
            x = x + drift(x) * row.length + diffusion(x) * (new.value - state.value)
            if control is None:
                numpyro.sample("y", dist.Normal(x, DATA_NOISE), obs=y_t)
            return (x, new), None

        gains = jnp.zeros((STEPS, 12)) if control is None else control
        scan(step, (jnp.zeros(()), noise.start("before")), (steps, y, gains))

    return model


sde = fractional_sde(lambda x: -THETA * x, lambda x: 1.0, SMOOTH)


def controlled_sde(steps, y):
    sde(steps, y, numpyro.param("control", jnp.zeros((STEPS, 12))))


def fitted(num_steps):
    """The evidence, that by importance weights of the guide, and its bound before the fit and after."""
    y = jnp.array(np.sin(3 * T) + DATA_NOISE * np.random.default_rng(1).normal(size=STEPS))
    decay = (1 - THETA / STEPS) ** np.subtract.outer(np.arange(STEPS), np.arange(STEPS)).clip(0)
    spread = np.tril(decay) @ (np.eye(STEPS) - np.eye(STEPS, k=-1))  # X from B, both by the recursion
    law = spread @ SMOOTH.covariance(T) @ spread.T + DATA_NOISE**2 * np.eye(STEPS)
    found, key = [float(dist.MultivariateNormal(0.0, law).log_prob(y))], jax.random.key(0)
    for num in (1, num_steps):
        optim = optax.adam(optax.cosine_decay_schedule(0.05 * (num > 1), num))
        args = sde, controlled_sde, ELBO(8), optim, num, SMOOTH.steps(T), y
        weights = fit(key, *args, progress_bar=False).sample(num_samples=4000).log_weights
        found += [float(weights.mean()), float(jax.nn.logsumexp(weights) - jnp.log(4000.0))]
    return found


# %%
def claims(small=False):
    rows, num, num_series = [], *((60, 1) if small else (200, 4))
    for kind in ("II",) if small else ("II", "I"):
        for hurst in (0.35, 0.8) if small else (0.2, 0.35, 0.65, 0.8):
            ours, dense, gaps = np.array(list(best(hurst, num, num_series, kind, 0))).T
            same = f"{np.isclose(ours, dense).sum()} of {num_series}, gap {gaps.max():.3f}"
            rows.append((f"best H of the filter is the dense process's, type {kind}, H = {hurst}",
                         f"{num_series} of {num_series}", same))  # fmt: skip
    known, plain, _, bound, weighted = fitted(300 if small else 3000)
    rows.append(("log evidence of an SDE, by importance weights of its guide", f"{known:.2f}",
                 f"{weighted:.2f}; bound {bound:.2f}, {plain:.2f} without control"))  # fmt: skip
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
