"""What each latent axis contributes to a decoder (Saha, Joshi, Whitaker 2025)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_function, described


def relevance(decode: Callable, z: jax.Array, precisions: Mapping[str, jax.Array]) -> jax.Array:
    r"""How much of what a decoder makes of its latent axes is due to each.

    .. math:: r_l = \frac{b_l}{a} \; \mathbb{E}_z \Big\| \frac{\partial f(z)}{\partial z_l} \Big\|^2

    The prior's variance times the squared column of the Jacobian: unlike either alone it stays the same if
    an axis is stretched and the decoder shrunk.

    :param decode: f, from one point (dim,) to an array.
    :param z: points (n, dim), such as the encoder's means.
    :param precisions: the state of an :func:`ARD` site of one fit, ``concentration`` and ``rate``, both
        (dim,).
    :return: r, (dim,).
    :raises ArgumentError: for points or precisions of other shapes.

    >>> decode = lambda z: jnp.array([3.0 * z[0], 0.1 * z[1]])
    >>> precisions = {"concentration": jnp.full(2, 2.0), "rate": jnp.array([2.0, 8.0])}
    >>> relevance(decode, jnp.zeros((5, 2)), precisions).round(2)
    Array([9.  , 0.04], dtype=float32)

    Source: Saha, Joshi, Whitaker 2025.
    """
    check_function("relevance: decode", decode)
    a, b = precisions["concentration"], precisions["rate"]
    if jnp.ndim(b) != 1:
        raise ArgumentError(
            "relevance: precisions must be those of one fit, concentration and rate (dim,), got "
            f"{described(a)} and {described(b)}. Of a Fit take one chain: "
            "jax.tree.map(lambda x: x[0], fit.params['z_precisions'])."
        )
    if jnp.ndim(z) != 2 or jnp.shape(z)[1] != len(b):
        raise ArgumentError(f"relevance: z must be points (n, {len(b)}), got {described(z)}.")

    def squared(point):
        columns = jax.jacobian(decode)(point)
        return jnp.sum(columns**2, tuple(range(columns.ndim - 1)))

    return b / a * jax.vmap(squared)(z).mean(0)
