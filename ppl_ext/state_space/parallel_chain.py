r"""Sums over the states of a finite chain at all times at once, by products of matrices in a tree.

With :math:`M_t(a, b) = m(b \mid a) \, g(y_t \mid a, b)` the forward sums are :math:`\alpha_t = \alpha_1 M_2
\cdots M_t`, the backward ones :math:`\beta_t = M_{t+1} \cdots M_T 1`, and a product does not mind in which
order it is taken. Matrices are logs, of which the largest is taken off. Source: Hassan, Särkkä and
García-Fernández 2021, "Temporal parallelization of inference in hidden Markov models".
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp

from ppl_ext.state_space.prefixes import prefixes


def log_sum(x: jax.Array, axis: int) -> jax.Array:
    """The log of a sum of terms whose logs are given; where all are −inf it is that, with a derivative of 0.

    >>> float(jax.grad(lambda x: jnp.exp(log_sum(jnp.array([-jnp.inf, -jnp.inf]) + x, 0)))(1.0))
    0.0
    """
    none = jnp.isneginf(x).all(axis, keepdims=True)
    return jnp.where(none.squeeze(axis), -jnp.inf, logsumexp(jnp.where(none, 0.0, x), axis=axis))


@jax.checkpoint  # or the derivative would keep K³ numbers a product
def log_product(first: jax.Array, second: jax.Array) -> jax.Array:
    """The log of a product of matrices whose logs are given, but for a factor.

    >>> x = jnp.log(jnp.array([[1.0, 2.0], [0.0, 4.0]]))
    >>> found = log_product(x, x)
    >>> jnp.exp(found - found[0, 0]).round(3).tolist()
    [[1.0, 10.0], [0.0, 16.0]]
    """
    return _scaled(log_sum(first[:, :, None] + second, 1), (0, 1))


def forward_sums(first: jax.Array, matrices: jax.Array) -> jax.Array:
    """The log probabilities (T, K) before each of the steps with these log matrices (T, K, K), from those
    before the first of them.
    """
    until = prefixes(log_product, matrices[:-1], _one(matrices))
    later = log_sum(first[:, None] + until, -2)
    total = log_sum(later, -1)[:, None]
    return jnp.concatenate([first[None], later - jnp.where(jnp.isfinite(total), total, 0.0)])[: len(matrices)]


def backward_sums(matrices: jax.Array) -> jax.Array:
    """The log sums (T, K) of what follows a state before each of these steps, each but for a factor."""
    beyond = prefixes(log_product, matrices, _one(matrices), reverse=True)
    return _scaled(log_sum(beyond, -1), -1)


def _one(matrices: jax.Array) -> jax.Array:
    return jnp.log(jnp.eye(matrices.shape[1], dtype=matrices.dtype))


def _scaled(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    most = lax.stop_gradient(x.max(axes, keepdims=True))
    return x - jnp.where(jnp.isfinite(most), most, 0.0)
