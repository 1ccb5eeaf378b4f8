# %% [markdown]
# # Where to measure next, when measurements are noisy
#
# Twenty noisy measurements of a function that a Gaussian process drew, then a choice: where it is greatest.
# The knowledge gradient measures where that choice is expected to gain most. Expected improvement over the
# best posterior mean asks only how high the measured point itself may lie. The regret is how far the chosen
# point lies below the maximum.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.designs import ExpectedImprovement, KnowledgeGradient, condition, next_measurements

PAPER = "Frazier (2018). A tutorial on Bayesian optimization. INFORMS TutORials; arXiv:1807.02811."
X = jnp.linspace(0.0, 1.0, 60)
COVARIANCE = jnp.exp(-0.5 * ((X[:, None] - X) / 0.2) ** 2) + 1e-5 * jnp.eye(60)
PRIOR = dist.MultivariateNormal(jnp.zeros(60), COVARIANCE)
NOISES, STEPS = (0.05, 0.5, 1.0), 20


# %%
def measured_next(kind, noise, law, key):
    if kind == "random":
        return jax.random.randint(key, (), 0, 60)
    acquisition = KnowledgeGradient(noise) if kind == "knowledge gradient" else ExpectedImprovement()
    return next_measurements(acquisition, law)[0]


@partial(jax.jit, static_argnums=(0, 3))
def regrets(kind, noise, rng_key, seeds):
    """Of ``seeds`` functions; the same functions and noises for all kinds."""

    def search(key):
        of_function, *keys = jax.random.split(key, STEPS + 1)
        f = PRIOR.sample(of_function)

        def step(moments, key):
            law = dist.MultivariateNormal(moments[0], scale_tril=moments[1])
            row = measured_next(kind, noise, law, jax.random.fold_in(key, 1))
            law = condition(law, row, f[row] + noise * jax.random.normal(key), noise)
            return (law.loc, law.scale_tril), None

        (mean, _), _ = jax.lax.scan(step, (PRIOR.loc, PRIOR.scale_tril), jnp.stack(keys))
        return f.max() - f[mean.argmax()]

    return jax.lax.map(search, jax.random.split(rng_key, seeds))


# %% [markdown]
# With draws in the place of the law the same line serves any posterior. Here the gain by weights of draws
# beside that of the law itself, after three measurements.


# %%
def from_draws(key, num):
    law = PRIOR
    for row, value in ((5, -1.0), (30, 0.8), (50, 0.3)):
        law = condition(law, row, value, 0.5)
    exact = KnowledgeGradient(0.5)(law)
    of_draws, of_fantasies = jax.random.split(key)
    draws = law.sample(of_draws, (num,))
    gain = KnowledgeGradient(0.5, num_fantasies=num, rng_key=of_fantasies)(draws)
    return float(jnp.abs(gain - exact).max()), float(exact.max())


# %%
def claims(small=False):
    known = {
        "knowledge gradient": (0.0008, 0.029, 0.144),
        "expected improvement": (0.0038, 0.065, 0.144),
        "random": (0.0069, 0.123, 0.230),
    }
    rows = []
    for kind, figures in known.items():
        for noise, figure in zip(NOISES, figures, strict=True):
            found = np.asarray(regrets(kind, noise, jax.random.key(0), 20 if small else 200))
            told = f"{found.mean():.4f} ± {found.std() / len(found) ** 0.5:.1g}"
            rows.append(
                (f"mean regret at noise {noise}, {kind}", f"{figure} (aim, of another process)", told)
            )
    off, most = from_draws(jax.random.key(1), 500 if small else 4000)
    rows.append(("gain by weights of draws off that of the law", "0", f"{off:.3f}, of at most {most:.3f}"))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
