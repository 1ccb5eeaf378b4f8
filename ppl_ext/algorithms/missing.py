"""Densities of observations with gaps: a NaN in observed data is a value that was not seen, and its density is summed out."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import Distribution
from numpyro.distributions.util import is_identically_one

from ppl_ext.errors import ModelError
from ppl_ext.laws import log_prob


def observed_term(site: dict) -> jax.Array:
    r"""The log density of an observed site, elementwise, where what is NaN was not seen.

    .. math:: \log p(y_{\text{seen}}) = \log \int p(y)\, dy_{\text{missing}}

    Elements of the batch are independent, so a missing one has the term 0. Inside one event the integral is taken for ``.to_event`` laws
    and for ``MultivariateNormal``; an event of another law counts as missing as a whole if one of its entries is NaN. Factors are taken as
    they are. Mask and scale are applied.
    """
    fn, value, scale = site["fn"], jnp.asarray(site["value"]), site["scale"]
    if isinstance(_innermost(fn), dist.Unit | dist.Delta) or not jnp.issubdtype(value.dtype, jnp.floating):
        term = log_prob(fn, value, site["intermediates"])
    else:
        term = _seen(fn, value, jnp.isnan(value), site["name"])
    return term if scale is None or is_identically_one(scale) else scale * term


def _innermost(fn: Distribution) -> Distribution:
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def _seen(fn: Distribution, value: jax.Array, missing: jax.Array, name: str) -> jax.Array:
    match fn:
        case dist.MaskedDistribution():  # what a mask hides need not be in the support either
            hidden = ~jnp.broadcast_to(jnp.asarray(fn._mask), fn.batch_shape)
            shape = lax.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - fn.event_dim]) + fn.event_shape
            hidden = hidden.reshape(hidden.shape + (1,) * fn.event_dim)
            return _seen(fn.base_dist, jnp.broadcast_to(value, shape), jnp.broadcast_to(missing, shape) | hidden, name)
        case dist.Independent():
            term = _seen(fn.base_dist, value, missing, name)
            return term.sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
        case dist.ExpandedDistribution():
            shape = lax.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - fn.event_dim])
            return jnp.broadcast_to(_seen(fn.base_dist, value, missing, name), shape)
        case dist.MultivariateNormal():
            return lax.cond(missing.any(), _seen_normal, lambda fn, value, _: fn.log_prob(value), fn, value, missing)
    anything = lax.stop_gradient(jnp.broadcast_to(_feasible(fn, value, name), value.shape))
    term = log_prob(fn, jnp.where(missing, anything, value))
    return jnp.where(missing.any(tuple(range(value.ndim - fn.event_dim, value.ndim))), 0.0, term)


def _feasible(fn: Distribution, value: jax.Array, name: str) -> jax.Array:
    """Some value that the law allows: where data are missing it stands in, and its term is dropped."""
    try:
        return fn.support.feasible_like(value)
    except NotImplementedError as error:  # what a NumPyro constraint raises that knows no value of its own
        raise ModelError(
            f"Observed site '{name}' ({type(fn).__name__}) cannot hold NaN for missing values: NumPyro knows no value of its support. "
            "Pass data without NaN, and mask what is missing by numpyro.handlers.mask inside the step."
        ) from error


def _seen_normal(fn: dist.MultivariateNormal, value: jax.Array, missing: jax.Array) -> jax.Array:
    """The marginal density of the seen coordinates: missing ones become independent standard normals at their mean."""
    seen = ~missing
    keep = seen[..., :, None] & seen[..., None, :]
    covariance = jnp.where(keep, fn.covariance_matrix, jnp.eye(value.shape[-1], dtype=value.dtype))
    root = jnp.linalg.cholesky(covariance)
    rest = jnp.where(missing, 0.0, jnp.where(missing, 0.0, value) - fn.loc)
    root = jnp.broadcast_to(root, (*rest.shape[:-1], *root.shape[-2:]))
    white = solve_triangular(root, rest[..., None], lower=True)[..., 0]
    half_log_det = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
    return -0.5 * (white**2).sum(-1) - half_log_det - 0.5 * jnp.log(2 * jnp.pi) * seen.sum(-1)
