"""Densities of NumPyro's distributions, mended where their value is right and their derivative is not.

``Bernoulli(logits=0.)`` has one-sided derivatives 0 and 1 in NumPyro where −½ and ½ are right, and zero
logits are where many guides start. Probabilities of exactly 0 and 1 are clamped there before the logarithm,
which loses the derivative; :func:`prob` does not take a logarithm.
"""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import Distribution

from ppl_ext.errors import ModelError


def log_prob(fn: Distribution, value, intermediates=None) -> jax.Array:
    """``fn.log_prob(value)``, with derivatives that are right at every logit of a Bernoulli, under whatever
    wrapper it lies.

    >>> import jax
    >>> [float(jax.grad(lambda l: log_prob(dist.Bernoulli(logits=l), y))(0.0)) for y in (0.0, 1.0)]
    [-0.5, 0.5]
    """
    fn = _mended(fn)
    return (
        fn.log_prob(value, intermediates)
        if intermediates and _reads_intermediates(fn)
        else fn.log_prob(value)
    )


def _reads_intermediates(fn: Distribution) -> bool:
    """Whether a law takes what its own sampler hands on: a folded one does not, and NumPyro gives it to it
    all the same.
    """
    while type(fn).__name__ in ("MaskedDistribution", "Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    return "intermediates" in inspect.signature(type(fn).log_prob).parameters


def check_draw(name: str, fn: Distribution, value, sample_shape: tuple[int, ...] = ()) -> None:
    """Raise for a law whose draws are no values that its density takes: NumPyro's law of data that are
    censored to intervals draws points.

    :raises ModelError: naming the site.
    """
    shape, expected = jnp.shape(value), tuple(fn.shape(sample_shape))
    if (
        shape != expected
        and jax.eval_shape(lambda key: fn.sample(key, sample_shape), jax.random.key(0)).shape == shape
    ):
        raise ModelError(
            f"Site '{name}' ({type(fn).__name__}) cannot be drawn: its draws have shape {shape}, and its "
            f"density takes values of shape {expected}. Observe it, or give it a value."
        )


def prob(fn: Distribution, value) -> jax.Array:
    """The probability of each element of a finite distribution, differentiable at probabilities 0 and 1 too.

    >>> import jax
    >>> [float(jax.grad(lambda p: prob(dist.Bernoulli(p), y))(0.0)) for y in (0, 1)]
    [-1.0, 1.0]
    """
    match fn:
        case dist.ExpandedDistribution():
            shape = lax.broadcast_shapes(fn.batch_shape, jnp.shape(value)[: jnp.ndim(value) - fn.event_dim])
            return jnp.broadcast_to(prob(fn.base_dist, value), shape)
        case dist.BernoulliProbs():
            return jnp.where(value == 1, fn.probs, 1 - fn.probs)
        case dist.BernoulliLogits():
            return jax.nn.sigmoid(jnp.where(value == 1, fn.logits, -fn.logits))
        case dist.CategoricalProbs():
            shape = lax.broadcast_shapes(fn.batch_shape, jnp.shape(value))
            index = jnp.broadcast_to(value, shape)[..., None]
            probs = jnp.broadcast_to(fn.probs, (*shape, fn.probs.shape[-1]))
            return jnp.take_along_axis(probs, index, axis=-1)[..., 0]
        case _:
            return jnp.exp(log_prob(fn, value))


def unmasked(fn):
    """The law that a site is really drawn from: masks hide terms of a density, they do not change the
    draw.
    """
    if type(fn).__name__ == "MaskedDistribution":
        return unmasked(fn.base_dist)
    if type(fn).__name__ == "ExpandedDistribution":
        return unmasked(fn.base_dist).expand(fn.batch_shape)
    return fn


def elements(fn):
    """The law that a site is drawn from, element by element: without masks, ``.to_event`` axes again axes of
    the batch.
    """
    match type(fn).__name__:
        case "MaskedDistribution":
            return elements(fn.base_dist)
        case "Independent":
            return elements(fn.base_dist)
        case "ExpandedDistribution":
            inner = elements(fn.base_dist)
            return inner.expand((*fn.batch_shape, *inner.batch_shape[len(fn.base_dist.batch_shape) :]))
    return fn


def element_log_prob(fn: Distribution, value) -> jax.Array:
    """The log density of each element of a value, with its mask: ``.to_event`` axes are axes of the batch
    here.

    >>> law = dist.Bernoulli(0.5).expand([2]).mask(jnp.array([True, False])).to_event(1)
    >>> [round(float(x), 4) for x in element_log_prob(law, jnp.array([1, 1]))]
    [-0.6931, 0.0]
    """
    value_of_each, mask = log_prob(elements(fn), value), element_mask(fn)
    return value_of_each if mask is None else jnp.where(mask, value_of_each, 0.0)


def element_mask(fn: Distribution) -> jax.Array | None:
    """Where a law's elements count, over the batch of :func:`elements`; ``None`` if no mask is on it."""
    match type(fn).__name__:
        case "MaskedDistribution":
            inner, depth = (
                element_mask(fn.base_dist),
                len(elements(fn.base_dist).batch_shape) - len(fn.batch_shape),
            )
            if fn._mask is True:
                return inner
            own = jnp.broadcast_to(jnp.asarray(fn._mask), fn.batch_shape)
            own = own.reshape(own.shape + (1,) * depth)
            return own if inner is None else own & inner
        case "Independent":
            return element_mask(fn.base_dist)
        case "ExpandedDistribution":
            inner = element_mask(fn.base_dist)
            if inner is None:
                return None
            axes = len(inner.shape) - len(fn.base_dist.batch_shape)  # those of the event stay on the right
            batch = inner.shape[: len(inner.shape) - axes]
            inner = inner.reshape((1,) * (len(fn.batch_shape) - len(batch)) + inner.shape)
            return jnp.broadcast_to(inner, (*fn.batch_shape, *inner.shape[len(fn.batch_shape) :]))
    return None


def mask_of(fn: Distribution) -> jax.Array | None:
    """The mask on a distribution, over its batch shape; ``None`` if nothing is masked.

    Where an event is made of batch axes (``to_event``), the event counts as seen if any part of it is.
    """
    if isinstance(fn, dist.MaskedDistribution):
        inner = mask_of(fn.base_dist)
        own = None if fn._mask is True else jnp.broadcast_to(jnp.asarray(fn._mask), fn.batch_shape)
        return inner if own is None else own if inner is None else own & inner
    if isinstance(fn, dist.ExpandedDistribution):
        inner = mask_of(fn.base_dist)
        return None if inner is None else jnp.broadcast_to(inner, fn.batch_shape)
    if isinstance(fn, dist.Independent):
        inner = mask_of(fn.base_dist)
        axes = tuple(range(-fn.reinterpreted_batch_ndims, 0))
        return inner if inner is None or not axes else inner.any(axis=axes)
    return None


def masks(fn: Distribution) -> list:
    """The masks on a law, as they were given, from the outside in."""
    found = [] if getattr(fn, "_mask", True) is True else [fn._mask]
    return found + (
        masks(fn.base_dist)
        if type(fn).__name__ in ("MaskedDistribution", "Independent", "ExpandedDistribution")
        else []
    )


def same(a, b) -> bool:
    """Whether two arrays are one, or known to be equal."""
    if a is b:
        return True
    try:
        return np.array_equal(np.asarray(a), np.asarray(b))
    except Exception:  # a tracer: each kind raises its own type
        return False


class _BernoulliLogits(dist.BernoulliLogits):
    def log_prob(self, value):
        # −w a − log(1 + e^−a), a the size of the logit and w the weight of the side that it speaks against.
        # The size is written out by a selection: the derivative of abs at 0 is 0, and both terms must be on
        # one side there.
        positive = self.logits > 0
        size = jnp.where(positive, self.logits, -self.logits)
        against = jnp.where(positive, 1 - value, value)
        return -jnp.where(against == 0, 0.0, against * size) - jnp.log1p(jnp.exp(-size))


def _mended(fn: Distribution) -> Distribution:
    """Replace every Bernoulli on logits inside a distribution."""
    if type(fn) is dist.BernoulliLogits:
        fn = copy.copy(fn)
        fn.__class__ = _BernoulliLogits
        return fn
    inner = {k: _mended(v) for k, v in vars(fn).items() if isinstance(v, Distribution)}
    if all(v is vars(fn)[k] for k, v in inner.items()):
        return fn
    fn = copy.copy(fn)
    vars(fn).update(inner)
    return fn
