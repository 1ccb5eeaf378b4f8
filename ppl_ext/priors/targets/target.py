"""What a target is: a law over functions that can be drawn at any inputs, and perhaps has moments that are
known.
"""

from typing import Protocol, runtime_checkable

import jax


@runtime_checkable
class Target(Protocol):
    """Any object with this method; ``mean(inputs)``, (M,) or (M, P), and ``cov(inputs)``, (M, M) or (M·P,
    M·P), may be there too.

    >>> import jax.numpy as jnp
    >>> class Lines:  # with random slopes
    ...     def sample(self, rng_key, inputs, num_draws):
    ...         return jax.random.normal(rng_key, (num_draws, 1)) * inputs[:, 0]
    >>> isinstance(Lines(), Target), Lines().sample(jax.random.key(0), jnp.ones((5, 1)), 3).shape
    (True, (3, 5))
    """

    def sample(self, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        """(num_draws, M), or (num_draws, M, P) for P outputs."""
