"""The largest value of a density: what rejection needs to know of a transition."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

_AT_LOCATION = (
    dist.Normal
    | dist.MultivariateNormal
    | dist.LowRankMultivariateNormal
    | dist.Laplace
    | dist.StudentT
    | dist.Cauchy
)


def log_peak(fn: dist.Distribution) -> jax.Array | None:
    r"""Log of :math:`\sup_x p(x)`, one number for each element of the batch; None where it is not known.

    >>> float(log_peak(dist.Normal(3.0, 0.5))) == float(dist.Normal(0.0, 0.5).log_prob(0.0))
    True
    >>> log_peak(dist.Gamma(2.0, 1.0)) is None
    True
    """
    match fn:
        case dist.MaskedDistribution() if fn.has_enumerate_support:
            peak = log_peak(fn.base_dist)
            # an outcome counts one where it is masked
            return None if peak is None else jnp.maximum(peak, 0.0)
        case dist.MaskedDistribution() | dist.ExpandedDistribution():
            peak = log_peak(fn.base_dist)
            return None if peak is None else jnp.broadcast_to(peak, fn.batch_shape)
        case dist.Independent():
            peak = log_peak(fn.base_dist)
            return None if peak is None else peak.sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
        case dist.CategoricalProbs() | dist.CategoricalLogits():
            logits = (
                jnp.log(fn.probs) if isinstance(fn, dist.CategoricalProbs) else jax.nn.log_softmax(fn.logits)
            )
            return logits.max(-1)
        case dist.BernoulliProbs() | dist.BernoulliLogits():
            return jnp.log(jnp.maximum(fn.probs, 1.0 - fn.probs))
        case dist.Delta():
            return None
        case _ if isinstance(fn, _AT_LOCATION):
            return fn.log_prob(jnp.broadcast_to(fn.loc, fn.batch_shape + fn.event_shape))
    return None
