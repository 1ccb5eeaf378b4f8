"""Runs of parts of a program for one particle: latent sites take given values or are drawn, all are recorded,
and densities summed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from numpyro.distributions import Distribution
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import block
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import element_mask, elements, unmasked
from ppl_ext.densities.half_seen import observed_twin
from ppl_ext.densities.log_density import site_term
from ppl_ext.densities.recording import checked, listed
from ppl_ext.errors import ModelError
from ppl_ext.gradients import finite_support
from ppl_ext.state_space.missing import filled, gaps, idle_term, missing_term, observed_term
from ppl_ext.state_space.particle_keys import LaneKey
from ppl_ext.tracing.inner_jits import trace_state
from ppl_ext.tracing.vmapped_sites import sent_out, was_sent


class Terms(NamedTuple):
    """Log densities of a run's sites: latent ones, observed ones, the law that the latent ones are drawn
    from, and ``latent - drawn``, which is zero unless a scale makes it another. ``each``: the terms whose sum
    is ``observed``, in arrays of their sites' shapes."""

    latent: jax.Array
    observed: jax.Array
    drawn: jax.Array
    rescaled: jax.Array
    each: tuple[jax.Array, ...] = ()


class SiteRun(Messenger):
    """Give the latent sites of a run their values, or draw them, and record every site."""

    def __init__(self, values: dict[str, Any], key):
        super().__init__()
        self.values, self.key, self.state = values, key, trace_state()
        self.sites: dict[str, dict] = {}
        self.latent: list[str] = []
        self.given: list[str] = []  # latent by themselves, but a handler inside gave them a value
        self.num_keys, self.stands = 0, "before its first site"
        self.imputed: frozenset[str] = frozenset()
        self.idle = False
        self.raw: dict[str, jax.Array] = {}  # values of imputed sites, with their gaps

    def next_key(self, number: int):
        if self.key is None:
            raise ModelError(
                "The model asks for a random key of its own; make it a function of its arguments and sites."
            )
        return self.key.own(number) if isinstance(self.key, LaneKey) else random.fold_in(self.key, number)

    def process_message(self, msg):
        kind = msg["type"]
        if sent_out(self, self.state, msg):
            return
        if "name" in msg:
            self.stands = f"at {'plate' if kind == 'plate' else 'site'} '{msg['name']}'"
        if kind == "sample":
            self.sample(msg)
            msg["stop"] = True
        elif kind == "plate":
            if msg["args"][1] not in (None, msg["args"][0]):
                raise ModelError(
                    f"Plate '{msg['name']}' is subsampled: a filter needs all of it, since the log of a "
                    "minibatch's density is no unbiased estimate of the density. Use the full data."
                )
            msg["stop"] = True
        elif kind == "prng_key" and msg["kwargs"]["rng_key"] is None:
            self.num_keys += 1
            msg["kwargs"]["rng_key"], msg["stop"] = self.next_key(self.num_keys), True
        elif kind == "deterministic":
            msg["stop"] = True

    def sample(self, msg) -> None:
        name = msg["name"]
        self.num_keys += 1  # whether the site is drawn or not: so the others' draws do not depend on that
        if name in self.sites:
            raise ModelError(
                f"Site '{name}' appears twice in one run; site names must be unique (see "
                "numpyro.handlers.scope)."
            )
        if msg["value"] is not None or msg["is_observed"]:
            self.given += [] if msg["is_observed"] else [name]
            if name in self.imputed:
                self.impute(msg)
            return
        self.latent.append(name)
        if name in self.values:
            shape = msg["fn"].shape(msg["kwargs"]["sample_shape"])
            msg["value"] = jnp.reshape(checked(name, self.values[name], shape), shape)
            return
        if isinstance(self.key, LaneKey):
            msg["value"] = self.key.draw(unmasked(msg["fn"]), self.num_keys, msg["kwargs"]["sample_shape"])
        else:  # a key of the site's own, or of a seed around the model, would be the same for all particles
            key = self.next_key(self.num_keys)
            msg["value"] = unmasked(msg["fn"])(rng_key=key, sample_shape=msg["kwargs"]["sample_shape"])
        if (outcomes := drawn_evenly(name, msg["fn"], self.sites)) is not None:
            seen, by_law = _seen(msg), jnp.asarray(msg["value"])
            evenly = random.choice(random.fold_in(self.next_key(self.num_keys), 1), outcomes, seen.shape)
            msg["value"] = jnp.where(seen, by_law, evenly)

    def impute(self, msg) -> None:
        """Hand on, instead of NaN, the given value or a draw from the site's law."""
        name, fn, raw = msg["name"], unmasked(msg["fn"]), jnp.asarray(msg["value"])
        self.raw[name] = raw
        if name in self.values:
            full = jnp.reshape(checked(name, self.values[name], raw.shape), raw.shape)
            msg["value"] = jnp.where(gaps(fn, raw), full, raw)
            self.raw[f"{name}/state"] = full
        elif self.key is not None:
            shape = raw.shape[: raw.ndim - len(fn.shape())]
            lane = isinstance(self.key, LaneKey)
            drawn = (
                self.key.draw(fn, self.num_keys, shape)
                if lane
                else fn(rng_key=self.next_key(self.num_keys), sample_shape=shape)
            )
            msg["value"] = filled(fn, raw, drawn)

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and not was_sent(self, msg):
            evenly = None if msg["is_observed"] else drawn_evenly(msg["name"], msg["fn"], self.sites)
            self.sites[msg["name"]] = {**msg, "evenly": evenly}
            if msg["name"] in self.raw:
                self.sites[msg["name"]]["raw"] = self.raw[msg["name"]]
            self.stands = f"after site '{msg['name']}'"

    def imputed_law(self, name: str) -> jax.Array:
        """The log density of what was drawn of an imputed site."""
        site = self.sites[name]
        return jnp.sum(missing_term(site["fn"], self.raw[name], site["value"], name))

    def law(self, name: str) -> jax.Array:
        """The log density of one site."""
        return jnp.sum(site_term(self.sites[name], {})[0])

    def terms(self, latent, scales: dict[str, Any], bare: bool = True) -> Terms:
        """Sums over the sites. A mask on a latent site is lifted (``bare``): a filter draws what it hides
        from its law too. Of a finite site each outcome counts one where it is masked, and that is how it is
        drawn there."""
        total, observed, drawn, rescaled = (jnp.zeros(()),) * 4
        each = []
        for name, site in self.sites.items():
            outer = scales.get(name, 1.0)
            if name in self.raw:
                law = self.imputed_law(name)
                total, drawn = total + law, drawn + law
                total += (
                    idle_term(unmasked(site["fn"]), self.raw[name], self.raw[f"{name}/state"])
                    if self.idle
                    else 0.0
                )
                each.append(outer * observed_term({**site, "value": self.raw[name]}))
                observed += jnp.sum(each[-1])
            elif name in latent:
                # Outcomes of a finite site count one each where it is masked, as everywhere; of others what a
                # mask hides is not there.
                masked = site["fn"].has_enumerate_support and element_mask(site["fn"]) is not None
                counts_ones = bare and masked and observed_twin(name, self.sites) is None
                lifted = {**site, "fn": unmasked(site["fn"])}
                law = drawn_law(site) if bare else jnp.sum(site_term({**site, "scale": None}, {})[0])
                site = lifted if bare and not counts_ones else site
                drawn += law
                if (
                    counts_ones
                    or name in scales
                    or not (site["scale"] is None or is_identically_one(site["scale"]))
                ):
                    counted = outer * jnp.sum(site_term(site, {})[0])
                    rescaled += counted - law
                    law = counted
                total += law
            elif name not in self.latent:
                each.append(outer * observed_term(site))
                observed += jnp.sum(each[-1])
        return Terms(total, observed, drawn, rescaled, tuple(each))


def drawn_evenly(name: str, fn: Distribution, sites: dict[str, dict]) -> jax.Array | None:
    """The outcomes of a finite site that may be masked: each counts one there, so one is drawn evenly, and
    its weight has no noise. ``None`` for other sites, and where no list is known.

    :param sites: those met before.
    """
    if not fn.has_enumerate_support or element_mask(fn) is None or observed_twin(name, sites) is not None:
        return None
    try:
        outcomes = finite_support(elements(fn))
    # Elements have different lists, or a list's length is traced: then such a site is drawn from its law, and
    # weighed.
    except (
        NotImplementedError,
        TypeError,
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
    ):
        return None
    return outcomes if outcomes.ndim == 1 else None


def drawn_law(site: dict) -> jax.Array:
    """The log density that a latent site of a run is drawn with: its law's, without masks, or where they hide
    a finite one that of an even draw."""
    bare = {**site, "scale": None}
    if site["evenly"] is None:
        return jnp.sum(site_term({**bare, "fn": unmasked(site["fn"])}, {})[0])
    return jnp.sum(site_term(bare, {})[0]) - jnp.sum(~_seen(site)) * math.log(len(site["evenly"]))


def _seen(site: dict) -> jax.Array:
    mask = element_mask(site["fn"])
    return jnp.broadcast_to(True if mask is None else mask, jnp.shape(site["value"]))


class Proposal(SiteRun):
    """A run of a proposal. Its parameters are known, unless ``params`` is ``None``: then they go out."""

    def __init__(self, values: dict[str, Any], key, params: dict[str, Any] | None):
        super().__init__(values, key)
        self.params = params

    def process_message(self, msg):
        if msg["type"] != "param":
            super().process_message(msg)
        elif self.params is not None:
            if msg["name"] not in self.params:
                raise ModelError(
                    f"The proposal has the parameter '{msg['name']}', which has no value here. "
                    "numpyro.param works in a proposal inside ppl_ext.marginal or normalize; elsewhere let "
                    "the proposal be a function of arrays."
                )
            msg["value"], msg["stop"] = self.params[msg["name"]], True


def run_proposal(
    what: str, program: Callable, args: tuple, values: dict[str, Any], key, wanted, params: dict[str, Any]
) -> Proposal:
    """The record of a program that draws the wanted sites, some of which may be given."""
    with block(), (record := Proposal(values, key, params)):
        program(*args)
    if set(record.latent) != set(wanted) or len(record.sites) > len(record.latent):
        raise ModelError(
            f"{what} must draw {listed(wanted)} and nothing else; it has the sites {listed(record.sites)}. "
            "Its parameters go in as its arguments, and it observes nothing."
        )
    for name, site in wanted.items():
        shape = jnp.shape(record.sites[name]["value"])
        if shape != site.shape:
            raise ModelError(
                f"{what} draws site '{name}' with the shape {shape}; the model's has {site.shape}."
            )
    return record
