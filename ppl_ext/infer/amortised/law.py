"""A mixture of normals in unconstrained space, from the numbers that a network puts out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform, ReshapeTransform

from ppl_ext.infer.amortised.pilot import Latent

LEAST = 1e-3
"""Least standard deviation, in those of the prior."""


def mixture_size(k: int, d: int) -> int:
    """How many numbers stand for k components in d dimensions: weights of more than one, means, factors."""
    return (k if k > 1 else 0) + k * (d + d * (d + 1) // 2)


def mixture(out: jax.Array, k: int, center: Any, scale: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits (k,), means (k, d) and Cholesky factors (k, d, d); numbers of 0 are near the prior."""
    d, num_logits = len(center), k if k > 1 else 0
    logits, loc, rest = jnp.split(out, [num_logits, num_logits + k * d])
    logits = logits if k > 1 else jnp.zeros(1, out.dtype)
    apart = jnp.linspace(-1.0, 1.0, k) if k > 1 else jnp.zeros(1)  # alike they would stay alike
    diagonal, below = jnp.split(rest.reshape(k, -1), [d], axis=1)
    rows, columns = np.tril_indices(d, -1)
    factor = jnp.zeros((k, d, d), out.dtype).at[:, rows, columns].set(below)
    factor = factor + jax.vmap(jnp.diag)(LEAST + jax.nn.softplus(diagonal + np.log(np.e - 1.0)))
    center, scale = (jnp.asarray(x, out.dtype) for x in (center, scale))
    return logits, center + scale * (loc.reshape(k, d) + apart[:, None]), scale[:, None] * factor


def site_law(site: Latent, logits: jax.Array, loc: jax.Array, tril: jax.Array) -> dist.Distribution:
    """A mixture of normals, (K,), (K, m) and (K, m, m), on the site's support."""
    if len(logits) == 1:
        loc, tril = loc[0], tril[0]
    alone = site.shape == ()
    law: Any = (
        dist.Normal(loc[..., 0], tril[..., 0, 0]) if alone else dist.MultivariateNormal(loc, scale_tril=tril)
    )
    if len(logits) > 1:
        law = dist.MixtureSameFamily(dist.Categorical(logits=logits), law)
    steps = [] if len(site.shape) < 2 else [ReshapeTransform(site.shape, (site.end - site.start,))]
    if not isinstance(to := biject_to(site.support), IdentityTransform):
        steps.append(to)
    return dist.TransformedDistribution(law, steps) if steps else law
