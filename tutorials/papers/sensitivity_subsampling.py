# %% [markdown]
# # Rows by their sensitivity
#
# A log likelihood of many rows can be estimated from a few of them. Where some rows have great leverage, a
# uniform draw misses them, and the estimate is as noisy as those rows are rare. Taken with probabilities that
# follow their leverage, and weighted by the inverse, the same number of rows says much more.
#
# NumPyro's `HMCECS` estimates what a Taylor series at the mode leaves of the log likelihood, and moves its
# rows along with the chain. `handlers.subsample` gives it uneven rows: the plate becomes one of cells, of
# which a row has the more the likelier it is.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import HMCECS, MCMC, NUTS

import ppl_ext
from ppl_ext.designs import leverage
from ppl_ext.handlers import subsample

PAPER = "Woodruff, Yasuda (2023). Sharper bounds for ℓp sensitivity sampling. ICML."


# %%
def model(x, y, taken):
    b = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=taken):
        rows, seen = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.StudentT(3.0, rows @ b), obs=seen)


def data(kind, num):
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (num, 8)) if kind == "t" else rng.normal(size=(num, 8))
    if kind == "outlying":
        x[: num // 300] *= 30.0
    y = x.sum(1) + rng.standard_t(3, num)
    return jnp.asarray(x, float), jnp.asarray(y, float)


def log_likelihood(b, x, y):
    return dist.StudentT(3.0, x @ b).log_prob(y)


@jax.jit
def mode(x, y, weights=1.0):
    """The mode, by least squares that are weighted anew, and the covariance there."""

    def step(_, b):
        w = weights * 4.0 / (3.0 + (y - x @ b) ** 2)
        return jnp.linalg.solve(x.T @ (x * w[:, None]) + 0.01 * jnp.eye(8), x.T @ (w * y))

    b = jax.lax.fori_loop(0, 60, step, jnp.linalg.lstsq(x, y)[0])
    curvature = jax.hessian(lambda b: 0.005 * (b**2).sum() - log_likelihood(b, x, y).sum())(b)
    return b, jnp.linalg.inv(curvature)


# %% [markdown]
# What the second-order series leaves of each row, at draws of the posterior, gives the standard deviation of
# the estimate of the whole: $\sum_i r_i^2 / p_i - (\sum_i r_i)^2$, over m.


def deviation(x, y, taken, probabilities):
    b, covariance = mode(x, y)
    steps = jax.random.multivariate_normal(jax.random.key(0), jnp.zeros(8), covariance, (100,))

    def left(step):
        def along(t):
            return log_likelihood(b + t * step, x, y)

        slope, bend = jax.jvp(jax.jacfwd(along), (0.0,), (1.0,))
        return along(1.0) - along(0.0) - slope - 0.5 * bend

    r, p = np.asarray(jax.lax.map(left, steps), float), np.asarray(probabilities, float)
    return float(np.sqrt((((r**2 / p).sum(1) - r.sum(1) ** 2) / taken).mean()))


def kept(uneven, x, y, taken, seed):
    """How many posterior deviations the mode of one draw of rows is off."""
    rows = uneven.rows[np.random.default_rng(seed).integers(len(uneven.rows), size=taken)]
    found, _ = mode(x[rows], y[rows], 1.0 / (taken * uneven.probabilities[rows]))
    right, covariance = mode(x, y)
    return float(jnp.sqrt(((found - right) ** 2 / jnp.diag(covariance)).mean()))


def draws(kernel, num, *args):
    mcmc = MCMC(kernel, num_warmup=num // 4, num_samples=num, progress_bar=False)
    mcmc.run(jax.random.key(1), *args)
    return mcmc.get_samples()["b"]


# %%
def claims(small=False):
    num, taken, num_draws = (1_500, 100, 300) if small else (30_000, 300, 3000)
    rows = []
    for kind, known in (("t", "0.081 to 0.014 (aim)"), ("outlying", "1.30 to 0.057 (aim)")):
        x, y = data(kind, num)
        uneven = subsample(model, "rows", leverage(x))
        sds = [deviation(x, y, taken, p) for p in (np.full(num, 1 / num), uneven.probabilities)]
        rows.append((f"sd of the log likelihood, {kind} rows", known, f"{sds[0]:.3f} to {sds[1]:.3f}"))
    right, _ = mode(x, y)

    def at(cell):
        return ppl_ext.log_density(uneven, {"b": right, "rows_cells": cell[None]}, x, y, 1).total

    mean = jax.lax.map(at, jnp.arange(len(uneven.rows)), batch_size=1000).mean()
    ratio = float(mean / ppl_ext.log_density(model, {"b": right}, x, y, None).total)
    rows.append(("mean over every draw, over the log density", "1", f"{ratio:.6f}"))
    proxy = HMCECS.taylor_proxy({"b": right})
    few = draws(HMCECS(NUTS(uneven), proxy=proxy), num_draws, x, y, taken)
    every = draws(NUTS(model), num_draws, x, y, None)
    told = f"{(few.std(0) / every.std(0)).mean():.2f}; "
    told += f"{jnp.abs((few.mean(0) - every.mean(0)) / every.std(0)).max():.2f}"
    rows.append(("HMCECS: sd over that with all rows; largest shift, in sd", "1; 0", told))
    off = [kept(uneven, x, y, taken, seed) for seed in range(5)]
    found = f"{min(off):.1f} to {max(off):.1f}"
    return [*rows, ("one draw of rows, kept: its mode is off, in posterior sd", "7 to 11 (aim)", found)]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
