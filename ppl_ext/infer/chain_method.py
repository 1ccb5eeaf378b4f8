"""Chains of any MCMC method of NumPyro spread over devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.sharding import check_mesh, everywhere, placed


def chains_over(mesh: Mesh) -> Callable[[Callable], Callable]:
    """The ``chain_method`` of ``numpyro.infer.MCMC`` that spreads chains over a mesh: each device runs its
    share side by side and waits for no other.

    NumPyro's ``"parallel"`` wants a device for each chain of one process; this takes any multiple of the
    devices, of several processes too. Chains are those of ``"sequential"``, but for rounding.

    :param mesh: of one axis, ``jax.make_mesh((8,), ("chains",), axis_types=(AxisType.Auto,))``.
    :raises ArgumentError: if the mesh has more axes; when run, if ``num_chains`` does not divide over it.

    >>> import numpyro, numpyro.distributions as dist
    >>> from jax.sharding import AxisType
    >>> from numpyro.infer import MCMC
    >>> from ppl_ext.infer import SGLD
    >>> def model():
    ...     numpyro.sample("x", dist.Normal(0.0, 1.0))
    >>> mesh = jax.make_mesh((1,), ("chains",), axis_types=(AxisType.Auto,))
    >>> how = {"num_warmup": 5, "num_samples": 10, "num_chains": 2, "progress_bar": False}
    >>> mcmc = MCMC(SGLD(model, step_size=0.1), chain_method=chains_over(mesh), **how)
    >>> mcmc.run(jax.random.key(0))
    >>> mcmc.get_samples(group_by_chain=True)["x"].shape
    (2, 10)
    """
    if mesh is None:
        raise ArgumentTypeError(
            "chains_over: mesh must be a jax.sharding.Mesh, such as jax.make_mesh gives, got "
            f"{described(mesh)}."
        )
    check_mesh("chains_over", mesh)
    along = PartitionSpec(mesh.axis_names[0])

    def method(one_chain: Callable) -> Callable:
        def run(arguments: Any) -> Any:
            check_mesh("MCMC", mesh, len(jax.tree.leaves(arguments)[0]), "num_chains")
            share = jax.shard_map(
                jax.vmap(one_chain), mesh=mesh, in_specs=along, out_specs=along, check_vma=False
            )
            return everywhere(jax.jit(share)(placed(mesh, arguments)))

        return run

    return method
