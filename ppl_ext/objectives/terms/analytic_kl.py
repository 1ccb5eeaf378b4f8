"""Divergences in closed form, site by site, where they may stand for the sampled terms of an evidence lower
bound.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import Distribution, kl_divergence
from numpyro.handlers import block
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import elements, log_prob, prob, same
from ppl_ext.densities.log_density import Label, LogDensity
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import Constant, finite_support
from ppl_ext.gradients.default import AUTOMATIC_SUPPORT
from ppl_ext.gradients.strategy import unwrapped
from ppl_ext.objectives.terms.path_gradient import simulate_and_hold
from ppl_ext.program import log_density, simulate
from ppl_ext.runtime.explain import NOT_CONCRETE
from ppl_ext.tracing.credit import mark, trace_credit
from ppl_ext.tracing.scan_bodies import run_in_scan_body


def evidence(
    model, guide, known: frozenset[str] = frozenset(), hold: bool = False
) -> tuple[LogDensity, frozenset[str]]:
    r"""log p(y, z) − log q(z) at a draw of the guide, and the latent sites that both have.

    :param known: sites whose two terms are replaced by minus their divergence in closed form: see
        :func:`known_sites`. So are, if they are known, those that the guide marks
        ``infer={"kl": "analytic"}``, as NumPyro's ``config_kl`` does.
    :param hold: the guide's parameters are held fixed in log q
        (:func:`~ppl_ext.objectives.terms.path_gradient.simulate_and_hold`).
    """
    with (of_guide := _Sites()):
        draw, log_q = simulate_and_hold(guide) if hold else _drawn(guide)
    with (of_model := _Sites()):
        log_p = log_density(model, draw.values)
    if (
        wanted := {name for name, site in of_guide.sites.items() if site["infer"].get("kl") == "analytic"}
        - known
    ):
        known = known | (known_sites(model, guide) & wanted)
    pairs = _pairs(of_guide, of_model)
    closed = {
        name: kl for name in sorted(known) if name in pairs and (kl := pairs[name].divergence()) is not None
    }
    sampled = log_p.split(closed)[1] - log_q.split(closed)[1]
    labels = {
        name: [label for x in (log_p, log_q) for label in x.labels if label.site == name] for name in closed
    }
    plates = {
        name: tuple(p for p in ls[0].plates if all(p in label.plates for label in ls))
        for name, ls in labels.items()
    }
    terms = LogDensity(tuple(closed.values()), tuple(Label(name, plates[name]) for name in closed))
    return sampled - terms, frozenset(pairs)


def _drawn(guide):
    draw = simulate(guide)
    return draw, draw.log_density


def known_sites(model, guide) -> frozenset[str]:
    r"""Latent sites z at which :math:`\mathbb{E}_q[\log p(z \mid \cdot) - \log q(z \mid \cdot)]` is minus a
    divergence in closed form.

    Both laws must be known, with the same mask and scale. And neither may depend on z itself, nor on anything
    that the guide drew by looking at z (as p may where the guide draws the sites in another order): then
    their divergence is a random variable that z is part of, and its mean is another. That is read off the
    data flow of a run that is traced and never executed. A site of which this cannot be seen is left out.
    """
    found: list[tuple[str, int]] = []
    marked: set[str] = set()

    def pilot() -> list[jax.Array]:
        found.clear()
        marked.clear()
        leaves: list[jax.Array] = []
        with block(), Run(random.key(0), random.key(1)):
            with (of_guide := _Sites()), _Marked(marked):
                draw = simulate(guide)
            with (of_model := _Sites()):
                log_density(model, draw.values)
            for name, pair in _pairs(of_guide, of_model).items():
                if pair.divergence() is not None:
                    mine = [jnp.asarray(x) for x in jax.tree.leaves([pair.guide["fn"], pair.model["fn"]])]
                    leaves += mine
                    found.append((name, len(mine)))
        return leaves

    try:
        credit, met = trace_credit(pilot)
    except NOT_CONCRETE:  # Python branches on a draw: there is no one data flow
        return frozenset()
    out, first = set(), 0
    for name, count in found:
        mine, first = credit[first : first + count], first + count
        marks = {name, _step(name)} & marked
        if name in met and marks <= met and not any(marks & deps.keys() for deps in mine):
            out.add(name)
    return frozenset(out)


class _Sites(Messenger):
    """The sample sites of a run as handlers outside of it see them; of several runs, those of the first."""

    def __init__(self):
        super().__init__()
        self.sites: dict[str, dict[str, Any]] = {}
        self.given: set[str] = set()

    def process_message(self, msg):
        # by a handler further inside, or stacked by a scan
        if msg["type"] == "sample" and msg["value"] is not None:
            self.given.add(msg["name"])

    def postprocess_message(self, msg):
        if msg["type"] == "sample":
            self.sites.setdefault(msg["name"], msg.copy())


class _Marked(Messenger):
    """Mark the value of every draw for :func:`~ppl_ext.tracing.credit.trace_credit`, inside scans too, and
    add the marks to a set.
    """

    def __init__(self, marked: set[str], name_of: Callable[[str], str] = str):
        super().__init__()
        self.marked, self.name_of = marked, name_of

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Marked(self.marked, _step))

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            name = self.name_of(msg["name"])
            self.marked.add(name)
            msg["value"] = mark(msg["value"], name, 0)


def _step(name: str) -> str:
    """The mark of a site inside the body of a scan; its stacked values have the site's own."""
    return f"{name}/step"


class _Pair(NamedTuple):
    """A latent site as guide and model have it."""

    guide: dict[str, Any]
    model: dict[str, Any]
    drawn: bool

    def divergence(self) -> jax.Array | None:
        """KL(q ‖ p) for each element of the batch, masked and scaled; ``None`` if it is not known."""
        sites = self.guide, self.model
        (q, q_masks), (p, p_masks) = (_unmasked(site["fn"]) for site in sites)
        scales = [1.0 if site["scale"] is None else site["scale"] for site in sites]
        if not (same(*scales) and len(q_masks) == len(p_masks) and all(map(same, q_masks, p_masks))):
            return None
        if not self.drawn or any(
            site["kwargs"].get("sample_shape") or site["infer"].get("_ppl_ext_kept") for site in sites
        ):
            return None
        # the law is held fixed: no mean over it is to be differentiated
        if isinstance(self.guide["infer"].get("gradient"), Constant):
            return None
        if q is None or p is None or q.event_dim != p.event_dim or getattr(q, "draws_itself", False):
            return None
        summed = len(elements(q).batch_shape) - len(q.batch_shape)
        if summed != len(elements(p).batch_shape) - len(p.batch_shape):
            return None
        kl = _closed_form(elements(q), elements(p))
        if kl is None:
            return None
        kl = jnp.sum(kl, axis=tuple(range(kl.ndim - summed, kl.ndim)))
        for mask in q_masks:
            kl = jnp.where(mask, kl, 0.0)
        return kl * scales[0]


def _pairs(of_guide: _Sites, of_model: _Sites) -> dict[str, _Pair]:
    common = [n for n, site in of_guide.sites.items() if n in of_model.sites and not site["is_observed"]]
    return {n: _Pair(of_guide.sites[n], of_model.sites[n], n not in of_guide.given) for n in common}


def _unmasked(fn: Distribution) -> tuple[Distribution | None, list]:
    """The law below its masks, and these; ``None`` for the law if there are masks further inside."""
    masks = []
    while isinstance(fn, dist.MaskedDistribution):
        if fn._mask is not True:
            masks.append(fn._mask)
        fn = fn.base_dist
    inner: Any = fn
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
        if isinstance(inner, dist.MaskedDistribution):
            return None, masks
    return fn, masks


def _closed_form(q: Distribution, p: Distribution) -> jax.Array | None:
    """For each element; both without event axes that are independent."""
    shapes = [
        tuple(n for i, n in enumerate(d.batch_shape) if any(m != 1 for m in d.batch_shape[: i + 1]))
        for d in (q, p)
    ]
    if shapes[0] != shapes[1] or q.event_shape != p.event_shape:
        return None
    kinds = type(unwrapped(q)), type(unwrapped(p))
    if all(kind in _FINITE for kind in kinds):
        return _finite(q, p)
    (q_moved, q), (p_moved, p) = _pulled_back(q), _pulled_back(p)
    kinds = type(unwrapped(q)), type(unwrapped(p))
    return kl_divergence(q, p) if q_moved == p_moved and kinds in _CLOSED else None


_FINITE = {
    *(
        dist.BernoulliProbs,
        dist.BernoulliLogits,
        dist.CategoricalProbs,
        dist.CategoricalLogits,
        dist.BinomialProbs,
        dist.BinomialLogits,
    )
}
# Types and not instances: a subclass may be another law.
_CLOSED = {
    (kind, kind) for kind in (dist.Normal, dist.Gamma, dist.Beta, dist.Dirichlet, dist.MultivariateNormal)
}
_BIJECTIONS = (dist.transforms.ExpTransform, dist.transforms.SigmoidTransform)


def _pulled_back(fn: Distribution) -> tuple[tuple[type, ...], Distribution]:
    """A law as a known one and the bijection it went through, under which a divergence does not change."""
    law = unwrapped(fn)
    if type(law) is dist.Exponential:
        return (), dist.Gamma(1.0, law.rate).expand(fn.batch_shape)
    if type(law) in (dist.LogNormal, dist.TransformedDistribution) and fn.event_dim == 0:
        if all(type(t) in _BIJECTIONS for t in law.transforms):
            return tuple(type(t) for t in law.transforms), law.base_dist.expand(fn.batch_shape)
    return (), fn


def _finite(q: Distribution, p: Distribution) -> jax.Array | None:
    try:
        supports = [np.asarray(finite_support(law)) for law in (q, p)]
    except (NotImplementedError, TypeError, *NOT_CONCRETE):
        return None
    if not np.array_equal(supports[0], supports[1]) or len(supports[0]) > AUTOMATIC_SUPPORT:
        return None
    shape = jax.lax.broadcast_shapes(q.batch_shape, p.batch_shape)
    total = jnp.zeros(shape)
    for x in supports[0]:
        x = jnp.broadcast_to(jnp.asarray(x), shape)
        weight, log_ratio = prob(q, x), log_prob(q, x) - log_prob(p, x)
        possible = weight > 0
        total = total + jnp.where(possible, weight * jnp.where(possible, log_ratio, 0.0), 0.0)
    return total
