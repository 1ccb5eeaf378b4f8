"""Latent sites whose support depends on other latent sites: an automatic guide of NumPyro keeps the one of
the draw it was set up at.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import random
from numpyro.handlers import block, seed, substitute, trace
from numpyro.infer.autoguide import AutoGuide

from ppl_ext.runtime.explain import name_of
from ppl_ext.tracing.jaxprs import uses


def moving_supports(guide: AutoGuide, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, list[str]]:
    """By site whose bounds depend on other sites, these: read off the data flow of a run that is traced and
    never executed.

    :param guide: set up.
    """
    record = guide.prototype_trace
    latent = {
        name: site["value"]
        for name, site in record.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and np.issubdtype(np.asarray(site["value"]).dtype, np.floating)
    }
    bounded = [
        name
        for name in latent
        if any(isinstance(x, jax.Array) for x in jax.tree.leaves(record[name]["fn"].support))
    ]
    if not bounded or len(latent) < 2:
        return {}
    plates = {name: site["value"] for name, site in record.items() if site["type"] == "plate"}

    def bounds(values):
        with block():
            run = trace(substitute(seed(guide.model, random.key(0)), data={**plates, **values})).get_trace(
                *args, **kwargs
            )
        return {name: jax.tree.leaves(run[name]["fn"].support) for name in bounded if name in run}

    try:
        closed, shapes = jax.make_jaxpr(bounds, return_shape=True)(latent)
    except Exception:  # Python branches on a draw: the densities of the first draws have to tell
        return {}
    names = list(jax.tree.leaves({name: name for name in latent}))  # in the order of JAX's leaves
    owners = jax.tree.leaves({name: [name] * len(leaves) for name, leaves in shapes.items()})
    found = {}
    for name in bounded:
        used = uses(closed, [owner == name for owner in owners])
        if parents := [
            other for other, is_used in zip(names, used, strict=True) if is_used and other != name
        ]:
            found[name] = parents
    return found


def told_of_moving_support(guide: AutoGuide, found: Mapping[str, list[str]]) -> str:
    """What is wrong with a guide for such sites, and the line that mends it."""
    name, parents = next(iter(found.items()))
    listed = ", ".join(f"'{p}'" for p in parents)
    law = type(guide.prototype_trace[name]["fn"]).__name__
    wanted = f'"{name}"' if len(found) == 1 else repr(list(found))
    return (
        f"the support of site '{name}' ({law}) in the model depends on {listed}, and {name_of(guide)} keeps "
        "the support of the draw that it was set up at, so that other draws have density zero. Wrap the "
        f"model, for the guide and for fit: model = ppl_ext.handlers.fixed_support(model, {wanted})."
    )
