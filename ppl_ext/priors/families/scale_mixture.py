"""Gaussian priors whose variance is drawn too, from an inverse-gamma with tuned shape and scale."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ppl_ext.priors.families.family import (
    Family,
    Raw,
    Unit,
    check_fan_in,
    check_per,
    log_of,
    normal,
    scale_by_fan_in,
    units_per,
)
from ppl_ext.priors.latent_sites import Site
from ppl_ext.runtime.arguments import check_flag, check_positive


class ScaleMixture(Family):
    r"""Gaussians that share a random variance: heavy tails in function space, layer by layer.

    .. math:: v \sim \text{InvGamma}(a, b), \qquad w \mid v \sim N(0, v / \text{fan-in})

    a and b are tuned, by the gradient of the gamma draw itself. Each draw of the model has one v a unit, in a
    new latent site ``<layer>_variance`` (``<site>_variance`` where the unit has one site).

    :param per: as of :class:`~ppl_ext.priors.Gaussian`, but for "element".
    :param fan_in: as there.
    :param shape: a at the start.
    :param scale: b at the start; the variance's mean is b/(a − 1).
    :param centered: keep the weights as latent sites, with variance v. Else they are deterministic, w = √v ε,
        and ``<site>_decentered`` is latent: often easier for NUTS where data say little.
    :raises ArgumentError: for an unknown ``per`` or ``fan_in``, or a shape or scale that is not positive.

    >>> ScaleMixture(centered=False).shape
    3.0

    Tran et al., *All You Need is a Good Functional Prior for Bayesian Deep Learning*, JMLR 2022, sec. 4.2.
    """

    per: str = eqx.field(static=True, default="layer")
    fan_in: str | float | None = eqx.field(static=True, default=None)
    shape: float = eqx.field(static=True, default=3.0)
    scale: float = eqx.field(static=True, default=2.0)
    centered: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check_per("ScaleMixture", self.per, ("layer", "site", "group"))
        check_fan_in("ScaleMixture", self.fan_in)
        check_positive("ScaleMixture: shape", self.shape)
        check_positive("ScaleMixture: scale", self.scale)
        check_flag("ScaleMixture: centered", self.centered)

    def units(self, pattern: str, sites: list[Site]) -> list[Unit]:
        return units_per(self.per, pattern, sites)

    def init(self, unit: Unit) -> dict[str, jax.Array]:
        return {"log_shape": log_of(self.shape), "log_scale": log_of(self.scale)}

    def values(self, unit: Unit, raw: Raw) -> dict[str, jax.Array]:
        return {"shape": jnp.exp(raw["log_shape"]), "scale": jnp.exp(raw["log_scale"])}

    def begin(self, unit: Unit, raw: Raw) -> dict[str, Any]:
        law = dist.InverseGamma(jnp.exp(raw["log_shape"]), jnp.exp(raw["log_scale"]), validate_args=False)
        sd = jnp.sqrt(numpyro.sample(f"{unit.prefix}_variance", law))
        if self.centered:
            return {s.name: normal(s, 0.0, sd * scale_by_fan_in(self.fan_in, s)) for s in unit.sites}
        given = {}
        for s in unit.sites:
            whole = s._replace(event_dim=len(s.shape))  # drawn outside the model's plates
            given[s.name] = sd * numpyro.sample(
                f"{s.name}_decentered", normal(whole, 0.0, jnp.asarray(scale_by_fan_in(self.fan_in, s)))
            )
        return given
