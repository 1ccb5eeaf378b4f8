r"""Latent sites of which the model masks elements that nothing else sees: padding of ragged groups, or
observed values under ``obs_mask``.

The model gives such an element no density, so the guide's must not count either: with its entropy the
evidence lower bound would pass the evidence, and grow without end. An element is *absent* if the model masks
it and no unmasked term feels it, by the data flow (:mod:`ppl_ext.tracing.credit`). There are two ways to
leave it out, both right:

- the guide's density is masked there too, where its law has an element for it; or
- the model's mask is lifted there. As nothing else sees the element, its law integrates to one, and the
  evidence stays. So it goes for guides that draw several elements jointly.

An element that some term does see counts as :math:`\sum_s \text{scale}_s \cdot \text{mask}_s \cdot \log p`
says: its own density was left out on purpose (and comes as a factor, say), and the guide's entropy stays.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import Delta, Distribution
from numpyro.handlers import block, seed, substitute
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import element_log_prob, element_mask, elements, masks, same
from ppl_ext.densities.given import Given
from ppl_ext.densities.half_seen import observed_twin
from ppl_ext.densities.recording import Record
from ppl_ext.tracing.credit import collect, mark, trace_credit
from ppl_ext.tracing.scan_bodies import run_in_scan_body, scan_length


class Absent(NamedTuple):
    """By site, which elements of the model's site are absent; in ``guide`` those to mask there, in ``model``
    those to unmask there.
    """

    guide: dict[str, jax.Array]
    model: dict[str, jax.Array]

    def of_guide(self, program: Callable) -> Callable:
        """The guide, with the density of absent elements left out."""
        return _Remasked(program, self.guide, _hidden) if self.guide else program

    def of_model(self, program: Callable) -> Callable:
        """The model, with the density of absent elements taken in."""
        return _Remasked(program, self.model, _shown) if self.model else program


NONE_ABSENT = Absent({}, {})


class MaskedLatents(Messenger):
    """Note the latent sites with a mask that are met, finite ones aside: each of their outcomes counts one,
    and entropy is right there.
    """

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and is_masked_latent(msg):
            self.names.add(msg["name"])


def without_absent(run: Callable, model: Callable, guide: Callable, rng_key: jax.Array):
    """``run(programs)``, where ``programs()`` gives a model and a guide that have their arguments, with what
    is absent left out of both.

    Most models have no such site, and ``run`` meets none: then it is traced once and no more. ``programs`` is
    to be called where minibatches are those of the run, since a mask may depend on them.
    """

    def mended() -> tuple[Callable, Callable]:
        absent = absent_elements(model, guide, random.fold_in(rng_key, 1))
        return absent.of_model(model), absent.of_guide(guide)

    with (met := MaskedLatents()):
        out = run(lambda: (model, guide))
    return run(mended) if met.names else out


def is_masked_latent(msg: Mapping) -> bool:
    """Whether a site may have absent elements."""
    return (
        not msg["is_observed"] and not msg["fn"].has_enumerate_support and element_mask(msg["fn"]) is not None
    )


def absent_elements(model: Callable, guide: Callable, rng_key: jax.Array) -> Absent:
    """What is absent of two programs that have their arguments. Only masks and data are looked at: a draw's
    values do not matter.

    Minibatches are drawn by the handlers around, so that they are those of the run to come.
    """
    key_guide, key_model = random.split(rng_key)
    with _alone(), (of_guide := Record(guide)):
        seed(guide, key_guide)()
    drawn = {
        n: s["value"] for n, s in of_guide.sites.items() if s["type"] == "sample" and not s["is_observed"]
    }
    plates = {n: s["value"] for n, s in of_guide.sites.items() if s["type"] == "plate"}

    def run(values: Mapping[str, jax.Array]) -> dict[str, dict]:
        with _alone(), (record := Record(model)):
            seed(substitute(Given(model, values), data=plates), key_model)()
        return {n: s for n, s in record.sites.items() if s["type"] == "sample"}

    sites = run(drawn)
    hidden = {}
    for name, site in sites.items():
        mask = element_mask(site["fn"])
        if (
            name in drawn
            and mask is not None
            and is_masked_latent(site)
            and not _same_masks(of_guide.sites[name]["fn"], site["fn"])
        ):
            hidden[name] = _whole(~mask, site)

    # What picks elements by their number (a state the row of a matrix, say) reads others at the next draw, or
    # is summed out.
    picking = {n: s["value"] for n, s in sites.items() if not s["is_observed"] and not _is_real(s["value"])}

    def terms(values: Mapping[str, jax.Array]) -> list[jax.Array]:
        """The terms of a run in which what masked sites hand on has these values; their own density is taken
        at what was drawn.
        """
        return [
            element_log_prob(s["fn"], drawn[n] if n in hidden and n in values else s["value"])
            for n, s in run({**drawn, **values}).items()
        ]

    ranks = {n: jnp.ndim(x) for n, x in picking.items()} | {n: x.ndim for n, x in hidden.items()}
    credit, met = trace_credit(
        lambda: terms({n: mark({**picking, **drawn}[n], n, ndim) for n, ndim in ranks.items()})
    )
    visible = [_visible(site) for site in sites.values()]
    # A point may be made of other draws, as in guides that draw one vector for all sites.
    auxiliary = [
        s["fn"] for s in of_guide.sites.values() if s["type"] == "sample" and s["infer"].get("is_auxiliary")
    ]
    of_others = not all(map(_is_point, auxiliary))
    absent = Absent({}, {})
    for name, masked in hidden.items():
        # else the observed value takes its place wherever it is masked
        if observed_twin(name, sites) is None:
            readers = [(counts, deps) for counts, deps in zip(visible, credit, strict=True) if name in deps]
            seen = jnp.full(masked.shape, name not in met)
            for counts, deps in readers:
                seen |= collect(counts, deps[name], masked.shape) > 0
            lost = [
                deps
                for _, deps in readers
                if any(r is None and n > 1 for r, n in zip(deps[name], masked.shape, strict=True))
            ]
            picked = (
                bool(picking)
                if name not in met
                else any(deps.keys() & picking.keys() - {name} for deps in lost)
            )
            if (lost or name not in met) and not picked:
                seen &= _moves(terms, visible, name, drawn[name], masked.ndim)
            masked = masked & ~seen
        law = of_guide.sites[name]["fn"]
        if _is_point(law) and not of_others:
            continue
        (absent.guide if _fits(law, masked, sites[name]["fn"]) else absent.model)[name] = masked
    return absent


def _visible(site: dict) -> jax.Array:
    mask = element_mask(site["fn"])
    return _whole(jnp.ones((), bool) if mask is None else mask, site).astype(float)


def _whole(mask: jax.Array, site: dict) -> jax.Array:
    """A mask over every element of a site's density."""
    return jnp.broadcast_to(mask, jax.eval_shape(lambda: element_log_prob(site["fn"], site["value"])).shape)


def _moves(terms: Callable, visible: list[jax.Array], name: str, value: jax.Array, ndim: int) -> jax.Array:
    """Which elements of a site some visible term moves with: where the data flow lost them (a density that
    mixes axes inside), slopes tell. A term that is flat in an element that has no density of its own has no
    evidence either."""

    def total(value):
        return sum(
            jnp.sum(jnp.where(counts > 0, x, 0.0))
            for counts, x in zip(visible, terms({name: value}), strict=True)
        )

    if not _is_real(value):
        return jnp.ones(jnp.shape(value)[:ndim], bool)
    slope = jax.grad(total)(jax.lax.stop_gradient(value))
    return (slope != 0).any(axis=tuple(range(ndim, slope.ndim)))  # NaN moves too


def _is_real(value: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def _alone() -> Messenger:
    return block(hide_fn=lambda msg: msg["type"] != "plate")


def _same_masks(law: Distribution, other: Distribution) -> bool:
    """Whether the guide has the model's masks already."""
    own, theirs = masks(law), masks(other)
    return len(own) == len(theirs) and all(map(same, own, theirs))


def _is_point(law: Distribution) -> bool:
    """A point estimate, which has no density to leave out."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    density = getattr(law, "log_density", None)
    return (
        isinstance(law, Delta)
        and not isinstance(density, jax.core.Tracer)
        and not np.any(np.asarray(density))
    )


def _fits(law: Distribution, masked: jax.Array, model_law: Distribution) -> bool:
    """Whether the guide's law has an element for each of the model's."""
    base = elements(law)
    if isinstance(base, Delta) or law.shape() != model_law.shape():
        return False
    return tuple(base.batch_shape[: masked.ndim]) == masked.shape and base.event_dim <= model_law.event_dim


def _hidden(mask: jax.Array | None, absent: jax.Array) -> jax.Array:
    return ~absent if mask is None else mask & ~absent


def _shown(mask: jax.Array | None, absent: jax.Array) -> jax.Array:
    return jnp.ones(absent.shape, bool) if mask is None else mask | absent


class _Remasked(Messenger):
    """Give sites another mask, made from their own and from what is absent; in ``scan`` too."""

    def __init__(
        self,
        fn: Callable | None,
        absent: Mapping[str, jax.Array],
        rule: Callable,
        step: Mapping[str, jax.Array] | None = None,
    ):
        super().__init__(fn)
        self.absent, self.rule, self.step = absent, rule, {} if step is None else step

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            length = scan_length(msg)
            series = {n: x for n, x in self.absent.items() if length is not None and x.shape[:1] == (length,)}
            run_in_scan_body(self, msg, lambda step: _Remasked(None, self.absent, self.rule, step), series)
        elif msg["type"] == "sample" and msg["name"] in self.absent and not msg.get("_control_flow_done"):
            absent, law = self.step.get(msg["name"], self.absent[msg["name"]]), msg["fn"]
            base, mask = elements(law), element_mask(law)
            # Those of the model come first; what follows is an event there and elements here.
            absent = absent.reshape(absent.shape + (1,) * (len(base.batch_shape) - absent.ndim))
            mask = jnp.broadcast_to(
                self.rule(mask, jnp.broadcast_to(absent, base.batch_shape)), base.batch_shape
            )
            msg["fn"] = base.mask(mask).to_event(law.event_dim - base.event_dim)
            msg["infer"] = {**msg["infer"], "_ppl_ext_absent": True}
