"""What a distance between two laws of functions is, and what it gets to see of them."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax

from ppl_ext.errors import ArgumentError


class Functions(NamedTuple):
    """Draws of functions at D values (inputs times outputs), and what is known of their moments beyond the
    draws.

    ``values``: (draw, D). ``mean``: (D,) or None. ``cov``: (D, D) or None.

    >>> import jax.numpy as jnp
    >>> draws = Functions(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> draws.values.shape, draws.cov is None
    ((2, 2), True)
    """

    values: jax.Array
    mean: jax.Array | None = None
    cov: jax.Array | None = None


class Distance(eqx.Module):
    """An estimate of how far a network's functions are from the target's, differentiable in the former.

    State is for distances that learn something on the way, such as a critic. Each step of matching calls
    ``prepare`` once, without gradients, and then differentiates the call.

    >>> import jax.numpy as jnp
    >>> class OfMeans(Distance):
    ...     def __call__(self, rng_key, state, network, target):
    ...         return jnp.sum((network.values.mean(0) - target.values.mean(0)) ** 2)
    >>> float(OfMeans()(None, (), Functions(jnp.ones((4, 3))), Functions(jnp.zeros((4, 3)))))
    3.0
    """

    wants_moments: bool = eqx.field(static=True, default=False, init=False, kw_only=True)

    def start(self, rng_key: jax.Array, dim: int) -> Any:
        """The state before the first step, for functions at ``dim`` values."""
        return ()

    def prepare(
        self, rng_key: jax.Array, state: Any, draw: Callable[[jax.Array], tuple[Functions, Functions]]
    ) -> Any:
        """The state for this step. ``draw(key)`` draws both laws anew at this step's inputs."""
        return state

    @abstractmethod
    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        """The estimate, a scalar."""


def check_draws(
    where: str, f: jax.Array, g: jax.Array, at_least: int, even: bool = False, equal: bool = False
) -> None:
    """Static checks, while tracing: (draw, D) of one D, with enough draws."""
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1]:
        raise ArgumentError(
            f"{where}: draws must be (draw, value) with as many values in both sets, got shapes {f.shape} "
            f"and {g.shape}."
        )
    if (
        min(len(f), len(g)) < at_least
        or (even and (len(f) % 2 or len(g) % 2))
        or (equal and len(f) != len(g))
    ):
        kind = (
            f"{'an even number of ' if even else ''}at least {at_least} "
            f"draws{', as many of each,' if equal else ''}"
        )
        raise ArgumentError(f"{where} needs {kind} got {len(f)} and {len(g)}.")
