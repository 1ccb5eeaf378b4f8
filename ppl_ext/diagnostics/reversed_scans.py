"""Draws of latent sites in a ``scan`` that runs backward, in the order of its inputs.

NumPyro stacks the sites of such a scan in the order of the inputs, and reads values given to them in the
order in which the steps run. So what a kernel of NumPyro moves about is mirrored, and what it returns is
mirrored too, unless it ran the model again to get deterministic sites. Everything in ``ppl_ext`` has the
order of the inputs.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC

from ppl_ext.diagnostics.sites import Site
from ppl_ext.errors import ModelError


def reversed_latents(sites: Mapping[str, Site]) -> list[str]:
    """The latent sites of a model that lie in a ``scan`` with ``reverse=True`` of more than one step."""
    latent = {n: s for n, s in sites.items() if s.kind == "latent"}
    return [n for n, s in latent.items() if s.scan and s.scan.reversed and s.shape[0] > 1]


def in_order_of_inputs(
    mcmc: MCMC, names: Iterable[str], values: Mapping[str, Any], args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The draws (chain, draw, ...) of a finished run, those of the named sites with their steps in the order
    of the inputs.

    Whether the kernel returned them mirrored is seen by moving the last step that ran and looking where the
    change comes out.
    """
    names = [n for n in names if n in values]
    if not names or getattr(mcmc.sampler, "samples_by_input", False):
        return dict(values)
    state = getattr(mcmc.last_state, mcmc._sample_field)
    if mcmc.num_chains > 1:
        state = jax.tree.map(lambda x: x[0], state)
    constrained = mcmc.sampler.postprocess_fn(args, dict(kwargs))
    constrained = (lambda z: z) if constrained is None else constrained
    out = dict(values)
    for name in names:
        before = jnp.asarray(state[name])
        moved = before.at[-1].add(1 if jnp.issubdtype(before.dtype, jnp.integer) else 0.1)
        old, new = (np.asarray(constrained({**state, name: x})[name]) for x in (before, moved))
        changed = np.flatnonzero((old != new).reshape(len(old), -1).any(1))
        if list(changed) == [len(old) - 1]:  # the last that ran is last: but its input is the first
            out[name] = np.asarray(values[name])[:, :, ::-1]
        elif list(changed) != [0]:
            raise ModelError(
                f"Site '{name}' is in a scan with reverse=True, and it cannot be told in which order "
                f"{type(mcmc.sampler).__name__} returns its steps. Run the scan forward over jnp.flip of "
                "its inputs."
            )
    return out


def refuse_reversed(sites: Mapping[str, Site], whose: str) -> None:
    """An objective of NumPyro's reads the draws of such a scan mirrored."""
    if names := reversed_latents(sites):
        raise ModelError(
            f"Site '{names[0]}' is in a scan with reverse=True. NumPyro's own objectives read the draws of "
            f"such a site mirrored, those of ppl_ext.objectives do not, and {whose}. Use ppl_ext.infer.fit "
            "with an objective of ppl_ext.objectives, or run the scan forward over jnp.flip of its inputs."
        )
