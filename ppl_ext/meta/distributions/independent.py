"""A vector made of independent parts, as one NumPyro distribution."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints


class Independent(dist.Distribution):
    """Independent vectors laid end to end: event shape (d₁ + d₂ + ...,).

    :param parts: distributions with event shapes (dᵢ,) and equal batch shapes.
    """

    support = constraints.real_vector
    pytree_data_fields = ("parts",)
    reparametrized_params = ("parts",)

    def __init__(self, parts: Sequence[dist.Distribution], *, validate_args=None):
        self.parts = tuple(parts)
        size = sum(p.event_shape[0] for p in self.parts)
        super().__init__(
            batch_shape=self.parts[0].batch_shape, event_shape=(size,), validate_args=validate_args
        )

    def sample(self, key, sample_shape=()):
        keys = jax.random.split(key, len(self.parts))
        return jnp.concatenate(
            [p.sample(k, sample_shape) for p, k in zip(self.parts, keys, strict=True)], axis=-1
        )

    def log_prob(self, value):
        pieces = jnp.split(value, np.cumsum([p.event_shape[0] for p in self.parts])[:-1], axis=-1)
        return sum(p.log_prob(x) for p, x in zip(self.parts, pieces, strict=True))

    @property
    def mean(self):
        return jnp.concatenate([p.mean for p in self.parts], axis=-1)

    @property
    def variance(self):
        return jnp.concatenate([p.variance for p in self.parts], axis=-1)
