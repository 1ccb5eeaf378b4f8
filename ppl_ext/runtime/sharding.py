"""Work spread over devices along a leading axis (chains, particles, episodes), by JAX's own SPMD; nothing
else here knows of devices.

A mesh of one axis holds the devices, of one process or of several (``jax.distributed``). What has a leading
axis is placed along it, and the compiler does the rest: each device works on its share, and sums over the
axis talk to the others. Random numbers depend on an element's place in the whole axis, so that results do not
depend on the devices but for rounding.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ProcessError
from ppl_ext.runtime.arguments import described


def check_mesh(where: str, mesh: Any, count: int | None = None, what: str = "") -> None:
    """A mesh of one axis, over which ``count`` things divide; None is no mesh, which is fine.

    :raises ArgumentError: for another, or where the threads are too few for it.

    >>> mesh = jax.make_mesh((1,), ("chains",), axis_types=(AxisType.Auto,))
    >>> check_mesh("fit", mesh, 8, "num_chains")
    """
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise ArgumentTypeError(
            f"{where}: mesh must be a jax.sharding.Mesh, such as jax.make_mesh gives, got {described(mesh)}."
        )
    if len(mesh.axis_names) != 1:
        raise ArgumentError(
            f"{where}: mesh must have one axis, and this one has {len(mesh.axis_names)}, {mesh.axis_names}. "
            "All of its devices share one leading axis: jax.make_mesh((number of devices,), ('devices',), "
            "axis_types=(AxisType.Auto,))."
        )
    if mesh.axis_types[0] != AxisType.Auto:
        raise ArgumentError(
            f"{where}: the mesh's axis must be of type AxisType.Auto, so that the compiler may share out "
            f"the work, and this one is of type {mesh.axis_types[0].name}: jax.make_mesh(..., "
            "axis_types=(AxisType.Auto,))."
        )
    if count is not None and count % mesh.size:
        raise ArgumentError(
            f"{where}: {what}={count} does not divide over the {mesh.size} devices of the mesh's axis "
            f"'{mesh.axis_names[0]}'. Take a multiple of {mesh.size}."
        )
    if jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        from ppl_ext.runtime.host_threads import refuse_to_starve

        refuse_to_starve(where)
    if mesh.is_multi_process:
        _meet(mesh)


@lru_cache(maxsize=8)
def _meet(mesh: Mesh) -> None:
    """Processes talk to each other before anything takes long: the first time, Gloo waits no more than 30
    seconds for the others.
    """
    everywhere(placed(mesh, np.zeros(mesh.size)))
    agreed(0.0)


def along(mesh: Mesh | None, tree: Any) -> Any:
    """Within a trace: every leaf's leading axis is spread over the mesh."""
    return (
        tree
        if mesh is None
        else lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))
    )


def gathered(mesh: Mesh | None, tree: Any) -> Any:
    """Within a trace: every device holds all of it."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def placed(mesh: Mesh | None, tree: Any, leading: bool = True) -> Any:
    """Outside of a trace: put a tree on the devices, along its leading axes or, if not ``leading``, all of it
    on each.

    In several processes each has the same tree and keeps its own part.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]) if leading else PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def part(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(part(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        numbers = np.asarray(jnp.asarray(x))  # of the type that JAX takes them for
        return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])

    return jax.tree.map(part, tree)


def everywhere(tree: Any) -> Any:
    """Have it all: nothing is done where this process has it; else every process gets the others' parts. All
    of them must ask.

    :raises ProcessError: if another process is gone.
    """
    placings = [x.sharding for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and _is_scattered(x)]
    meshes = [placing.mesh for placing in placings if isinstance(placing, NamedSharding)]
    if not meshes:
        return tree
    try:
        return jax.block_until_ready(
            jax.jit(lambda x: x, out_shardings=NamedSharding(meshes[0], PartitionSpec()))(tree)
        )
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f"Process {jax.process_index()} of {jax.process_count()} lost another one: "
            f"{str(error).splitlines()[0]} Start all of them anew; a run with a checkpoint goes on from "
            "there."
        ) from error


def _is_scattered(x: jax.Array) -> bool:
    return not (x.is_fully_addressable or x.is_fully_replicated)


def is_first_process() -> bool:
    """The one that writes files."""
    return jax.process_index() == 0


def agreed(number: float) -> float:
    """The first process's number, for all: what a clock says must not send processes different ways.

    >>> agreed(0.25)
    0.25
    """
    return (
        number
        if jax.process_count() == 1
        else float(multihost_utils.broadcast_one_to_all(np.float32(number)))
    )
