"""Sparse weights whose zeros come in runs or in rows: support, precision, weight (Xia, Tsang, Lau 2023)."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.priors.families.family import (
    Family,
    Raw,
    Unit,
    check_fan_in,
    log_of,
    normal,
    scale_by_fan_in,
    units_per,
)
from ppl_ext.priors.families.support import Support, SupportedPrecision
from ppl_ext.priors.latent_sites import Site
from ppl_ext.runtime.arguments import check_flag, check_positive


class ThreeLayer(Family):
    r"""Weights that are on or off, each with a precision of its own, and a law over which are on.

    .. math:: s \sim p(s), \qquad \rho_i \mid s_i \sim \mathrm{Gamma}(a, a \sigma_{s_i}^2), \qquad
        w_i \mid \rho_i \sim \mathcal{N}(0, 1 / \rho_i)

    with :math:`\sigma_1` the scale of weights that are on, and :math:`\sigma_0`, far smaller, of those that
    are off. The support s is summed out exactly, in time linear in the weights; the precisions are the
    latent site ``<site>_precision``, and the deterministic site ``<site>_support`` has the probability of
    each switch given them: its mean over posterior draws is that given the data. Both scales are tuned;
    each site has its own.

    :param activity: the share of switches that are on.
    :param stay: the probability that the neighbour of one that is on is on too: weights are neighbours in
        the order of ``ravel``, and their zeros come in runs. None: independent.
    :param grouped: one switch for each index of the first axis (a row of a kernel), rather than each weight;
        with ``stay``, rows are the neighbours.
    :param scale: :math:`\sigma_1` at the start; ``silent_scale`` :math:`\sigma_0`.
    :param shape: a.
    :param fan_in: as of :class:`~ppl_ext.priors.Gaussian`.
    :raises ArgumentError: for numbers out of their range.
    :raises ModelError: for a chain on a site that has one switch, naming it.

    >>> import numpyro.distributions as dist
    >>> from ppl_ext.priors import lift_prior
    >>> def model():
    ...     numpyro.sample("w", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    >>> lifted = lift_prior(model, {"w": ThreeLayer(activity=0.3, stay=0.9)})
    >>> record = numpyro.handlers.trace(numpyro.handlers.seed(lifted, 0)).get_trace()
    >>> [(name, record[name]["value"].shape) for name in record]
    [('w_precision', (6,)), ('w_support', (6,)), ('w', (6,))]

    Source: Xia, Tsang, Lau 2023, "Structured Bayesian compression for deep neural networks based on the
    Turbo-VBI approach" (arXiv:2302.10483).
    """

    activity: float = eqx.field(static=True, default=0.1)
    stay: float | None = eqx.field(static=True, default=None)
    grouped: bool = eqx.field(static=True, default=False)
    scale: float = eqx.field(static=True, default=1.0)
    silent_scale: float = eqx.field(static=True, default=0.01)
    shape: float = eqx.field(static=True, default=3.0)
    fan_in: str | float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        Support(2, self.activity, self.stay)
        check_flag("ThreeLayer: grouped", self.grouped)
        for name in ("scale", "silent_scale", "shape"):
            check_positive(f"ThreeLayer: {name}", getattr(self, name))
        if self.silent_scale >= self.scale:
            raise ArgumentError(
                f"ThreeLayer: silent_scale must be below scale, got {self.silent_scale} and {self.scale}."
            )
        check_fan_in("ThreeLayer", self.fan_in)

    def units(self, pattern: str, sites: list[Site]) -> list[Unit]:
        for site in sites:
            if self.stay is not None and self._switches(site) == 1:
                raise ModelError(
                    f"ThreeLayer: site '{site.name}' of shape {site.shape} has one switch"
                    f"{', a row' if self.grouped else ''}, and a chain needs neighbours. Give it a rule of "
                    "its own without stay."
                )
        return units_per("site", pattern, sites)

    def _switches(self, site: Site) -> int:
        return site.shape[0] if self.grouped and site.shape else site.size

    def init(self, unit: Unit) -> dict[str, jax.Array]:
        return {"log_scale": log_of(self.scale), "log_silent_scale": log_of(self.silent_scale)}

    def values(self, unit: Unit, raw: Raw) -> dict[str, jax.Array]:
        return {"scale": jnp.exp(raw["log_scale"]), "silent_scale": jnp.exp(raw["log_silent_scale"])}

    def precision_law(self, size: int, scale: Any, silent_scale: Any, width: int = 1) -> SupportedPrecision:
        """The law of the precisions of ``size`` switches with ``width`` weights each."""
        rates = (self.shape * scale**2, self.shape * silent_scale**2)
        return SupportedPrecision(
            Support(size, self.activity, self.stay), *rates, shape=self.shape, width=width
        )

    def begin(self, unit: Unit, raw: Raw) -> dict[str, Any]:
        (site,) = unit.sites
        size, scales = self._switches(site), self.values(unit, raw)
        width = math.prod(site.shape) // size
        law = self.precision_law(size, scales["scale"], scales["silent_scale"], width)
        precision = numpyro.sample(f"{unit.prefix}_precision", law)
        numpyro.deterministic(f"{unit.prefix}_support", law.support_given(precision))
        scale = scale_by_fan_in(self.fan_in, site) * precision.reshape(site.shape) ** -0.5
        return {site.name: normal(site, 0.0, scale)}
