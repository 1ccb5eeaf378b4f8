"""Data that no path can have, before a chain of paths begins."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints

from ppl_ext.densities.distributions import element_mask
from ppl_ext.errors import ModelError


def refuse_impossible(sites: Mapping[str, Any], parameters: list[str]) -> None:
    """Refuse data for which every sweep would leave its path as it is. What is not known, inside a trace, is
    not looked at.

    :param sites: of a run of the model, as NumPyro's ``trace`` has them.
    :param parameters: names of the latent sites that are not of the path.
    :raises ModelError: where data lie outside of a support that has no parameters. Or where they are NaN,
        which a sweep takes as not seen, and the kernel of the parameters does not.
    """
    for name, site in sites.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        mask = element_mask(site["fn"])
        if any(isinstance(x, jax.core.Tracer) for x in (site["value"], mask)):
            continue
        value, counts = np.asarray(site["value"]), np.asarray(True if mask is None else mask)
        unseen = np.isnan(value.astype(float)).any(axis=tuple(range(-site["fn"].event_dim, 0)))
        if parameters and (unseen & counts).any():
            raise ModelError(
                f"ParticleGibbs: the data of site '{name}' hold {(unseen & counts).sum()} NaN, which the "
                f"kernel of '{parameters[0]}' cannot take as not seen. Mask them: fn.mask(~jnp.isnan(y)) "
                "with obs=jnp.nan_to_num(y)."
            )
        support = fixed = site["fn"].support
        while isinstance(fixed, constraints.independent):
            fixed = fixed.base_constraint
        if not isinstance(fixed, constraints.ParameterFreeConstraint):
            continue
        with jax.ensure_compile_time_eval():
            inside = np.asarray(support(site["value"]))
        if (outside := ~inside & ~unseen & counts).any():
            raise ModelError(
                f"ParticleGibbs: {outside.sum()} of {outside.size} observed values of site '{name}' lie "
                f"outside of the support of {type(site['fn']).__name__}, whatever its parameters, so that "
                "no path is possible. Look at the data there."
            )
