# %% [markdown]
# # A meta-prior between copying the data and ignoring them
#
# A recurrent network has one random number in each step. Its guide has free parameters for each step: they
# are learned with the weights on a training series, and on a new series they are found as it comes, in a
# window that slides along while the weights stay. The meta-prior w weighs the divergence from the prior. With
# a small one the guide writes the data down, and the prior learns nothing from it. With a large one the data
# are not heard at all. So the error of the next symbol is a U.
#
# The symbols come from two states that switch now and then, each of which shows its symbol most of the time.
# The exact forward filter of these states is the best that can be done.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed

import ppl_ext
from ppl_ext.infer import fit, windowed

PAPER = (
    "Ahmadi, Tani (2019). A novel predictive-coding-inspired variational RNN model for online prediction and "
    "recognition. Neural Computation 31(11)."
)
STAY, RIGHT, SIZE, DRAWS = 0.95, 0.85, 4, 50


def series(seed, num):
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.random(num) > STAY) % 2
    return np.where(rng.random(num) < RIGHT, state, 1 - state).astype(np.float32)


def exact(y):
    state = 0.5  # the chance of the second one
    for now in y:
        state = STAY * state + (1 - STAY) * (1 - state)
        yield RIGHT * state + (1 - RIGHT) * (1 - state)  # of a 1
        right = RIGHT if now else 1 - RIGHT
        state = right * state / (right * state + (1 - right) * (1 - state))


# %% [markdown]
# ## A step of the network, and one of the guide


# %%
SHAPES = {"prior": (SIZE, 2), "prior0": (2,), "d": (SIZE, SIZE), "z": (SIZE,), "d0": (SIZE,), "y": (SIZE,)}


def weights():
    keys = zip(jax.random.split(jax.random.key(3), len(SHAPES)), SHAPES.items(), strict=True)
    return numpyro.param("weights", {n: 0.5 * jax.random.normal(k, s) for k, (n, s) in keys})


def prior(w, d):
    mean, log_scale = d @ w["prior"] + w["prior0"]
    return dist.Normal(mean, jnp.exp(log_scale))


def move(w, d, z):
    return jnp.tanh(w["d"] @ d + w["z"] * z + w["d0"])


def body(w, d, y):
    d = move(w, d, numpyro.sample("z", prior(w, d)))
    numpyro.sample("y", dist.Bernoulli(logits=d @ w["y"]), obs=y)
    return d, None


def guide(w, free, d, y):
    law = prior(w, d)
    return numpyro.sample("z", dist.Normal(law.loc + free[0], law.scale * jnp.exp(free[1])))


@ppl_ext.objective
def MetaPrior(model, guide, w: float):
    draw = ppl_ext.simulate(guide)
    return (ppl_ext.log_density(model, draw.values) - draw.log_density).weigh({"y": 1.0, "*": w})


# %% [markdown]
# ## Learning on one series, and inference on another


# %%
def whole_model(y):
    scan(partial(body, weights()), jnp.zeros(SIZE), y)


def whole_guide(y):
    w, free = weights(), numpyro.param("free", jnp.zeros((len(y), 2)))
    scan(lambda d, free: (move(w, d, guide(w, free, d, None)), None), jnp.zeros(SIZE), free)


def predicted(w, train, test, num_steps):
    programs = whole_model, whole_guide, MetaPrior(w)
    optim = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
    learned = fit(jax.random.key(0), *programs, optim, num_steps, train, progress_bar=False)
    of = {name: jnp.asarray(x[0]) for name, x in learned.params["weights"].items()}
    step, of_step = partial(body, of), partial(guide, of)
    run = windowed(step, of_step, jnp.zeros(2), 8, optax.adam(0.1), 20, MetaPrior(w), DRAWS)
    ahead = jax.jit(jax.vmap(lambda key, d: jax.nn.sigmoid(seed(step, key)(d, None)[0] @ of["y"])))
    state, carry = run.init(jax.random.key(1), jnp.zeros(SIZE), 0.0), jnp.zeros((DRAWS, SIZE))
    for key, now in zip(jax.random.split(jax.random.key(2), len(test)), test, strict=True):
        yield ahead(jax.random.split(key, DRAWS), carry).mean()
        state = run.step(state, now)
        carry = run.result(state).carry


# %%
def claims(small=False):
    num, num_steps, some = (200, 500, (0.3, 3.0)) if small else (800, 1500, (0.003, 0.03, 0.3, 1.0, 3.0))
    train, test = series(0, num), series(1, num)
    chances = exact(test), *(predicted(w, train, test, num_steps) for w in some)
    best, *nats = (-np.log(np.abs(test + np.array([*p]) - 1)) for p in chances)
    rows, known = [], f"{best.mean():.3f} by the exact filter, {np.log(2):.3f} by a coin"
    for w, more in zip(some, (x - best for x in nats), strict=True):
        ours = f"{more.mean():.3f} ± {more.std() / num**0.5:.3f} above the filter"
        rows.append((f"nats of the next symbol, meta-prior {w:g}", known, ours))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
