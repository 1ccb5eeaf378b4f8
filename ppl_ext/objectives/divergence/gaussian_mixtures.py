"""The Cauchy-Schwarz divergence, in closed form between mixtures of normal laws, and so between samples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution

from ppl_ext.densities.distributions import unmasked
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.gradients.strategy import unwrapped
from ppl_ext.runtime.arguments import check_array, check_positive, described

Mixture = tuple[jax.Array, jax.Array, jax.Array]
"""Log weights (..., K), means (..., K, D), covariances (..., K, D, D)."""


def cs_divergence(p: Any, q: Any, bandwidth: float | None = None) -> jax.Array:
    r"""How unlike two laws are: minus the log of the squared cosine between their densities.

    .. math:: D = -\log \frac{(\int p\, q)^2}{\int p^2 \int q^2}, \qquad \int p\, q = \sum_{ij} w_i v_j \,
        N(m_i;\, n_j, A_i + B_j)

    Symmetric, at least zero, zero for equal laws, and finite between mixtures of normal laws, where a KL
    divergence has no closed form. It is no bound on the KL divergence, nor the other way round: of random
    pairs of normal laws it is the smaller in most cases and not in all.

    Two arrays of draws are compared as their kernel density estimates, mixtures of a normal law around each
    draw; the divergence is then that of the smoothed laws.

    :param p: a ``Normal``, ``MultivariateNormal`` or ``MixtureSameFamily`` of these, or draws (n,) or (n, d).
    :param q: likewise, of the same event shape.
    :param bandwidth: standard deviation of the kernel, for draws.
    :return: an array of the laws' batch shape; of draws a scalar.
    :raises ArgumentTypeError: for another law.
    :raises ArgumentError: if the events have different sizes, or draws come without a bandwidth.

    >>> # of two laws of variance 1, half of the squared distance
    >>> round(float(cs_divergence(dist.Normal(0.0, 1.0), dist.Normal(2.0, 1.0))), 3)
    2.0
    >>> x = jnp.array([0.0, 1.0])
    >>> bool(cs_divergence(x, x, bandwidth=0.5) < 1e-5)
    True

    Source: Jenssen, Principe, Erdogmus, Eltoft 2006; mixtures: Kampa, Hasanbelliu, Principe 2011.
    """
    first, second = (_mixture(name, law, bandwidth) for name, law in (("p", p), ("q", q)))
    if first[1].shape[-1] != second[1].shape[-1]:
        raise ArgumentError(
            f"cs_divergence: p has {first[1].shape[-1]} coordinates and q {second[1].shape[-1]}; they must "
            "be laws of the same values."
        )
    found = _log_overlap(first, first) + _log_overlap(second, second) - 2 * _log_overlap(first, second)
    return jnp.maximum(found, 0.0)


def cs_mutual_information(x: Any, y: Any, bandwidth: float, bandwidth_y: float | None = None) -> jax.Array:
    r"""The Cauchy-Schwarz divergence of a joint law from the product of its marginals, from paired draws.

    .. math:: I = \log \tfrac{1}{n^2} \sum_{ij} K_{ij} Q_{ij} + \log \tfrac{1}{n^4} \sum_{ij} K_{ij} \sum_{ij}
        Q_{ij} - 2 \log \tfrac{1}{n^3} \sum_i \Big(\sum_j K_{ij}\Big) \Big(\sum_j Q_{ij}\Big)

    K and Q are normal kernels of variance 2h² between the draws of x and of y: I is that of the laws smoothed
    by h. Differentiable; biased upwards by some 1/n.

    :param x: (n,) or (n, d), paired with ``y``, (n,) or (n, e).
    :param bandwidth: h for x, and for y without ``bandwidth_y``.
    :raises ArgumentError: if there are not as many of both.

    >>> x = jnp.linspace(-1.0, 1.0, 50)
    >>> bool(cs_mutual_information(x, x, 0.3) > cs_mutual_information(x, x**2, 0.3) > 0.0)
    True

    Source: Yu, Yu, Løkse, Jenssen, Principe 2024.
    """
    check_positive("cs_mutual_information: bandwidth", bandwidth)
    tables = []
    for name, z, h in (("x", x, bandwidth), ("y", y, bandwidth if bandwidth_y is None else bandwidth_y)):
        check_positive(f"cs_mutual_information: bandwidth of {name}", h)
        _, z, _ = _draws(f"cs_mutual_information: {name}", z, h)
        tables.append(-((z[:, None] - z[None]) ** 2).sum(-1) / (4 * h**2))
    k, q = tables
    if k.shape != q.shape:
        raise ArgumentError(
            f"cs_mutual_information: x has {len(k)} draws and y {len(q)}; they must be pairs."
        )
    rows = logsumexp(k, axis=1) + logsumexp(q, axis=1)
    joint, product = logsumexp(k + q), logsumexp(k) + logsumexp(q)
    return joint + product - 2 * logsumexp(rows)


@jax.jit  # a law's density is dozens of operations: one by one, each would be compiled for itself
def _log_overlap(p: Mixture, q: Mixture) -> jax.Array:
    """log ∫ p q, over the batch."""
    (w, m, a), (v, n, b) = p, q
    law = dist.MultivariateNormal(n[..., None, :, :], a[..., :, None, :, :] + b[..., None, :, :, :])
    return logsumexp(w[..., :, None] + v[..., None, :] + law.log_prob(m[..., :, None, :]), axis=(-2, -1))


def _draws(where: str, x: Any, bandwidth: float | None) -> Mixture:
    check_array(where, x)
    if bandwidth is None:
        raise ArgumentError(f"{where} holds draws: give the bandwidth=... of the kernel around each.")
    check_positive("cs_divergence: bandwidth", bandwidth)
    x = jnp.asarray(x, dtype=jnp.result_type(float))
    if x.ndim not in (1, 2) or not len(x):
        raise ArgumentError(f"{where} must be draws (n,) or (n, d), got shape {x.shape}.")
    x = x.reshape(len(x), -1)
    kernel = jnp.broadcast_to(bandwidth**2 * jnp.eye(x.shape[1]), (*x.shape, x.shape[1]))
    return jnp.full(len(x), -jnp.log(len(x))), x, kernel


def _mixture(name: str, law: Any, bandwidth: float | None) -> Mixture:
    if not isinstance(law, Distribution):
        return _draws(f"cs_divergence: {name}", law, bandwidth)
    law, batch = unmasked(law), law.batch_shape
    if type(unwrapped(law)) is dist.Normal:  # whatever it was expanded and declared an event by
        means, variances = (
            jnp.broadcast_to(x, (*batch, *law.event_shape)).reshape(*batch, 1, -1)
            for x in (law.mean, law.variance)
        )
        return jnp.zeros((*batch, 1)), means, variances[..., None] * jnp.eye(means.shape[-1])
    if isinstance(law, dist.ExpandedDistribution):
        lost = len(law.base_dist.batch_shape)
        w, m, a = (
            jnp.broadcast_to(x, (*batch, *x.shape[lost:])) for x in _mixture(name, law.base_dist, None)
        )
        return w, m, a
    if isinstance(law, dist.MixtureSameFamily):
        _, means, covariances = _mixture(name, law.component_distribution, None)
        logits = jax.nn.log_softmax(law.mixing_distribution.logits)
        return logits, means[..., 0, :], covariances[..., 0, :, :]
    if isinstance(law, dist.MultivariateNormal):
        covariance = jnp.broadcast_to(law.covariance_matrix, (*batch, *law.event_shape * 2))
        means = jnp.broadcast_to(law.loc, (*batch, *law.event_shape))
        return jnp.zeros((*batch, 1)), means[..., None, :], covariance[..., None, :, :]
    raise ArgumentTypeError(
        f"cs_divergence: {name} must be a Normal, a MultivariateNormal, a MixtureSameFamily of these or "
        f"draws, got {described(law)}."
    )
