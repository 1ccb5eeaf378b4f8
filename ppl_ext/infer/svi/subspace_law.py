"""Normal laws for some elements of an array, the others being zero."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample


class OnSubspace(Distribution):
    """An array of which the elements ``rows`` are normal, and all others zero.

    Its density is that of those elements alone. Rows that are not those of the array belong to another.

    >>> law = OnSubspace(jnp.array([1.0, 5.0]), jnp.ones(2), jnp.array([2, 7]), (3,))
    >>> law.mean.tolist(), bool(law.sample(jax.random.key(0))[0] == 0.0)
    ([0.0, 0.0, 1.0], True)
    >>> print(f"{law.log_prob(law.mean):.4f}")
    -0.9189
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    reparametrized_params = ["loc", "scale"]
    pytree_data_fields = ("loc", "scale", "rows")
    holds_points = True  # so that nobody weighs by its density

    def __init__(self, loc: Any, scale: Any, rows: Any, shape: tuple[int, ...], *, validate_args=None):
        size = math.prod(shape)
        self.loc, self.scale = loc, scale
        self.rows = jnp.where((rows >= 0) & (rows < size), rows, size)  # the last is dropped
        super().__init__((), shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    def _spread_out(self, elements: jax.Array) -> jax.Array:
        flat = jnp.zeros((*elements.shape[:-1], math.prod(self.event_shape)), elements.dtype)
        flat = flat.at[..., self.rows].set(elements, mode="drop")
        return flat.reshape(*elements.shape[:-1], *self.event_shape)

    def sample(self, key, sample_shape=()):
        noise = jax.random.normal(key, (*sample_shape, len(self.loc)), jnp.result_type(self.loc))
        return self._spread_out(self.loc + self.scale * noise)

    @validate_sample
    def log_prob(self, value):
        size = math.prod(self.event_shape)
        flat = value.reshape(*value.shape[: value.ndim - len(self.event_shape)], size)
        there = self.rows < size
        logs = dist.Normal(self.loc, self.scale).log_prob(flat[..., jnp.where(there, self.rows, 0)])
        return jnp.where(there, logs, 0.0).sum(-1)

    @property
    def mean(self):
        return self._spread_out(self.loc)

    @property
    def variance(self):
        return self._spread_out(self.scale**2)
