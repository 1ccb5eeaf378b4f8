# %% [markdown]
# # A cap of uncertainty on a frozen regressor
#
# A regressor that was trained on squares says nothing of its errors. A small network on top of it, which sees
# only what the regressor says, learns to repeat that and to give the scale and the shape of a generalised
# normal law around it. The regressor is left as it is.
#
# Errors here are Laplace, with a scale that grows with the prediction, so that the right law is known.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax.scipy.special import gammainc, gammaln

from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Upadhyay, Karthik, Chen, Mancini, Akata (2022). BayesCap: Bayesian identity cap for calibrated "
    "uncertainty in frozen neural networks. ECCV."
)
IDENTITY = 100.0


# %%
def scale_of(mean):
    return 0.05 + 0.25 * jax.nn.sigmoid(3.0 * mean)


def rows(rng, num):
    x = rng.uniform(-2.0, 2.0, (num, 3))
    mean = np.sin(2.0 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]
    return x, mean + np.asarray(scale_of(mean)) * rng.laplace(size=num)


def frozen(rng, x, y, width=300):
    """Least squares on random features: the regressor that stays as it is."""
    weights, shifts = rng.normal(size=(3, width)), rng.uniform(-3.0, 3.0, width)

    def features(x):
        return np.tanh(x @ weights + shifts)

    inner = features(x).T @ features(x) + 0.1 * np.eye(width)
    found = np.linalg.solve(inner, features(x).T @ y)
    return lambda x: features(x) @ found


# %%
def cap(said):
    """Mean, scale and shape of the law, from what the regressor says."""

    def layer(name, x, size):
        start = lambda key: 0.3 * jax.random.normal(key, (x.shape[1], size))  # noqa: E731
        return x @ numpyro.param(f"{name}_w", start) + numpyro.param(f"{name}_b", jnp.zeros(size))

    hidden = jax.nn.tanh(layer("second", jax.nn.tanh(layer("first", said[:, None], 16)), 16))
    shift, scale, shape = layer("last", hidden, 3).T
    return said + 0.1 * shift, jax.nn.softplus(scale), 0.5 + jax.nn.softplus(shape)


def model(said, y):
    mean, scale, shape = cap(said)
    log_law = jnp.log(shape / (2.0 * scale)) - gammaln(1.0 / shape) - (abs(y - mean) / scale) ** shape
    numpyro.factor("law", log_law.sum())
    numpyro.factor("identity", -IDENTITY * jnp.sum((mean - said) ** 2))


def guide(said, y):
    pass


def covered(error, scale, shape):
    """The mass of the law nearer to its mean than y: uniform if the law is right."""
    return np.asarray(gammainc(1.0 / shape, (np.abs(error) / scale) ** shape))


def calibration_error(mass, said):
    """Between coverage and level, over nine levels and five groups of rows by what is said."""
    groups = np.array_split(mass[np.argsort(said)], 5)
    levels = np.arange(1, 10) / 10
    return float(np.mean([np.abs((g[:, None] < levels).mean(0) - levels) for g in groups]))


# %%
def claims(small=False):
    rng, (num, num_steps) = np.random.default_rng(0), (1000, 800) if small else (4000, 3000)
    regressor = frozen(rng, *rows(rng, num))
    (x, y), (new, truth) = rows(rng, num), rows(rng, 8000)
    optim = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
    data = jnp.asarray(regressor(x)), jnp.asarray(y)
    run = fit(jax.random.key(0), model, guide, ELBO(), optim, num_steps, *data, progress_bar=False)
    said = regressor(new)
    with numpyro.handlers.substitute(data=jax.tree.map(lambda p: p[0], run.params)):
        mean, scale, shape = cap(jnp.asarray(said))
    width = 2.0**0.5 * np.std(y - regressor(x))
    known = covered(truth - said, scale_of(said), 1.0)
    masses = covered(truth - mean, scale, shape), covered(truth - said, width, 2.0), known
    ours, gaussian, right = (calibration_error(mass, said) for mass in masses)
    moved = float(np.abs(mean - said).mean() / np.std(said))
    return [
        (
            "calibration error",
            f"at most half of {gaussian:.3f} (one Gaussian); noise alone {right:.3f}",
            f"{ours:.3f}",
        ),
        ("change of the mean, in its standard deviations", "at most 0.01", f"{moved:.4f}"),
        ("median shape of the law", "1 (Laplace)", f"{float(np.median(shape)):.2f}"),
    ]


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
