"""Planar flows over all weights of a layer together, by push-forward."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.families.family import (
    Family,
    Raw,
    Unit,
    check_fan_in,
    check_per,
    log_of,
    scale_by_fan_in,
    units_per,
)
from ppl_ext.priors.latent_sites import Site
from ppl_ext.runtime.arguments import check_count, check_positive, described


class Flow(Family):
    r"""A layer's weights and biases together, as a Gaussian pushed through planar maps.

    .. math:: z_0 \sim N(0, I), \qquad z_{k} = z_{k-1} + \hat u_k \tanh(w_k^\top z_{k-1} + b_k), \qquad
        x_s = \frac{\sigma_s}{\sqrt{\text{fan-in}}}\, z_K[s]

    with :math:`\hat u_k` such that :math:`w_k^\top \hat u_k > -1`, so that each map can be inverted. The
    program has the latent site ``<layer>_base`` for :math:`z_0`, and the weights as deterministic sites: its
    density needs no inverse and no determinant, and is exact. σ_s is one a site, tuned too; the maps start
    near the identity, so that the prior starts at a Gaussian.

    :param per: what has a flow of its own: "layer", "site" or "group".
    :param num_flows: K.
    :param fan_in: as of :class:`~ppl_ext.priors.Gaussian`.
    :param scale: σ at the start.
    :param seed: of the maps at the start, which may not all be equal.
    :raises ArgumentError: for an unknown ``per`` or ``fan_in``, fewer maps than 1, or a scale that is not
        positive.

    >>> Flow(num_flows=4).per
    'layer'

    Rezende and Mohamed, *Variational Inference with Normalizing Flows*, 2015, eqs. 10-12 and A.1.
    """

    per: str = eqx.field(static=True, default="layer")
    num_flows: int = eqx.field(static=True, default=10)
    fan_in: str | float | None = eqx.field(static=True, default="auto")
    scale: float = eqx.field(static=True, default=1.0)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_per("Flow", self.per, ("layer", "site", "group"))
        check_count("Flow: num_flows", self.num_flows)
        check_fan_in("Flow", self.fan_in)
        check_positive("Flow: scale", self.scale)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ArgumentError(f"Flow: seed must be an integer of at least 0, got {described(self.seed)}.")

    def units(self, pattern: str, sites: list[Site]) -> list[Unit]:
        return units_per(self.per, pattern, sites)

    def init(self, unit: Unit) -> dict[str, jax.Array]:
        dim = sum(s.size for s in unit.sites)
        rng = np.random.default_rng([self.seed, dim])
        spread = dim**-0.5
        maps = {
            name: jnp.asarray(spread * rng.normal(size=(self.num_flows, dim)), jnp.result_type(float))
            for name in ("u", "w")
        }
        maps["u"] = 0.1 * maps["u"]
        return {**maps, "b": jnp.zeros(self.num_flows), "log_scale": log_of(self.scale, (len(unit.sites),))}

    def values(self, unit: Unit, raw: Raw) -> dict[str, jax.Array]:
        return {"scale": jnp.exp(raw["log_scale"]), "u": raw["u"], "w": raw["w"], "b": raw["b"]}

    def begin(self, unit: Unit, raw: Raw) -> dict[str, Any]:
        dim = sum(s.size for s in unit.sites)
        base = numpyro.sample(
            f"{unit.prefix}_base", dist.Normal(jnp.zeros(dim), 1.0, validate_args=False).to_event(1)
        )
        z, _ = planar(base, raw)
        given, start = {}, 0
        for i, s in enumerate(unit.sites):
            factor = jnp.exp(raw["log_scale"][i]) * scale_by_fan_in(self.fan_in, s)
            given[s.name] = factor * z[start : start + s.size].reshape(s.shape)
            start += s.size
        return given


def planar(z: jax.Array, raw: Raw) -> tuple[jax.Array, jax.Array]:
    r"""Push one vector through the maps. Returns where it goes, and the log of the Jacobian's determinant.

    .. math:: \log |\det J_k| = \log \big(1 + w_k^\top \hat u_k (1 - \tanh^2(w_k^\top z + b_k))\big)
    """

    def one(carry, layer):
        z, log_det = carry
        u, w, b = layer
        inner, norm = w @ u, w @ w
        # Softplus of the inner product, less one, along w: above -1 whatever u is, and u itself where
        # softplus is the identity.
        u = u + (jax.nn.softplus(inner + _INVERSE_OF_ONE) - 1.0 - inner) * w / jnp.maximum(norm, 1e-12)
        t = jnp.tanh(w @ z + b)
        return (z + u * t, log_det + jnp.log1p((w @ u) * (1.0 - t**2))), None

    start = (z, jnp.zeros((), z.dtype))
    (z, log_det), _ = lax.scan(one, start, (raw["u"], raw["w"], raw["b"]))
    return z, log_det


_INVERSE_OF_ONE = float(np.log(np.expm1(1.0)))
"""softplus of it is 1: a map with u = 0 stays the identity."""
