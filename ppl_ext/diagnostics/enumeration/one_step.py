"""One-step-ahead terms of a chain, log p(y_t | y_<t): the forward algorithm on the factors that NumPyro's
enumerated ``scan`` leaves.

NumPyro unrolls the first step of such a scan (its sites are called ``_PREV_...``) and stacks the others along
an axis of time. Between them, their factors hold the initial law, the transition and the emission; what links
the steps is read off the axes that they have.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import funsor
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.contrib.funsor import enum, plate_to_enum_plate
from numpyro.handlers import infer_config, seed
from numpyro.primitives import Messenger

from ppl_ext.diagnostics.enumeration.enumerated import GivenInScan, Indexed, PackedTrace
from ppl_ext.diagnostics.enumeration.factor_graph import Graph, eliminate, split_by_scan, to_array
from ppl_ext.diagnostics.sites import FullPlates, Site, given
from ppl_ext.errors import ModelError

PREVIOUS, TIME_OF_CHAIN = "_PREV_", "_time"
"""What NumPyro puts before the names of a scan's first step, and of its axis of time."""


class Chain(NamedTuple):
    """The sites that make up one chain, by name.

    ``observed``: what a term is the density of, jointly. ``carried``: the finite sites that a step sees of
    the one before. ``local``: other finite sites within a step. ``initial``: finite sites before the scan
    that only its first step sees. ``static``: those that all steps see. ``plates``: of the carried sites;
    each of their elements is a chain. ``kept``: those of them over which the terms are apart. ``steps``:
    whether there is a second step at all.
    """

    observed: tuple[str, ...]
    carried: tuple[str, ...]
    local: tuple[str, ...]
    initial: tuple[str, ...]
    static: tuple[str, ...]
    plates: tuple[str, ...]
    kept: tuple[str, ...]
    steps: bool


class _Scans(Messenger):
    """Tell which scan each site is in, and refuse scans that the forward algorithm would misread."""

    def __init__(self):
        super().__init__()
        self.count, self.scan_of = 0, {}

    def process_message(self, msg):
        if msg["type"] == "sample" and (msg.get("_control_flow_done") or msg["name"].startswith(PREVIOUS)):
            self.scan_of[base_name(msg["name"])] = self.count
        if msg["type"] == "control_flow" and msg["fn"] is scan_wrapper:
            self.count += 1
            if msg["args"][-1]:
                raise ModelError(
                    "One-step-ahead terms run forward in time, but the scan has reverse=True. Reverse the "
                    "data instead."
                )
            if msg["kwargs"].get("history", 1) != 1:
                raise ModelError(
                    "One-step-ahead terms are there for scans with history=1; this one has "
                    f"history={msg['kwargs']['history']}. Carry the pair of the last states as one finite "
                    "site instead."
                )


def chain_graph(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
    finite: Iterable[str],
) -> tuple[Graph, dict[str, int]]:
    """The factors of a model on its full plates, finite sites enumerated, those inside ``scan`` too (first
    step and stacked rest); and the number of the scan that a site is in."""
    finite = frozenset(finite)
    ranks = [
        max([len(s.batch_shape) - s.in_scan, *(-p.dim for p in s.plates)], default=0) for s in sites.values()
    ]
    inside, others = split_by_scan({name: v for name, v in values.items() if name not in finite}, sites)
    model = infer_config(
        model, lambda msg: {"enumerate": "parallel"} if msg["name"] in finite else {"enumerate": None}
    )
    model = seed(given(GivenInScan(Indexed(model, finite), inside), others, params), jax.random.key(0))
    with (
        plate_to_enum_plate(),
        PackedTrace() as trace,
        FullPlates(),
        (scans := _Scans()),
        enum(None, -max(ranks, default=0) - 1),
    ):
        model(*args, **kwargs)
    factors, dims = {}, {}
    for name, msg in trace.items():
        if msg["type"] == "sample":
            names = msg["infer"]["dim_to_name"]
            log_prob = jnp.asarray(msg["fn"].log_prob(msg["value"]))
            factors[name] = funsor.to_funsor(
                log_prob if names else log_prob.reshape(()), output=funsor.Real, dim_to_name=names
            )
            dims[name] = {
                n: d
                for d, n in names.items()
                if base_name(n) not in finite and not n.startswith(TIME_OF_CHAIN)
            }
    return Graph(factors, dims), scans.scan_of


def find_chains(
    graph: Graph, scan_of: Mapping[str, int], sites: Mapping[str, Site], finite: frozenset[str]
) -> tuple[list[Chain], frozenset[str]]:
    """The chains of a model, and the finite sites that belong to none.

    :raises ModelError: if steps are linked in a way that the forward algorithm does not cover; it names the
        sites.
    """
    names = _finite_by_site(graph, finite)
    left, chains, free = [n for n in sites if n in names], [], set()
    while left:
        group = {left[0]}
        while more := {
            n
            for n in left
            if n not in group and (names[n] | {n}) & set().union(*((names[g] | {g}) & finite for g in group))
        }:
            group |= more
        left = [n for n in left if n not in group]
        if not any(sites[n].kind == "observed" for n in group):
            continue
        if any(sites[n].in_scan for n in group & finite):
            chains.append(_chain(graph, scan_of, sites, finite, [n for n in sites if n in group]))
        else:
            free |= group & finite
    return chains, frozenset(free)


def one_step_terms(graph: Graph, chain: Chain) -> jax.Array:
    r"""Log p(y_t | y_<t) of one chain, (time, *kept plates).

    .. math::
        \ell_t = \log \sum_{z_{t-1}, z_t} \alpha_{t-1}(z_{t-1})\, p(z_t \mid z_{t-1})\, p(y_t \mid z_t),
        \qquad \alpha_t(z_t) = e^{-\ell_t} \sum_{z_{t-1}} \alpha_{t-1}(z_{t-1})\, p(z_t \mid z_{t-1})\, p(y_t
        \mid z_t)

    with :math:`\alpha_t` normalised at each step, so that nothing accumulates and a long series costs no
    digits. A finite site that all steps see (a class of the series) is weighted by its posterior given y_<t.

    Source: Rabiner 1989, eqs. 19-20 and 92.
    """
    state = chain.static + chain.carried
    carried = tuple(PREVIOUS + n for n in chain.carried)
    members = {*chain.observed, *chain.carried, *chain.local}
    sizes = _sizes(graph)
    first = [
        _renamed(f) for n, f in graph.factors.items() if n.startswith(PREVIOUS) and base_name(n) in members
    ]
    before = [graph.factors[n] for n in chain.initial]
    alpha = _array(
        _eliminated(first + before, {*chain.local, *chain.initial}, chain.plates + state),
        chain.plates + state,
        sizes,
    )
    prior = _array(
        _eliminated([graph.factors[n] for n in chain.static], set(), chain.kept + chain.static),
        chain.kept + chain.static,
        sizes,
    )
    num_plates, num_static, num_carried = len(chain.plates), len(chain.static), len(chain.carried)
    states = tuple(range(-num_carried, 0)) if num_carried else ()
    statics = tuple(range(-num_static, 0)) if num_static else ()
    apart = tuple(a for a, p in enumerate(chain.plates) if p not in chain.kept)

    def absorb(weights, alpha):
        here = logsumexp(alpha, axis=states) if states else alpha
        alpha = jnp.where(
            jnp.isfinite(alpha), alpha - here.reshape(here.shape + (1,) * num_carried), -jnp.inf
        )
        weights = weights + here.sum(apart)
        term = logsumexp(weights, axis=statics) if statics else weights
        weights = jnp.where(
            jnp.isfinite(weights), weights - term.reshape(term.shape + (1,) * num_static), -jnp.inf
        )
        return (weights, alpha), term

    carry, term = absorb(prior, alpha)
    if not chain.steps:
        return term[None]
    rest = [graph.factors[n] for n in members]
    # With a single step left, NumPyro gives its axis no name.
    time = next((n for f in rest for n in f.inputs if n.startswith(TIME_OF_CHAIN)), TIME_OF_CHAIN)
    order = (time, *chain.plates, *chain.static, *carried, *chain.carried)
    steps = _array(_eliminated(rest, set(chain.local), order), order, {TIME_OF_CHAIN: 1} | sizes)
    previous = tuple(range(num_plates + num_static, num_plates + num_static + num_carried))

    def step(carry, transition):
        weights, alpha = carry
        joint = alpha.reshape(alpha.shape + (1,) * num_carried) + transition
        return absorb(weights, logsumexp(joint, axis=previous) if previous else joint)

    _, terms = jax.lax.scan(step, carry, steps)
    return jnp.concatenate([term[None], terms])


def chain_size(graph: Graph, chain: Chain) -> int:
    """How many numbers the joint transitions of a chain hold."""
    sizes = _sizes(graph)
    steps = max((n for name, n in sizes.items() if name.startswith(TIME_OF_CHAIN)), default=1)
    return (
        steps
        * math.prod(sizes[n] for n in (*chain.plates, *chain.static))
        * math.prod(sizes[n] for n in chain.carried) ** 2
    )


def base_name(name: str) -> str:
    return name[len(PREVIOUS) :] if name.startswith(PREVIOUS) else name


def _finite_by_site(graph: Graph, finite: frozenset[str]) -> dict[str, frozenset[str]]:
    """By site, the finite sites that its density depends on, in its first step or later."""
    out: dict[str, frozenset[str]] = {}
    for name, factor in graph.factors.items():
        out[base_name(name)] = out.get(base_name(name), frozenset()) | {
            base_name(i) for i in factor.inputs if base_name(i) in finite
        }
    return out


def _chain(
    graph: Graph,
    scan_of: Mapping[str, int],
    sites: Mapping[str, Site],
    finite: frozenset[str],
    group: list[str],
) -> Chain:
    observed = tuple(n for n in group if sites[n].kind == "observed")
    label = _listed(observed)
    given_sites = [n for n in group if n not in finite and n not in observed]
    if given_sites:
        raise ModelError(
            f"One-step-ahead terms of {label} cannot be had: {_listed(given_sites)} depends on the chain's "
            "finite sites and is given whole, later steps included."
        )
    outside = [n for n in observed if not sites[n].in_scan]
    if outside:
        raise ModelError(
            f"One-step-ahead terms of {label} cannot be had: {_listed(outside)} is outside the scan and "
            "depends on its chain."
        )
    stacked = [graph.factors[n] for n in group if n in graph.factors and sites[n].in_scan]
    later = frozenset().union(*(f.inputs for f in stacked)) if stacked else frozenset()
    if len({scan_of[n] for n in group if n in scan_of}) > 1:
        raise ModelError(
            f"One-step-ahead terms of {label} cannot be had: the sites lie in several scans that depend on "
            "each other."
        )
    inside = [n for n in group if n in finite and sites[n].in_scan]
    before = [n for n in group if n in finite and not sites[n].in_scan]
    carried = tuple(n for n in inside if PREVIOUS + n in later)
    local = tuple(n for n in inside if n not in carried)
    spans = {
        n: frozenset(graph.dims[n if n in graph.dims else PREVIOUS + n])
        for n in (*inside, *before, *observed)
    }
    plates = (
        spans[carried[0]] if carried else frozenset.intersection(*(spans[n] for n in (*local, *observed)))
    )
    initial = tuple(n for n in before if n not in later and spans[n] >= plates)
    static = tuple(n for n in before if n not in initial)
    kept = spans[static[0]] if static else plates
    # Where these do not hold, chains of several plate elements are coupled: exact terms would cost K to the
    # power of their number.
    coupled = [n for n in carried if spans[n] != plates]
    coupled += [n for n in (*local, *observed) if not spans[n] >= plates]
    coupled += [
        n
        for n in static
        if spans[n] != kept or not kept <= plates or not _finite_by_site(graph, finite)[n] <= set(static)
    ]
    if coupled:
        raise ModelError(
            f"One-step-ahead terms of {label} cannot be had exactly: {_listed(coupled)} couples the chains "
            "of several plate elements. Give it a value, or the same plates as the other finite sites."
        )
    rank = {p: graph.dims[n][p] for n in graph.dims for p in graph.dims[n]}
    by_axis = sorted(plates, key=lambda p: rank[p])
    return Chain(
        observed,
        carried,
        local,
        initial,
        static,
        tuple(by_axis),
        tuple(p for p in by_axis if p in kept),
        bool(stacked),
    )


def _sizes(graph: Graph) -> dict[str, int]:
    sizes = {n: domain.size for f in graph.factors.values() for n, domain in f.inputs.items()}
    return {base_name(n): size for n, size in sizes.items()} | sizes


def _renamed(factor: funsor.terms.Funsor) -> funsor.terms.Funsor:
    return factor(**{n: base_name(n) for n in factor.inputs if n.startswith(PREVIOUS)})


def _eliminated(factors: list, local: set[str], kept: tuple[str, ...]) -> funsor.terms.Funsor:
    """Sum ``local`` sites out of a product of factors, plates beyond ``kept`` multiplied."""
    graph = Graph(dict(enumerate(factors)), {})  # type: ignore[arg-type]
    return eliminate(graph, list(graph.factors), frozenset(local), frozenset(kept))


def _array(factor: funsor.terms.Funsor, axes: tuple[str, ...], sizes: Mapping[str, int]) -> jax.Array:
    return to_array(factor, {n: i - len(axes) for i, n in enumerate(axes)}, tuple(sizes[n] for n in axes))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{n}'" for n in names)
