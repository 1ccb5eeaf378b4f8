"""Random sets of targets, as arrays with a fixed number of slots."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, described
from ppl_ext.smoothing.tracking.linear_step import Linear


class Bernoullis(NamedTuple):
    """Targets that may exist: with probability ``existence`` (N,), normal around ``mean`` (N, d). A slot
    without a target has existence 0 and label −1.
    """

    existence: jax.Array
    mean: jax.Array
    covariance: jax.Array
    label: jax.Array


class Intensity(NamedTuple):
    """A Poisson process of targets: its intensity is a mixture of normals with these weights (C,), which are
    numbers of targets.
    """

    weight: jax.Array
    mean: jax.Array
    covariance: jax.Array


class PoissonTargets(eqx.Module):
    r"""Targets of a Poisson point process whose intensity is a mixture of normal laws.

    .. math:: \lambda(x) = \sum_k \text{rate}_k \, \mathcal{N}(x; m_k, P_k)

    As ``births`` of a :class:`Tracker` they are new in every step, as ``initial`` they are there before the
    first one. None of them has a name of its own before it is measured.

    :param rate: (K,), or a number: how many targets are expected of each component.
    :param law: of a state, with batch shape (K,) or (): a ``MultivariateNormal``, or
        ``Normal(...).to_event(1)``.
    :raises ArgumentError: for a rate that is negative or a covariance that is not positive definite.
    :raises ArgumentTypeError: for another law.

    >>> PoissonTargets(0.1, dist.Normal(jnp.zeros(4), 10.0).to_event(1)).components().mean.shape
    (1, 4)
    """

    rate: Any
    law: dist.Distribution

    def __check_init__(self):
        check_array("PoissonTargets: rate", self.rate)
        components = self.components()
        _check_laws("PoissonTargets", components.mean, components.covariance)
        if _numbers(components.weight, lambda x: (x < 0.0) | ~np.isfinite(x)):
            raise ArgumentError(
                "PoissonTargets: rate is a number of targets, zero or more and finite, got "
                f"{np.asarray(self.rate).tolist()}."
            )

    def components(self) -> Intensity:
        """The mixture's weights, means and covariances."""
        return Intensity(*_normals("PoissonTargets", "rate", self.rate, self.law))


class BernoulliTargets(eqx.Module):
    """Targets each of which exists with a probability, at most K of them.

    As ``births`` of a :class:`Tracker` each may be born in every step and takes a slot there, as ``initial``
    they are there before the first step.

    :param prob: (K,), or a number: the probability that each exists.
    :param law: of a state, with batch shape (K,) or (): a ``MultivariateNormal``, or
        ``Normal(...).to_event(1)``.
    :raises ArgumentError: for a probability outside [0, 1] or a covariance that is not positive definite.
    :raises ArgumentTypeError: for another law.

    >>> one = BernoulliTargets(1.0, dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))  # a target for sure
    >>> one.bernoullis().existence.tolist()
    [1.0]
    """

    prob: Any
    law: dist.Distribution

    def __check_init__(self):
        check_array("BernoulliTargets: prob", self.prob)
        found = self.bernoullis()
        _check_laws("BernoulliTargets", found.mean, found.covariance)
        if _numbers(found.existence, lambda p: ~((p >= 0.0) & (p <= 1.0))):
            raise ArgumentError(
                f"BernoulliTargets: prob must be within [0, 1], got {np.asarray(self.prob).tolist()}."
            )

    def bernoullis(self) -> Bernoullis:
        """The targets, without labels."""
        found = _normals("BernoulliTargets", "prob", self.prob, self.law)
        return Bernoullis(*found, jnp.full(len(found[0]), -1))


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product of matrices; of small ones as one sum, since many of them side by side are slow otherwise."""
    return (a[:, :, None] * b[None]).sum(1) if b.shape[0] <= 6 else a @ b


def moved(mean: jax.Array, covariance: jax.Array, law: Linear) -> tuple[jax.Array, jax.Array]:
    """Means (N, d) and covariances (N, d, d) one step later."""
    spread = jax.vmap(lambda p: times(times(law.slope, p), law.slope.T))(covariance) + law.covariance
    return mean @ law.slope.T + law.offset, 0.5 * (spread + jnp.swapaxes(spread, 1, 2))


def concatenated(*parts: Any) -> Any:
    """Sets of one kind as one."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def slots(num: int, size: int) -> Bernoullis:
    """Slots without a target."""
    spread = jnp.broadcast_to(jnp.eye(size), (num, size, size))
    return Bernoullis(jnp.zeros(num), jnp.zeros((num, size)), spread, jnp.full(num, -1))


def nowhere(num: int, size: int) -> Intensity:
    """Components without weight."""
    return Intensity(*slots(num, size)[:3])


def _normals(kind: str, what: str, weight: Any, law: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.Normal | dist.MultivariateNormal) or len(law.event_shape) != 1:
        given = type(law).__name__ if isinstance(law, dist.Distribution) else described(law)
        raise ArgumentTypeError(
            f"{kind}: law must be a normal law of vectors, such as dist.MultivariateNormal or "
            f"dist.Normal(...).to_event(1), got {given}."
        )
    if len(law.batch_shape) > 1:
        raise ArgumentError(f"{kind}: law must have batch shape () or (K,), got {law.batch_shape}.")
    num = law.batch_shape[0] if law.batch_shape else jnp.size(weight)
    if jnp.shape(weight) not in ((), (num,)):
        raise ArgumentError(
            f"{kind}: {what} must be a number or have one entry for each of {num} laws, got shape "
            f"{jnp.shape(weight)}."
        )
    size = law.event_shape[0]
    if isinstance(base, dist.MultivariateNormal):
        covariance = base.covariance_matrix
    else:
        covariance = jax.vmap(jnp.diag, in_axes=0)(law.variance.reshape(-1, size))
    mean = jnp.broadcast_to(law.mean, (num, size))
    covariance = jnp.broadcast_to(covariance.reshape(-1, size, size), (num, size, size))
    return jnp.broadcast_to(jnp.asarray(weight, mean.dtype), (num,)), mean, covariance


def _check_laws(kind: str, mean: Any, covariance: Any) -> None:
    if _numbers(mean, lambda x: ~np.isfinite(x)):
        raise ArgumentError(f"{kind}: a mean of the law is not finite.")
    if _numbers(covariance, lambda x: ~(np.isfinite(x).all() and (np.linalg.eigvalsh(x) > 0.0).all())):
        raise ArgumentError(
            f"{kind}: a covariance of the law is not positive definite (NumPyro makes NaN of such). Give "
            "every coordinate some variance."
        )


def _numbers(x: Any, wrong: Any) -> bool:
    """Whether any of these numbers is wrong; of what is traced nothing is known."""
    if isinstance(x, jax.core.Tracer):
        return False
    x = np.asarray(x)
    return bool(np.any(wrong(x))) if x.size else False
