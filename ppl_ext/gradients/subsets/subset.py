"""Subsets drawn without replacement, as a distribution (Plackett 1975; by perturbed logits: Vieira 2014)."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution, constraints

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import described


class Subset(Distribution):
    r"""k of n items, drawn one after the other without replacement, as k one-hot rows in that order.

    .. math:: \log p(z) = \sum_{i=1}^{k} \Big( \ell_{z_i} - \log \sum_{j \notin \{z_1, \dots, z_{i-1}\}}
        e^{\ell_j} \Big)

    Of a value z, (..., k, n), ``z.sum(-2)`` is the mask of the items chosen, ``z.argmax(-1)`` their places.
    The gradient is scored by default, with the other particles' mean as baseline, and unbiased.
    :class:`~ppl_ext.gradients.subsets.StraightThrough` and
    :class:`~ppl_ext.gradients.subsets.SoftTopK` are strategies that go through the sampler, and biased.

    :param logits: :math:`\ell`, (..., n).
    :param k: how many, from 1 to n.
    :raises ArgumentError: for logits that are a scalar, or a k out of its range.

    >>> law = Subset(jnp.log(jnp.array([0.5, 0.3, 0.2])), 2)
    >>> z = jax.nn.one_hot(jnp.array([0, 2]), 3)  # the first, then the last: 0.5 · 0.2 / 0.5
    >>> round(float(jnp.exp(law.log_prob(z))), 4)
    0.2
    >>> law.sample(jax.random.key(0)).sum(-2).tolist()
    [1.0, 1.0, 0.0]

    Source: Plackett 1975; Huijben, Veeling, van Sloun 2020, for masks of measurements.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 2)
    pytree_data_fields = ("logits",)
    pytree_aux_fields = ("k",)

    def __init__(self, logits, k: int, *, validate_args=None):
        if jnp.ndim(logits) < 1:
            raise ArgumentError(f"Subset: logits must have an axis of items, got {described(logits)}.")
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= jnp.shape(logits)[-1]:
            raise ArgumentError(
                f"Subset: k must be a number from 1 to the {jnp.shape(logits)[-1]} items, got "
                f"{described(k)}. Choose fewer, or give logits of more items on the last axis."
            )
        self.logits, self.k = jnp.asarray(logits), k
        shape = self.logits.shape
        super().__init__(shape[:-1], (k, shape[-1]), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        shape = (*sample_shape, *self.logits.shape)
        noisy = self.logits + jax.random.gumbel(key, shape, self.logits.dtype)
        return _rows(noisy, self.k)

    def log_prob(self, value):
        left = jnp.clip(1 - (jnp.cumsum(value, -2) - value), 0.0, 1.0)
        logits = self.logits[..., None, :]
        return jnp.sum(jnp.sum(value * logits, -1) - logsumexp(logits, axis=-1, b=left), -1)


def relaxed(logits: jax.Array, k: int, key: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """A draw's one-hot rows, and rows of softmaxes in their place, which the logits move.

    Source: Plötz and Roth 2018; Xie and Ermon 2019.
    """
    noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    rest, rows = noisy, []
    for _ in range(k):
        rows.append(jax.nn.softmax(rest / temperature, -1))
        rest = rest + jnp.log(jnp.clip(1 - rows[-1], jnp.finfo(logits.dtype).tiny))
    return _rows(noisy, k), jnp.stack(rows, -2)


def _rows(noisy: jax.Array, k: int) -> jax.Array:
    return jax.nn.one_hot(jax.lax.top_k(noisy, k)[1], noisy.shape[-1], dtype=noisy.dtype)
