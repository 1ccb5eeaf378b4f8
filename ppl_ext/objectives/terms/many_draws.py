"""A guide that proposes several draws at once, each site's stacked along its first axis: NumPyro's
``multi_sample_guide=True``.
"""

import jax
import jax.numpy as jnp
from numpyro.handlers import substitute, trace

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.errors import ModelError
from ppl_ext.objectives.terms.path_gradient import simulate_and_hold
from ppl_ext.program import SiteValues, log_density, simulate


def evidence_of_many(model, guide, hold: bool = False) -> LogDensity:
    r""":math:`\sum_k \log p(y, z_k) - \log q(z_{1:K})`, where the guide draws :math:`z_{1:K}` together.

    It is a sum over the K draws, as in NumPyro, so it is K times a bound where they are independent.

    Deterministic sites of the guide that are stacked like the others are values for the model's sites of
    these names, as in NumPyro.

    :param hold: as in :func:`~ppl_ext.objectives.terms.analytic_kl.evidence`.
    :raises ModelError: if the guide has no sites, or they are not stacked in one way.
    """
    with trace() as record:
        if hold:
            draw, log_q = simulate_and_hold(guide)
        else:
            draw = simulate(guide)
            log_q = draw.log_density
    auxiliary = draw.values.auxiliary
    latent = {name: value for name, value in draw.values.items() if name not in auxiliary}
    if not latent:
        raise ModelError("multi_sample_guide=True: the guide has no sample sites.")
    sizes = {name: jnp.shape(value)[0] if jnp.ndim(value) else None for name, value in latent.items()}
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size is None or size != sizes[first]:
            told = (
                f"'{first}' has {sizes[first]} draws and '{name}' {size}"
                if size is not None
                else f"'{name}' has no axis at all"
            )
            raise ModelError(
                "multi_sample_guide=True: every site of the guide is stacked along its first axis, one "
                f"draw each; {told}."
            )
    shared = {name: value for name, value in draw.values.items() if name in auxiliary}
    made = {name: site["value"] for name, site in record.items() if site["type"] == "deterministic"}
    made = {name: value for name, value in made.items() if jnp.shape(value)[:1] == (sizes[first],)}

    def one(values, made):
        return log_density(substitute(model, data=made), SiteValues({**values, **shared}, auxiliary))

    many = jax.vmap(one)(latent, made)
    return LogDensity(tuple(x.sum(0) for x in many.terms), many.labels, many.batch_ndim) - log_q
