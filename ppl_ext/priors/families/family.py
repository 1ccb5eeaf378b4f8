"""What a family of priors is: parameters to tune, and the law that it gives to the sites of one unit."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.latent_sites import Site, fan_in_of, layer_of
from ppl_ext.runtime.arguments import check_positive, described

PER = ("layer", "site", "group", "element")
Raw = Mapping[str, Any]
"""Unconstrained parameters of one unit, by name."""


class Unit(NamedTuple):
    """Sites that share their hyperparameters, and how the sites that a family adds for them begin."""

    name: str
    sites: tuple[Site, ...]
    prefix: str


class Family(eqx.Module):
    """A family of priors. Its fields are options; what is tuned is passed in as ``raw``.

    >>> from ppl_ext.priors import Flow, Gaussian, ScaleMixture
    >>> [issubclass(kind, Family) for kind in (Gaussian, ScaleMixture, Flow)]
    [True, True, True]
    """

    @abstractmethod
    def init(self, unit: Unit) -> dict[str, jax.Array]:
        """The parameters before the first step, unconstrained."""

    @abstractmethod
    def values(self, unit: Unit, raw: Raw) -> dict[str, jax.Array]:
        """The parameters as a reader wants them: scales, shapes."""

    @abstractmethod
    def begin(self, unit: Unit, raw: Raw) -> dict[str, Any]:
        """Run at the start of the program, where new sites may be sampled: by site, its distribution or its
        value.
        """

    @abstractmethod
    def units(self, pattern: str, sites: list[Site]) -> list[Unit]:
        """Which of the sites share parameters."""


def units_per(per: str, pattern: str, sites: list[Site]) -> list[Unit]:
    if per == "group":
        return [Unit(pattern, tuple(sites), sites[0].name)]
    named: dict[str, list[Site]] = {}
    for site in sites:
        named.setdefault(layer_of(site.name) if per == "layer" else site.name, []).append(site)
    return [Unit(name, tuple(of), of[0].name if len(of) == 1 else name) for name, of in named.items()]


def scale_by_fan_in(fan_in: str | float | None, site: Site) -> float:
    """1/sqrt(fan-in), what a site's scale is multiplied by."""
    return 1.0 if fan_in is None else float(fan_in_of(site) if fan_in == "auto" else fan_in) ** -0.5


def normal(site: Site, loc: jax.Array | float, scale: jax.Array) -> dist.Distribution:
    """Independent normals of the site's shape, with its event."""
    law = dist.Normal(loc, scale, validate_args=False).expand(site.shape)
    return law.to_event(site.event_dim) if site.event_dim else law


def check_per(where: str, per: Any, choices: tuple[str, ...] = PER) -> None:
    if not isinstance(per, str) or per not in choices:
        raise ArgumentError(
            f"{where}: per must be one of {', '.join(map(repr, choices))}, got {described(per)}."
        )


def check_fan_in(where: str, fan_in: Any) -> None:
    if fan_in is None or fan_in == "auto":
        return
    if isinstance(fan_in, str):
        raise ArgumentError(f"{where}: fan_in must be 'auto', a number or None, got {described(fan_in)}.")
    check_positive(f"{where}: fan_in", fan_in)


def log_of(value: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jnp.full(shape, jnp.log(value), jnp.result_type(float))
