"""Gaussian priors with tuned scales."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

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


class Gaussian(Family):
    r"""Independent Gaussians with one tuned scale a layer, a site, the whole group, or an element.

    .. math:: w \sim N(0, \sigma^2 / \text{fan-in})

    The logarithm of σ is what is tuned, so that a step means the same for large scales and small ones.

    :param per: what has a σ of its own: "layer" (all matched sites with the same name but for its last part),
        "site", "group" (all sites of the pattern) or "element".
    :param fan_in: "auto" reads it off name and shape, see :func:`~ppl_ext.priors.latent_sites.fan_in_of`; a
        number; or None to leave it out. Vectors count as biases, with fan-in 1.
    :param scale: σ at the start.
    :param learn_mean: tune a mean too, which starts at 0, with the same sharing as σ.
    :raises ArgumentError: for an unknown ``per`` or ``fan_in``, or a scale that is not positive.

    >>> Gaussian(per="group", fan_in="auto").scale
    1.0

    Source: Tran et al., *All You Need is a Good Functional Prior for Bayesian Deep Learning*, JMLR 2022, sec.
    4.1.
    """

    per: str = eqx.field(static=True, default="layer")
    fan_in: str | float | None = eqx.field(static=True, default=None)
    scale: float = eqx.field(static=True, default=1.0)
    learn_mean: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_per("Gaussian", self.per)
        check_fan_in("Gaussian", self.fan_in)
        check_positive("Gaussian: scale", self.scale)
        check_flag("Gaussian: learn_mean", self.learn_mean)

    def units(self, pattern: str, sites: list[Site]) -> list[Unit]:
        return units_per(self.per, pattern, sites)

    def init(self, unit: Unit) -> dict[str, jax.Array]:
        shape = unit.sites[0].shape if self.per == "element" else ()
        return {
            "log_scale": log_of(self.scale, shape),
            **({"mean": jnp.zeros(shape)} if self.learn_mean else {}),
        }

    def values(self, unit: Unit, raw: Raw) -> dict[str, jax.Array]:
        return {"scale": jnp.exp(raw["log_scale"]), **({"mean": raw["mean"]} if self.learn_mean else {})}

    def begin(self, unit: Unit, raw: Raw) -> dict[str, Any]:
        loc = raw["mean"] if self.learn_mean else 0.0
        return {
            s.name: normal(s, loc, jnp.exp(raw["log_scale"]) * scale_by_fan_in(self.fan_in, s))
            for s in unit.sites
        }
