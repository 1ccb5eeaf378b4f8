r"""Observations with gaps: a NaN in observed data is a value that was not seen.

Where nothing looks at the value its density is summed out (:func:`observed_term`). Where the step hands it
on, as an autoregression on the observations does, it is a state: drawn from its law given what was seen of
the same event (:func:`filled`), with the density

.. math:: p(y_{\text{missing}} \mid y_{\text{seen}}) = p(y) / p(y_{\text{seen}})

(:func:`missing_term`), so that with the term of what was seen it has the density of the whole.
"""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from numpyro.distributions import Distribution
from numpyro.distributions.util import is_identically_one

from ppl_ext.densities.distributions import elements, log_prob
from ppl_ext.errors import ModelError
from ppl_ext.gradients import finite_support


def observed_term(site: dict) -> jax.Array:
    r"""The log density of an observed site, elementwise, where what is NaN was not seen.

    .. math:: \log p(y_{\text{seen}}) = \log \int p(y)\, dy_{\text{missing}}

    Elements of the batch are independent, so a missing one has the term 0. Inside one event the integral is
    taken for ``.to_event`` laws and for ``MultivariateNormal``; an event of another law counts as missing as
    a whole if one of its entries is NaN. Factors are taken as they are. Mask and scale are applied.
    """
    fn, value, scale = site["fn"], jnp.asarray(site["value"]), site["scale"]
    if not holds_nan(fn, value):
        term = log_prob(fn, value, site["intermediates"])
    else:
        term = _seen(fn, value, jnp.isnan(value), site["name"])
    return term if scale is None or is_identically_one(scale) else scale * term


def holds_nan(fn: Distribution, value: jax.Array) -> bool:
    """Whether a NaN there is a gap: not in a factor, and not in integers."""
    return not isinstance(_innermost(fn), dist.Unit | dist.Delta) and jnp.issubdtype(
        value.dtype, jnp.floating
    )


def can_be_drawn(fn: Distribution, value: jax.Array) -> bool:
    """Whether a gap in a value of this law could be drawn: each element has a law of its own."""
    extra = value.ndim - len(fn.shape())
    fits = extra >= 0 and value.shape[extra:] == fn.shape()
    return fits and holds_nan(fn, value) and not isinstance(_innermost(fn), dist.ImproperUniform)


def gaps(fn: Distribution, value: jax.Array) -> jax.Array:
    """Which entries were not seen, of the value's shape; an event is missing as a whole, but of laws that can
    be split.
    """
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    missing = jnp.isnan(value)
    if isinstance(fn, dist.MultivariateNormal):
        return missing
    return jnp.broadcast_to(missing.any(tuple(range(-fn.event_dim, 0)), keepdims=True), value.shape)


def filled(fn: Distribution, value: jax.Array, drawn: jax.Array) -> jax.Array:
    """The value, with what is missing from ``drawn``, a draw of the law. In a normal vector it moves with
    what was seen of the rest (Matheron's rule): the draw given that."""
    missing, law = jnp.isnan(value), _innermost(fn)
    if isinstance(law, dist.MultivariateNormal):
        root, _ = seen_root(law.scale_tril, missing)
        off = jnp.where(missing, 0.0, jnp.where(missing, 0.0, value) - drawn)
        pull = cho_solve((jnp.broadcast_to(root, (*off.shape[:-1], *root.shape[-2:])), True), off[..., None])
        drawn = drawn + jnp.matmul(law.covariance_matrix, pull)[..., 0]
    return jnp.where(gaps(fn, value), jnp.asarray(drawn, value.dtype), value)


def missing_term(fn: Distribution, value: jax.Array, full: jax.Array, name: str) -> jax.Array:
    """The log density of what was not seen of ``value`` given what was, at ``full``; what a mask hides was
    not seen, and has it too.
    """
    match fn:
        case dist.MaskedDistribution():
            return missing_term(fn.base_dist, value, full, name)
        case dist.Independent():
            return missing_term(fn.base_dist, value, full, name).sum(
                tuple(range(-fn.reinterpreted_batch_ndims, 0))
            )
        case dist.ExpandedDistribution():
            return missing_term(fn.base_dist, value, full, name)
    missing = jnp.isnan(value)
    term = log_prob(fn, full)
    if isinstance(fn, dist.MultivariateNormal):
        term = term - _seen_normal(fn, value, missing)
    return jnp.where(missing.any(tuple(range(value.ndim - fn.event_dim, value.ndim))), term, 0.0)


def idle_term(fn: Distribution, value: jax.Array, full: jax.Array) -> jax.Array:
    """A density for the entries that were seen, so that a sum over all values of the state counts each of
    theirs once.
    """
    if fn.has_enumerate_support:
        each = jnp.full(value.shape, -math.log(len(finite_support(elements(fn)))))
    else:
        each = -0.5 * full**2 - 0.5 * math.log(2 * math.pi)
    return jnp.where(gaps(fn, value), 0.0, each).sum()


def _innermost(fn: Distribution) -> Distribution:
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def _seen(fn: Distribution, value: jax.Array, missing: jax.Array, name: str) -> jax.Array:
    match fn:
        case dist.MaskedDistribution():  # what a mask hides need not be in the support either
            hidden = ~jnp.broadcast_to(jnp.asarray(fn._mask), fn.batch_shape)
            shape = (
                lax.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - fn.event_dim])
                + fn.event_shape
            )
            hidden = hidden.reshape(hidden.shape + (1,) * fn.event_dim)
            return _seen(
                fn.base_dist, jnp.broadcast_to(value, shape), jnp.broadcast_to(missing, shape) | hidden, name
            )
        case dist.Independent():
            term = _seen(fn.base_dist, value, missing, name)
            return term.sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
        case dist.ExpandedDistribution():
            shape = lax.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - fn.event_dim])
            return jnp.broadcast_to(_seen(fn.base_dist, value, missing, name), shape)
        case dist.MultivariateNormal():
            return lax.cond(
                missing.any(), _seen_normal, lambda fn, value, _: fn.log_prob(value), fn, value, missing
            )
    anything = lax.stop_gradient(jnp.broadcast_to(_feasible(fn, value, name), value.shape))
    term = log_prob(fn, jnp.where(missing, anything, value))
    return jnp.where(missing.any(tuple(range(value.ndim - fn.event_dim, value.ndim))), 0.0, term)


def _feasible(fn: Distribution, value: jax.Array, name: str) -> jax.Array:
    """Some value that the law allows: where data are missing it stands in, and its term is dropped."""
    try:
        return fn.support.feasible_like(value)
    except NotImplementedError as error:  # what a NumPyro constraint raises that knows no value of its own
        raise ModelError(
            f"Observed site '{name}' ({type(fn).__name__}) cannot hold NaN for missing values: NumPyro "
            "knows no value of its support. Pass data without NaN, and mask what is missing by "
            "numpyro.handlers.mask inside the step."
        ) from error


def _seen_normal(fn: dist.MultivariateNormal, value: jax.Array, missing: jax.Array) -> jax.Array:
    """The marginal density of the seen coordinates: missing ones become independent standard normals at their
    mean.
    """
    root, seen = seen_root(fn.scale_tril, missing)
    rest = jnp.where(missing, 0.0, jnp.where(missing, 0.0, value) - fn.loc)
    root = jnp.broadcast_to(root, (*rest.shape[:-1], *root.shape[-2:]))
    white = solve_triangular(root, rest[..., None], lower=True)[..., 0]
    half_log_det = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
    return -0.5 * (white**2).sum(-1) - half_log_det - 0.5 * jnp.log(2 * jnp.pi) * seen.sum(-1)


def seen_root(root: jax.Array, missing: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A Cholesky factor of the covariance whose own factor is ``root``, where missing coordinates are
    independent of variance 1; and which are not.
    """
    seen = ~missing
    keep = seen[..., :, None] & seen[..., None, :]
    whole, alone = jnp.matmul(root, jnp.swapaxes(root, -1, -2)), jnp.eye(missing.shape[-1], dtype=root.dtype)
    return jnp.linalg.cholesky(jnp.where(keep, whole, alone)), seen
