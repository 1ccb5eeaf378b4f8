"""What a process over time is given, its name, times and data: checked once, for all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, described


def check_name(where: str, name: Any) -> None:
    """Whether the name of a process is a string, as names of sites are."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{where}: name must be a string, got {described(name)}.")


def as_times(where: str, which: str, times: Any) -> jax.Array:
    """A vector (n,) of real numbers with at least one entry. ``where`` names the process.

    >>> as_times("markov 'f'", "times", [0, 1]).tolist()
    [0.0, 1.0]
    """
    check_array(f"{where}: {which}", times)
    times = jnp.asarray(times)
    if times.ndim != 1:
        raise ArgumentError(f"{where}: {which} must be a vector of times, got {described(times)}.")
    if not len(times):
        raise ArgumentError(f"{where}: {which} is empty, and a process has at least one time.")
    return times if jnp.issubdtype(times.dtype, jnp.floating) else times.astype(float)


def check_order(where: str, times: Any) -> None:
    """Whether times do not decrease, where they are known."""
    if isinstance(times, jax.core.Tracer):
        return
    steps = np.diff(np.asarray(times))
    if not (steps >= 0).all():
        raise ArgumentError(
            f"{where}: times must not decrease (equal ones are fine), and must be numbers; at index "
            f"{int(np.argmin(steps >= 0)) + 1} they do. Sort them, and the data with them."
        )


def check_one_each(where: str, data: Any, num_times: int) -> None:
    """Whether every array of the data has one entry for each time."""
    for x in jax.tree.leaves(data):
        if jnp.ndim(x) < 1 or len(x) != num_times:
            raise ArgumentError(
                f"{where}: data must have one entry for each of the {num_times} times, got {described(x)}."
            )
