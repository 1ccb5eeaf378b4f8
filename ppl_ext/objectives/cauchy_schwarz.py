"""Reconstruction with a Cauchy-Schwarz divergence to the prior, mixtures included (Tran et al. 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import mask_of
from ppl_ext.densities.log_density import LogDensity
from ppl_ext.errors import ArgumentTypeError, ModelError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.objectives.divergence.gaussian_mixtures import cs_divergence
from ppl_ext.program import log_density, simulate


@objective
def CauchySchwarz(model, guide, weight: float = 1.0, num_particles: int = 1):
    r"""Log likelihood less the Cauchy-Schwarz divergence of each latent site from its prior, in closed form.

    .. math:: \mathbb{E}_{z \sim q} \log p(y \mid z) - \lambda \sum_s D_{CS}\big(q(z_s \mid \cdot), p(z_s \mid
        \cdot)\big)

    In place of the KL divergence of an ELBO, so that priors and guides that are mixtures of normal laws cost
    no samples. No bound on the evidence, and the maximum is not the posterior: a regulariser. A site in a
    plate counts for each element; masks and scales of the model count. Laws are taken at the draw of the
    sites before them.

    :param weight: λ.
    :param num_particles: draws of the guide.
    :raises ModelError: if a latent site has another law than :func:`~ppl_ext.objectives.cs_divergence` takes,
        or the guide misses one.

    >>> import numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the prior: what is left is the likelihood
    ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> key = jax.random.key(0)
    >>> alone = CauchySchwarz(weight=0.0, num_particles=9).loss(key, {}, model, guide, 1.0)
    >>> bool(alone == CauchySchwarz(weight=3.0, num_particles=9).loss(key, {}, model, guide, 1.0))
    True

    Source: Tran, Pantic, Deisenroth 2022, for priors that are mixtures.
    """

    def one():
        with (of_guide := _Laws()):
            draw = simulate(guide)
        with (of_model := _Laws()):
            log_p = log_density(model, draw.values)
        latent = [n for n in of_guide.sites if n in of_model.sites and n in draw.values]
        rest = log_p.split(latent)[1] - draw.log_density.split(latent)[1]
        labels = {label.site: label for label in log_p.labels}
        terms = [_divergence(n, of_guide.sites[n], of_model.sites[n]) for n in latent]
        return rest - weight * LogDensity(tuple(terms), tuple(labels[n] for n in latent))

    return replicate(one, num_particles).mean()


class _Laws(Messenger):
    """The messages of a run's sample sites."""

    def __init__(self):
        super().__init__()
        self.sites: dict[str, dict[str, Any]] = {}

    def postprocess_message(self, msg):
        if msg["type"] == "sample":
            self.sites[msg["name"]] = msg.copy()


def _divergence(name: str, q: dict[str, Any], p: dict[str, Any]) -> jax.Array:
    try:
        found = cs_divergence(q["fn"], p["fn"])
    except ArgumentTypeError as error:
        raise ModelError(
            f"CauchySchwarz: site '{name}' has no divergence in closed form ({error}) Use ELBO()."
        ) from None
    mask, scale = mask_of(p["fn"]), p["scale"]
    found = found if mask is None else jnp.where(mask, found, 0.0)
    return found if scale is None else scale * found
