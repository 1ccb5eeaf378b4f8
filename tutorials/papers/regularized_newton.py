# %% [markdown]
# # Newton's method that does not run away
#
# The mode of a softmax regression from starts that are far from it. Newton's method leaves the region where
# its model of the loss holds, and does not come back. Regularised by the gradient it is slow at first and
# fast in the end, from everywhere. It is an optimiser of NumPyro, and a Laplace approximation needs nothing
# else.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from scipy.optimize import minimize
from sklearn.datasets import load_wine

from ppl_ext import log_density
from ppl_ext.infer import RegularizedNewton

PAPER = (
    "Semenov, Jaggi, Doikov (2025). Gradient-normalized smoothness for optimization with approximate "
    "Hessians. arXiv:2506.13710."
)
WINE = load_wine()
X = np.column_stack([(WINE.data - WINE.data.mean(0)) / WINE.data.std(0), np.ones(len(WINE.data))])
SIZE = (X.shape[1], 3)


def softmax(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand(SIZE).to_event(2))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


# %% [markdown]
# All in the same loss. An iteration of L-BFGS is a line search with gradients; one of Newton's methods a
# Hessian of 42 parameters.


# %%
def loss(w):
    return -log_density(softmax, {"w": w.reshape(SIZE)}, X, WINE.target).total


VALUE_AND_GRAD = jax.jit(jax.value_and_grad(loss))
NEWTON = jax.jit(lambda w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)))
STEPS = 60


def newton(start, lowest):
    w = jnp.asarray(start)
    for k in range(STEPS):
        value = float(loss_at(w))
        if value < lowest + 1e-2:
            return k
        if not np.isfinite(value):
            break
        w = NEWTON(w)
    return None


def loss_at(w):
    return VALUE_AND_GRAD(w)[0]


def lbfgs(start, lowest):
    values = []
    minimize(
        lambda w: [np.asarray(v, float) for v in VALUE_AND_GRAD(jnp.asarray(w))],
        start,
        jac=True,
        method="L-BFGS-B",
        callback=lambda w: values.append(float(loss_at(jnp.asarray(w)))),
    )
    return next((k + 1 for k, value in enumerate(values) if value < lowest + 1e-2), None)


SVI_OF = SVI(softmax, AutoDelta(softmax), RegularizedNewton(1.0), Trace_ELBO())


def regularized(start, lowest):
    first = {"w_auto_loc": jnp.asarray(start).reshape(SIZE)}
    run = SVI_OF.run(jax.random.key(0), STEPS, X, WINE.target, progress_bar=False, init_params=first)
    below = np.flatnonzero(np.asarray(run.losses) < lowest + 1e-2)
    return int(below[0]) if below.size else None


# %%
def claims(small=False):
    lowest = min(map(float, SVI_OF.run(jax.random.key(0), 30, X, WINE.target, progress_bar=False).losses))
    rows, num = [], 3 if small else 20
    for radius in (0.5, 5.0, 20.0):
        starts = radius * np.asarray(jax.random.normal(jax.random.key(1), (num, 42)))
        for name, method in (("Newton", newton), ("L-BFGS", lbfgs), ("regularised Newton", regularized)):
            counts = [k for start in starts if (k := method(start, lowest)) is not None]
            told = f"{len(counts)} of {num}" + (f", {np.median(counts):.0f} iterations" if counts else "")
            known = f"{num} of {num}" if name == "regularised Newton" else "–"
            rows.append((f"at the mode from starts of size {radius:g}, {name}", known, told))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
