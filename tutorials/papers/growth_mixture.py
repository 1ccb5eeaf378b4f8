# %% [markdown]
# # Growth mixtures: curves of several kinds, whose kinds nobody saw
#
# Subjects are measured at five times. Each is of one of two classes, which differ in how they grow, and
# within a class each has a level of its own. The class is summed out exactly, as a marked site of the model;
# the level is in the covariance. What is left are seven parameters, whose posterior is close to normal here.
#
# Whether the intervals are right is asked of simulated sets: a 95 % interval should hold the truth in 95 % of
# them. Beside it is the model without levels, whose classes have no variation within.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

import ppl_ext

PAPER = (
    "Muthén, Shedden (1999). Finite mixture modeling with mixture outcomes using the EM algorithm. "
    "Biometrics 55."
)
TIMES = jnp.linspace(-1.0, 1.0, 5)
TRUTH = {
    "curves": jnp.array([[0.5, 1.0], [0.0, -0.6]]),  # level and slope of each class
    "log_noise": jnp.log(0.6),
    "log_spread": jnp.log(0.5),
    "logit": jnp.array(-0.6),  # of the second class
}


def model(y=None, levels=True):
    curves = numpyro.sample("curves", dist.Normal(jnp.zeros((2, 2)), 3.0).to_event(2))
    logit = numpyro.sample("logit", dist.Normal(0.0, 1.5))
    noise, spread = (jnp.exp(numpyro.sample(f"log_{n}", dist.Normal(-1.0, 1.0))) for n in ("noise", "spread"))
    covariance = noise**2 * jnp.eye(5) + levels * spread**2
    with numpyro.plate("subjects", 200 if y is None else len(y)):
        logits = jnp.stack([jnp.zeros_like(logit), logit])
        kind = numpyro.sample("kind", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        level, slope = curves[kind, 0], curves[kind, 1]
        mean = level[..., None] + slope[..., None] * TIMES
        return numpyro.sample("y", dist.MultivariateNormal(mean, covariance), obs=y)


# %% [markdown]
# The posterior's mode and curvature, for twenty sets at once.


# %%
def simulated(key):
    return numpyro.handlers.seed(numpyro.handlers.substitute(model, TRUTH), key)()


@partial(jax.jit, static_argnums=1)
@partial(jax.vmap, in_axes=(0, None))
def interval(y, levels):
    start, unravel = ravel_pytree(TRUTH)

    def potential(x):
        return -ppl_ext.log_density(model, unravel(x), y, levels).total

    def newton(at, _):  # downhill, also where the curvature is negative
        x, curvature = at[0], jax.hessian(potential)(at[0])
        sizes, axes = jnp.linalg.eigh(curvature)
        return (
            x - axes @ ((axes.T @ jax.grad(potential)(x)) / jnp.maximum(jnp.abs(sizes), 1.0)),
            curvature,
        ), None

    (mode, curvature), _ = jax.lax.scan(newton, (start, jnp.eye(len(start))), length=9)
    return mode, jnp.sqrt(jnp.diagonal(jnp.linalg.inv(curvature)))


def coverages(num_sets, levels):
    """By parameter, the share of sets whose interval holds the truth."""
    y = jax.vmap(simulated)(jax.random.split(jax.random.key(0), num_sets))
    parts = [interval(y[i : i + 20], levels) for i in range(0, num_sets, 20)]
    mode, sd = (np.concatenate(x) for x in zip(*parts, strict=True))
    held = np.abs(mode - ravel_pytree(TRUTH)[0]) < 1.96 * sd
    return dict(zip(NAMES, held.mean(0), strict=True))


NAMES = ("level 1", "slope 1", "level 2", "slope 2", "noise", "spread", "share")


# %%
def claims(small=False):
    num_sets = 20 if small else 300
    found, error = coverages(num_sets, True), 100 * (0.95 * 0.05 / num_sets) ** 0.5
    rows = [
        (f"coverage of 95 % intervals: {name}", "95 ± 3", f"{100 * p:.1f} ± {error:.1f}")
        for name, p in found.items()
    ]
    if small:
        return rows
    without = coverages(60, False)
    some = ", ".join(f"{name} {100 * without[name]:.0f}" for name in NAMES[:4])
    return [*rows, ("the same without levels of subjects", "below 95", some)]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
