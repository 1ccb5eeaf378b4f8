"""One-step-ahead terms of a chain, log p(y_t | y_<t): the forward algorithm on the tables of the one
elimination that objectives use too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from ppl_ext.densities.factors import Axis, Factor, PreviousStep, laid_out
from ppl_ext.densities.variable_elimination import Elimination
from ppl_ext.diagnostics.enumeration.summed_terms import Plates, over_plates, plates_left, sample_sites
from ppl_ext.diagnostics.sites import Site
from ppl_ext.errors import ModelError


class Part(NamedTuple):
    """Sites of the steps that are linked without the help of sites that all steps see.

    ``terms``: the numbers of their terms. ``carried``: the finite sites that a step sees of the one before;
    ``local``: the others within a step. ``time``: the plate whose elements are the steps. ``plates``: those
    of the carried sites; each of their elements is a chain.
    """

    terms: tuple[int, ...]
    carried: tuple[str, ...]
    local: tuple[str, ...]
    time: int
    plates: tuple[int, ...]


class Chain(NamedTuple):
    """The sites whose densities make up some one-step-ahead terms.

    ``observed``: what a term is the density of, jointly. ``static``: the finite sites that all steps see.
    ``kept``: the plates over which terms are apart.
    """

    observed: tuple[str, ...]
    static: tuple[str, ...]
    kept: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def label(self) -> str:
        return "+".join(self.observed)

    @property
    def linked(self) -> bool:
        """A finite site of one step alone leaves the steps independent."""
        return bool(self.static) or any(part.carried for part in self.parts)


class ChainsPlan:
    """Which tables make up the terms of a model's chains; the same at every draw, so decided once.

    ``plan``: by label, the observed sites, the plates along a term (time first), and whether its steps are
    linked. ``free``: the finite sites that other observed
    sites are linked by. ``size``: how many numbers a draw takes.

    :raises ModelError: if steps are linked in a way that the forward algorithm does not cover; it names the
        sites.
    """

    def __init__(self, elimination: Elimination, sites: Mapping[str, Site]):
        names, free = sample_sites(sites), set()
        self.sites, self.chains = sites, []
        for linked in elimination.linked():
            hidden = [s for s in elimination.sites if any(s in elimination.credit[t] for t in linked)]
            if not any(sites[names[t]].kind == "observed" for t in linked):
                continue
            if any(sites[n].in_scan for n in hidden):
                self.chains.append(_chain(elimination, sites, linked, hidden))
            else:
                free |= set(hidden)
        self.free = frozenset(free)
        self.observed = {n for chain in self.chains for n in chain.observed}
        self.plan = {
            chain.label: (chain.observed, _plates(elimination, chain, sites), chain.linked)
            for chain in self.chains
        }
        self.size = elimination.lane_size + sum(_size(elimination, chain) for chain in self.chains)

    def evaluate(self, elimination: Elimination) -> dict[str, jax.Array]:
        """The terms by label, over the plates that are left."""
        return {
            chain.label: over_plates(
                one_step_terms(elimination, chain, self.sites), self.plan[chain.label][1]
            )
            for chain in self.chains
        }


def one_step_terms(elimination: Elimination, chain: Chain, sites: Mapping[str, Site]) -> jax.Array:
    r"""Log p(y_t | y_<t) of one chain, over the axes of its first observed site, of size one where terms were
    multiplied.

    .. math::
        \ell_t = \log \sum_{z_{t-1}, z_t} \alpha_{t-1}(z_{t-1})\, p(z_t \mid z_{t-1})\, p(y_t \mid z_t),
        \qquad \alpha_t(z_t) = e^{-\ell_t} \sum_{z_{t-1}} \alpha_{t-1}(z_{t-1})\, p(z_t \mid z_{t-1})\, p(y_t
        \mid z_t)

    with :math:`\alpha_t` normalised at each step, so that nothing accumulates and a long series costs no
    digits. A finite site that all steps see (a class of the series) is weighted by its posterior given y_<t.

    Source: Rabiner 1989, eqs. 19-20 and 92.
    """
    number = {n: t for t, n in enumerate(sample_sites(sites))}
    prior = elimination.product([number[n] for n in chain.static], [], frozenset(chain.kept))
    over: tuple[Axis, ...] = (*chain.kept, *chain.static)
    weights = _table(elimination, prior, over)
    links, first = zip(*(_links(elimination, chain, part) for part in chain.parts), strict=True)
    statics = tuple(range(-len(chain.static), 0))

    def absorb(weights, alphas):
        filtered = []
        for part, alpha in zip(chain.parts, alphas, strict=True):
            now = tuple(range(-len(part.carried), 0))
            here = logsumexp(alpha, axis=now) if now else alpha
            filtered.append(_less(alpha, here, len(now)))
            weights = weights + here.sum([a for a, p in enumerate(part.plates) if p not in chain.kept])
        term = logsumexp(weights, axis=statics) if statics else weights
        return (_less(weights, term, len(statics)), tuple(filtered)), term

    def step(carry, links):
        weights, alphas = carry
        return absorb(weights, tuple(map(_moved, chain.parts, alphas, links)))

    carry, term = absorb(weights, first)
    _, terms = jax.lax.scan(step, carry, tuple(link[1:] for link in links))
    terms = jnp.concatenate([term[None], terms])
    axes = _axes(elimination.factors[number[chain.observed[0]]])
    return laid_out(Factor(terms, (axes[0], *chain.kept)), axes)


def _links(elimination: Elimination, chain: Chain, part: Part) -> tuple[jax.Array, jax.Array]:
    """The joint densities of the steps of a part, (time, *plates, *static, *states before, *states), and of
    the first, which reads no state before, whatever its table says.
    """
    over: tuple[int, ...] = part.plates if part.carried else chain.kept
    joint = elimination.product(part.terms, part.local, frozenset({part.time, *over}))
    before = tuple(map(PreviousStep, part.carried))
    axes: tuple[Axis, ...] = (part.time, *over, *chain.static, *before, *part.carried)
    links = _table(elimination, joint, axes)
    num = len(part.carried)
    return links, links[(0, ..., *(0,) * num, *(slice(None),) * num)]


def _moved(part: Part, alpha: jax.Array, link: jax.Array) -> jax.Array:
    num = len(part.carried)
    previous = tuple(range(-2 * num, -num))
    return logsumexp(alpha.reshape(alpha.shape + (1,) * num) + link, axis=previous) if num else link


def _less(x: jax.Array, total: jax.Array, ndim: int) -> jax.Array:
    """The logarithms less that of their sum; what is impossible stays so where all is."""
    return jnp.where(jnp.isfinite(x), x - total.reshape(total.shape + (1,) * ndim), -jnp.inf)


def _axes(factor: Factor) -> tuple[int, ...]:
    return tuple(a for a in factor.axes if isinstance(a, int))


def _sizes(elimination: Elimination) -> dict[Axis, int]:
    outcomes: dict[Axis, int] = {}
    for name, site in elimination.sites.items():
        outcomes[name] = outcomes[PreviousStep(name)] = len(site.support)
    return outcomes | {a: n for f in elimination.factors for a, n in f.sizes().items() if isinstance(a, int)}


def _table(elimination: Elimination, factor: Factor, axes: Sequence[Axis]) -> jax.Array:
    sizes = _sizes(elimination)
    return jnp.broadcast_to(laid_out(factor, axes), [sizes[a] for a in axes])


def _plates(elimination: Elimination, chain: Chain, sites: Mapping[str, Site]) -> Plates:
    """The plates along a chain's terms and their axes, the first of which is time."""
    first = sample_sites(sites).index(chain.observed[0])
    sizes = elimination.factors[first].sizes()
    axes = _axes(elimination.factors[first])
    kept = [i for i, a in enumerate(axes) if i == 0 or a in chain.kept or sizes[a] == 1]
    return plates_left(sites[chain.observed[0]], len(axes), kept)


def _size(elimination: Elimination, chain: Chain) -> int:
    """How many numbers the joint transitions of a chain hold."""
    sizes = _sizes(elimination)
    total = 0
    for part in chain.parts:
        axes: tuple[Axis, ...] = (part.time, *part.plates, *chain.static, *part.carried, *part.carried)
        total += math.prod(sizes[a] for a in axes)
    return total


def _chain(
    elimination: Elimination, sites: Mapping[str, Site], linked: Sequence[int], hidden: list[str]
) -> Chain:
    names = sample_sites(sites)
    group = [names[t] for t in linked]
    observed = tuple(n for n in group if sites[n].kind == "observed")
    cannot = f"One-step-ahead terms of {_listed(observed)} cannot be had"
    _check_steps(sites, group, observed, hidden, cannot)
    # A site of the scan without a shape is one whose steps some density reads together.
    within = [n for n in hidden if sites[n].in_scan and elimination.sites[n].shape]
    static = tuple(n for n in hidden if n not in within)
    terms = [t for t in linked if names[t] not in static]
    parts = _parts(elimination, terms, within)
    plates = elimination.structure.plates_of
    if static:
        kept = plates(static[0])
    elif len(parts) == 1 and parts[0].carried:
        kept = frozenset(parts[0].plates)
    else:
        kept = frozenset.intersection(*map(plates, within)) - {part.time for part in parts}
    # Where these do not hold, chains of several plate elements are coupled: exact terms would cost K to the
    # power of their number.
    own = {names[t]: elimination.credit[t].keys() for t in linked}
    coupled = [n for n in static if plates(n) != kept or not own[n] <= set(static)]
    for part in parts:
        apart = {*part.plates, part.time}
        coupled += [n for n in part.carried if plates(n) - apart or not kept <= plates(n)]
        coupled += [n for n in part.local if part.carried and not set(part.plates) <= plates(n)]
    if coupled:
        raise ModelError(
            f"{cannot} exactly: {_listed(coupled)} couples the chains of several plate elements. Give it a "
            "value, or the same plates as the other finite sites."
        )
    return Chain(observed, static, tuple(sorted(kept)), parts)


def _check_steps(
    sites: Mapping[str, Site], group: list[str], observed: Sequence[str], hidden: list[str], cannot: str
) -> None:
    if given := [n for n in group if n not in hidden and n not in observed]:
        raise ModelError(
            f"{cannot}: {_listed(given)} depends on the chain's finite sites and is given whole, later steps "
            "included."
        )
    if outside := [n for n in observed if not sites[n].in_scan]:
        raise ModelError(f"{cannot}: {_listed(outside)} is outside the scan and depends on its chain.")
    scans = {scan for n in group if (scan := sites[n].scan) is not None}
    if len(scans) > 1:
        raise ModelError(f"{cannot}: the sites lie in several scans that depend on each other.")
    if any(scan.reversed for scan in scans):
        raise ModelError(
            "One-step-ahead terms run forward in time, but the scan has reverse=True. Reverse the data "
            "instead."
        )


def _parts(elimination: Elimination, terms: list[int], within: list[str]) -> tuple[Part, ...]:
    structure, left, parts = elimination.structure, list(terms), []
    reads = {t: elimination.credit[t].keys() & set(within) for t in terms}
    while left:
        mine, seen = {left[0]}, set(reads[left[0]])
        while more := {t for t in left if t not in mine and reads[t] & seen}:
            mine |= more
            seen.update(*(reads[t] for t in more))
        left = [t for t in left if t not in mine]
        carried = tuple(n for n in within if n in seen and n in structure.chain_axis)
        local = tuple(n for n in within if n in seen and n not in carried)
        time = _axes(elimination.factors[min(mine)])[0]
        plates = structure.plates_of(carried[0]) - {time} if carried else frozenset()
        parts.append(Part(tuple(sorted(mine)), carried, local, time, tuple(sorted(plates))))
    return tuple(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{n}'" for n in names)
