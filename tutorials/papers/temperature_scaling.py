# %% [markdown]
# # What one temperature cannot mend
#
# A classifier that interpolates its training rows is over-confident. Dividing its logits by a temperature
# T, fitted to held-out rows, mends that where classes lie apart. Where some overlap it has to serve two
# ends: within a pair of classes that overlap, margins are noise and T should be large, but between pairs
# they are right, and a large T denies them.
#
# Classes are Gaussian, in four pairs six apart, and the two of a pair are `apart` standard deviations from
# each other. The classifier weighs training rows by a Gaussian kernel, far narrower than the classes. Its
# expected calibration error is beside that of the exact posterior, which is zero but for the noise of bins;
# how much that is says a classifier whose confidence is the posterior's and whose hits are drawn from it.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import ppl_ext
from ppl_ext.meta import expected_calibration_error

PAPER = (
    "Chidambaram, Ge (2024). On the Limitations of Temperature Scaling for Distributions with Overlaps. "
    "ICLR; Guo, Pleiss, Sun, Weinberger (2017). On Calibration of Modern Neural Networks. ICML."
)
CLASSES, DIM, BETWEEN, NARROW = 8, 5, 6.0, 0.3
TEMPERATURES = np.logspace(-0.5, 3.0, 106)


def centres(apart):
    pairs = np.repeat(np.eye(DIM)[:-1], 2, axis=0) * BETWEEN / 2**0.5
    return pairs + apart * np.outer(np.arange(CLASSES) % 2, np.eye(DIM)[-1])


def one(apart, y=None, x=None):
    """The program: a row's class, and the row."""
    y = numpyro.sample("y", dist.Categorical(logits=jnp.zeros(CLASSES)), obs=y)
    numpyro.sample("x", dist.Normal(jnp.asarray(centres(apart))[y], 1.0).to_event(1), obs=x)


def rows(rng, n, apart):
    y = rng.integers(CLASSES, size=n)
    return centres(apart)[y] + rng.normal(size=(n, DIM)), y


def posterior(x, apart):
    """Logits of the exact posterior (n, CLASSES), from the program."""
    joint = jax.vmap(lambda x, k: ppl_ext.log_density(one, {}, apart, k, x).total, (None, 0))
    return np.asarray(jax.jit(jax.vmap(joint, (0, None)))(x, jnp.arange(CLASSES)), float)


# %%
def weighed(x, train, width):
    """Logits (n, CLASSES): log of the kernel's sum over the training rows of each class."""
    terms = -((x[:, None] - train[0]) ** 2).sum(-1) / (2 * width**2)
    of = [jax.nn.logsumexp(jnp.where(train[1] == k, terms, -jnp.inf), axis=1) for k in range(CLASSES)]
    return np.stack(of, 1).astype(float)


def loss(logits, y):
    return -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(y)), y].mean()


def temperature(logits, y):
    """The one of least loss, on a grid."""
    return TEMPERATURES[np.argmin([loss(logits / t, y) for t in TEMPERATURES])]


# %%
def errors(rng, apart, num_train, num_test):
    """Errors of calibration: before, after, exact, of a calibrated one; and T."""
    train, held_out, test = (rows(rng, n, apart) for n in (num_train, 2000, num_test))
    fitting, logits = (weighed(x, train, NARROW) for x, _ in (held_out, test))
    t = temperature(fitting, held_out[1])
    found = []
    for of in (logits, logits / t, posterior(test[0], apart)):
        confidence = np.asarray(jax.nn.softmax(of)).max(1)
        found.append(expected_calibration_error(confidence, of.argmax(1) == test[1]))
    noise = expected_calibration_error(confidence, rng.uniform(size=num_test) < confidence)
    return *found, noise, t


# %%
def claims(small=False):
    (num_test, repeats), told = (2000, 3) if small else (5000, 8), []
    for apart in (6.0, 4.0, 2.0, 1.0, 0.0):
        rng = np.random.default_rng(0)
        found = np.array([errors(rng, apart, 400, num_test) for _ in range(repeats)])
        mean, half = found.mean(0), found.std(0, ddof=1) / repeats**0.5
        known = f"exact posterior {mean[2]:.4f} (0 but for bins, {mean[3]:.4f})"
        names = (("before", 0), ("after", 1))
        ours = ", ".join(f"{name} {mean[k]:.4f} ± {half[k]:.4f}" for name, k in names)
        told.append((f"calibration error, {apart:g} apart", known, f"{ours}; T {mean[4]:.1f}"))
    return told


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
