"""A latent neural process for few-shot regression (Garnelo et al. 2018), written plainly: an encoder of
points, a latent, a decoder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import logsumexp

WIDTH, LATENT = 64, 32


def dense(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]


def mlp(layers, x):
    for w, b in layers[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ layers[-1][0] + layers[-1][1]


def initial(key):
    keys = jax.random.split(key, 3)
    return {
        "points": dense(keys[0], (2, WIDTH, WIDTH)),
        "latent": dense(keys[1], (WIDTH, WIDTH, 2 * LATENT)),
        "decoder": dense(keys[2], (1 + LATENT, WIDTH, WIDTH, 2)),
    }


def encode(p, x, y):
    """q(z | points): each point by itself, then their mean."""
    r = mlp(p["points"], jnp.stack([x, y], 1) / 5).mean(0)
    loc, raw = jnp.split(mlp(p["latent"], r), 2)
    return loc, 0.05 + 0.95 * jax.nn.sigmoid(raw)


def decode(p, z, x):
    out = mlp(p["decoder"], jnp.concatenate([x[:, None] / 5, jnp.broadcast_to(z, (x.shape[0], LATENT))], 1))
    return 5 * out[:, 0], 0.1 + 2 * jax.nn.softplus(out[:, 1])


def log_normal(y, loc, sd):
    return -0.5 * ((y - loc) / sd) ** 2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi)


def loss(p, key, x, y, support: int):
    """Minus the bound: all points given z from all of them, and the divergence of that q(z) from that of the
    support.
    """
    loc, sd = encode(p, x, y)
    loc0, sd0 = encode(p, x[:support], y[:support])
    mean, noise = decode(p, loc + sd * jax.random.normal(key, loc.shape), x)
    divergence = (jnp.log(sd0 / sd) + (sd**2 + (loc - loc0) ** 2) / (2 * sd0**2) - 0.5).sum()
    return -log_normal(y, mean, noise).sum() + divergence


def trainer(episode_data, support: int, batch: int, seed: int):
    """Parameters, optimiser's state, and a compiled run of 100 steps."""
    optim = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))
    p = initial(jax.random.key(seed))

    def step(carry, key):
        p, state = carry
        of_data, of_z = jax.random.split(key)
        x, y = jax.vmap(episode_data)(jax.random.split(of_data, batch))
        keys = jax.random.split(of_z, batch)
        value, grads = jax.value_and_grad(
            lambda p: jax.vmap(loss, (None, 0, 0, 0, None))(p, keys, x, y, support).mean()
        )(p)
        updates, state = optim.update(grads, state, p)
        return (optax.apply_updates(p, updates), state), value

    return (
        p,
        optim.init(p),
        jax.jit(lambda p, state, key: jax.lax.scan(step, (p, state), jax.random.split(key, 100))),
    )


def predict(p, key, x, y, at, draws: int = 32):
    """Means and standard deviations (draw, point) of an equal mixture."""
    loc, sd = encode(p, x, y)
    z = loc + sd * jax.random.normal(key, (draws, LATENT))
    return jax.vmap(lambda z: decode(p, z, at))(z)


def log_predictive(y, mean, sd):
    return logsumexp(log_normal(y, mean, sd), axis=0) - jnp.log(mean.shape[0])
