"""Self-normalised weights of particles, and signals: zero in value, with the gradient that an estimator
prescribes.
"""

import jax
import jax.numpy as jnp

_stop = jax.lax.stop_gradient


def normalised(log_weights: jax.Array) -> jax.Array:
    r""":math:`\bar w_k = w_k / \sum_j w_j` over the first axis, held fixed; all zero where every weight is.

    >>> [round(float(w), 4) for w in normalised(jnp.log(jnp.array([1.0, 3.0])))]
    [0.25, 0.75]
    """
    log_weights = _stop(log_weights)
    sane = jnp.isfinite(jnp.max(log_weights, axis=0))
    return jnp.where(sane, jax.nn.softmax(jnp.where(sane, log_weights, 0.0), axis=0), 0.0)


def signal(weights, x: jax.Array) -> jax.Array:
    r""":math:`\sum_k w_k (x_k - \bar x_k)`, the weights and x̄ held fixed: its value is zero, its gradient
    :math:`\sum_k w_k \nabla x_k`.

    A weight of zero leaves its term out, whatever it is.

    >>> value, grad = jax.value_and_grad(lambda x: signal(jnp.array([2.0, 0.0]), jnp.stack([3 * x, x
    ...     - jnp.inf])))(1.0)
    >>> float(value), float(grad)
    (0.0, 6.0)
    """
    counts = (weights != 0) & jnp.isfinite(x)
    x = jnp.where(counts, x, 0.0)
    return jnp.sum(_stop(jnp.where(counts, weights, 0.0)) * (x - _stop(x)), axis=0)
