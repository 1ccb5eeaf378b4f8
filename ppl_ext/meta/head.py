"""The last layer of a network as a local site: features shared, a head for each episode."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, described


def head(name: str, features: jax.Array, num_outputs: int | None = None) -> jax.Array:
    r"""Outputs of a linear layer with bias whose weights are one sample site, to be lifted as local.

    .. math:: f = [\phi, 1]\, W, \qquad W \text{ of shape } (p + 1,) \text{ or } (p + 1, k)

    With real-valued outputs and a Normal of fixed scale, the episode is linear-Gaussian in W, so that
    :class:`ExactLinearGaussian` is exact, and with ``structure="full"`` the hierarchy learns the covariance
    of all of W: a kernel between the rows of features. The features' network comes from
    ``numpyro.contrib.module``: ``nnx_module``, ``flax_module`` or ``eqx_module``; its weights are shared
    params.

    :param name: of the site. Its own prior, a standard Normal, is what :func:`lift` replaces.
    :param features: φ, shape (rows, p).
    :param num_outputs: k; by default one output without an axis of its own.
    :return: shape (rows,), or (rows, k).
    :raises ArgumentError: for features of another shape.

    >>> import jax.numpy as jnp, numpyro
    >>> with numpyro.handlers.seed(rng_seed=0):
    ...     head("weights", jnp.ones((5, 3))).shape, head("logits", jnp.ones((5, 3)), num_outputs=4).shape
    ((5,), (5, 4))
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"head: name must be the name of a site, got {described(name)}.")
    if jnp.ndim(features) != 2:
        raise ArgumentError(
            f"head: features of site '{name}' must have shape (rows, p), got {jnp.shape(features)}."
        )
    if num_outputs is not None:
        check_count("head: num_outputs", num_outputs)
    features = jnp.asarray(features)
    shape = (features.shape[1] + 1,) if num_outputs is None else (features.shape[1] + 1, num_outputs)
    weights = numpyro.sample(name, dist.Normal(jnp.zeros(shape, features.dtype), 1.0).to_event(len(shape)))
    return features @ weights[:-1] + weights[-1]
