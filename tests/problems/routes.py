"""How the elements of a plate may meet on the way from a guide's site to the cost in the same plate."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.problems.plates import read_through

MIXING = np.array([[0.5, -1.0, 0.0], [0.0, 1.0, 0.7], [1.2, 0.0, 0.3]])


def _while(z):
    return jax.lax.while_loop(
        lambda state: state[0] < 2, lambda state: (state[0] + 1, jnp.roll(state[1], 1) + z), (0, z)
    )[1]


# Each takes z (3,) to three locations; only the first leaves the elements apart.
ROUTES = {
    "elementwise": lambda z: 1.2 * z,
    "reversed": lambda z: 1.2 * z[::-1],
    "rolled": lambda z: jnp.roll(z, 1) - z,
    "gathered": lambda z: z[jnp.array([2, 0, 0])],
    "gathered at itself": lambda z: jnp.take(jnp.array([0.4, -1.0, 1.3]), (z[0] + z).astype(int)),
    "scattered": lambda z: jnp.zeros(3).at[jnp.array([1, 1, 0])].add(z),
    "summed": lambda z: jnp.ones(3) * z.sum(),
    "mean of a rank": lambda z: z[None, :].mean(axis=1, keepdims=True)[0] * jnp.arange(3.0),
    "cumulated": lambda z: jnp.cumsum(z),
    "reverse cumulated": lambda z: jax.lax.cumsum(z * 1.0, reverse=True),
    "cumulated twice": lambda z: jnp.cumsum(jnp.cumsum(z)) - z,
    "cumulated before": lambda z: jnp.concatenate([jnp.zeros(1), jnp.cumsum(1.0 * z)[:-1]]),
    "cumulated and turned": lambda z: jnp.cumsum(z)[::-1],
    "multiplied": lambda z: MIXING @ z,
    "solved": lambda z: jnp.linalg.solve(jnp.asarray(MIXING) + 2.0 * jnp.eye(3), z),
    "sorted": lambda z: jnp.sort(z + 0.1 * jnp.arange(3.0)),
    "largest": lambda z: z - jnp.max(z * jnp.arange(1.0, 4.0)),
    "argmax": lambda z: 1.0 * (jnp.arange(3) == jnp.argmax(z)),
    "branched": lambda z: jnp.where(z.any(), z, 0.8),
    "cond": lambda z: jax.lax.cond(z[1] > 0, lambda z: z + 0.5, lambda z: -1.0 * z[::-1], z),
    "switch": lambda z: jax.lax.switch(z[2].astype(int), [lambda z: 1.0 * z, lambda z: 0.3 - z], z),
    "reshaped": lambda z: (z[:, None] * z[None, :]).reshape(9)[::3] + z[::-1].reshape(3, 1).T[0],
    "indexed by another": lambda z: jnp.array([[0.3, 1.0], [-0.4, 0.7]])[
        z.astype(int), jnp.roll(z, 1).astype(int)
    ],
    "added where it says": lambda z: jnp.zeros(3).at[z.astype(int)].add(1.0),
    "padded": lambda z: jnp.concatenate([z[1:], jnp.zeros(1)]),
    "convolved": lambda z: jnp.convolve(1.0 * z, jnp.array([0.5, 0.0, -1.0]), mode="same"),
    "sliced": lambda z: jax.lax.dynamic_slice(jnp.concatenate([z, z]), (1,), (3,)) * 1.1,
    "inner jit": lambda z: jax.jit(lambda z: z - 0.5 * z.sum())(z),
    "inner vmap": lambda z: jax.vmap(lambda one: (one * z).sum())(z),
    "inner scan": lambda z: jax.lax.scan(lambda carry, one: (carry + one, carry * one), 0.3, 1.0 * z)[1],
    "inner scan backwards": lambda z: jax.lax.scan(
        lambda carry, one: (carry + one, carry), 0.3, 1.0 * z, reverse=True
    )[1],
    "inner scan of a vector": lambda z: jax.lax.scan(lambda x, _: (jnp.roll(x, 1), x[0]), 1.0 * z, length=3)[
        1
    ],
    "inner while": _while,
    "inner gradient": lambda z: jax.grad(lambda x: jnp.sum(x**2 * x[::-1]))(1.0 * z),
    "checkpointed": lambda z: jax.checkpoint(lambda z: jnp.sin(z.sum()) * z)(1.0 * z),
    "custom rule": lambda z: jax.nn.relu(z - 0.5) - jax.nn.softplus(z).sum(),
}


def routed(route):
    """Coins in a plate whose observations read them along a route: whose credit is whose, the plate does not
    say.
    """
    return read_through(f"routed: {route}", ROUTES[route])
