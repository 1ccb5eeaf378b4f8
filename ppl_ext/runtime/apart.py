"""Work that each device does on its own."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def apart(mesh: Mesh | None, fn: Callable) -> Callable:
    """Within a trace: ``(shared, split) -> fn(*shared, *split)``, by each device for its own part of
    ``split`` and of the result, along their leading axes. No device waits for another.

    >>> import jax.numpy as jnp
    >>> apart(None, lambda scale, x: scale * x)((2.0,), (jnp.arange(2.0),)).tolist()
    [0.0, 2.0]
    """

    def run(shared: tuple, split: tuple) -> Any:
        return fn(*shared, *split)

    if mesh is None:
        return run
    own = PartitionSpec(mesh.axis_names[0])
    return jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), own), out_specs=own, check_vma=False)
