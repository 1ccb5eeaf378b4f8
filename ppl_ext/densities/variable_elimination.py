r"""Sum finite sites out of a log density, exactly and along its structure: plates side by side, chains link
by link.

.. math:: \log \sum_{z} \prod_t \exp \ell_t(z_{S_t})

Which sites :math:`S_t` a term touches, and along which axes element by element, is read off the data flow
(:mod:`ppl_ext.tracing.credit`). A term's table over its own sites is all that is needed of the program, so
sites that no term reads together may take their values at the same time: they get the same colour, and the
program runs once for each joint value of the *colours*, in one ``vmap``. A site of a scan whose steps read
the step before has two, for even and odd steps. So a chain of coins of any length takes four runs. The tables
are then factors of a plated graph, which is eliminated from its innermost plates outwards (Obermeyer et al.
2019, algorithm 1), the cheapest sum first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.elimination_structure import Declared, Structure, joint_site, linked_terms, meets
from ppl_ext.densities.factors import (
    Axis,
    Colour,
    Factor,
    PreviousStep,
    laid_out,
    multiplied_along,
    product,
    summed,
    summed_along,
)
from ppl_ext.densities.finite_sites import Finite
from ppl_ext.errors import ModelError
from ppl_ext.tracing.credit import distrust, mark, trace_credit

MAX_LANES = 2**14  # joint values that sites take side by side: a chain of 128 states


class Group(NamedTuple):
    """Terms linked by summed sites: their places, and what is left of them when the sites are gone, over the
    plates that hold them all.
    """

    terms: tuple[int, ...]
    sites: tuple[str, ...]
    value: jax.Array  # of the first term's rank, with size one where terms were multiplied


class Elimination:
    """The terms of a program as tables over its finite sites, from which sums of any of them together are
    taken.

    ``lane_size``: how many numbers the runs that make the tables give.

    :param run: from values of the sites to the terms, which are arrays.
    :param names: of the terms, for errors.
    :param declared: plates that the program declares to hold a site's elements and a term's: where the data
        flow between the two is lost along such a plate, the plate decides. Whoever passes it must compare the
        tables with the program (:meth:`looked_up`).
    :raises ModelError: if elements of a site meet in a term, or there are too many joint values; the message
        names the sites.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, jax.Array]], Sequence[jax.Array]],
        sites: Mapping[str, Finite],
        names: Sequence[str],
        declared: "Declared | None" = None,
    ):
        first = {s: site.value(jnp.zeros((), int)) for s, site in sites.items()}
        ranks = {s: len(site.shape) for s, site in sites.items()}
        credit, met = trace_credit(
            lambda: list(run({s: mark(x, s, ranks[s]) for s, x in first.items()})), links=True
        )
        distrust(credit, met, ranks)
        if declared is not None:
            credit = declared.decided(credit, sites)
        sites = {s: joint_site(site) if meets(s, site, credit) else site for s, site in sites.items()}
        self.sites = sites
        self.credit = [
            {s: relation if sites[s].shape else () for s, relation in deps.items()} for deps in credit
        ]
        self.structure = Structure(sites, self.credit, names)
        self.factors, self.lane_size = _tables(run, self.structure)

    def linked(self) -> list[tuple[int, ...]]:
        """Terms that share a site, directly or by way of others; those that touch none are in no group."""
        return linked_terms(self.credit)

    def plates(self, t: int) -> frozenset[int]:
        """The axes of a term of which each is longer than one."""
        return frozenset(a for a, n in self.factors[t].sizes().items() if isinstance(a, int) and n > 1)

    def summed(
        self, terms: tuple[int, ...], keep: frozenset[int] = frozenset(), like: int | None = None
    ) -> Group:
        """The sites summed out of the product of some terms.

        :param keep: axes along which nothing is multiplied, as if each of their elements were alone with the
            sites.
        :param like: the term whose axes the result has, of size one where terms were multiplied; the first by
            default.
        """
        return _eliminated(terms, self.factors, self.structure, keep, terms[0] if like is None else like)

    def product(self, terms: Sequence[int], away: Sequence[str], keep: frozenset[int]) -> Factor:
        """The product of some terms with the sites ``away`` summed out, as a table over the other sites that
        they touch and the plates in ``keep``.
        """
        return _product_without(list(away), [self.factors[t] for t in terms], self.structure, keep)

    def looked_up(self, indices: Mapping[str, jax.Array]) -> list[jax.Array]:
        """What the tables say of each term where every element of a site has an outcome of its own, by its
        number.
        """
        return [_at(factor, indices, self.structure) for factor in self.factors]


def _tables(run, structure: Structure) -> tuple[list[Factor], int]:
    """For each term, its value at each joint value of the sites that it touches; and how many numbers the
    runs for them give.
    """
    sites, credit, colours = structure.sites, structure.credit, structure.colours()
    used = sorted({c for mine in colours.values() for c in mine})
    sizes = [max(len(sites[s].support) for s, mine in colours.items() if c in mine) for c in used]
    if math.prod(sizes) > MAX_LANES:
        together = max(credit, key=lambda deps: math.prod(len(sites[s].support) for s in deps))
        raise ModelError(
            f"Summing out {', '.join(map(repr, together))}, which one density reads together, needs "
            f"{math.prod(sizes)} joint values, more than {MAX_LANES}. Give the guide some of these sites."
        )

    def lane(digits):
        values = {}
        for s, site in sites.items():
            index = digits[jnp.array(colours[s])]
            index = (
                _by_parity(index, structure.chain_axis[s], site.shape)
                if s in structure.chain_axis
                else index[0]
            )
            values[s] = site.value(jnp.minimum(index, len(site.support) - 1))
        return list(run(values))

    lanes = jax.vmap(lane, in_axes=1)(jnp.asarray(np.indices(sizes).reshape(len(sizes), -1)))
    factors = []
    for t, x in enumerate(lanes):
        shape = x.shape[1:]
        axes: tuple[Axis, ...] = (*map(Colour, used), *structure.axes_of(t, len(shape)))
        table = Factor(x.reshape(*sizes, *shape), axes)
        for s in sites:
            if s in credit[t]:
                table = _named(table, s, t, colours[s], structure)
        for axis in [a for a in table.axes if isinstance(a, Colour)]:
            table = _at_first(table, axis)
        factors.append(table)
    return factors, sum(math.prod(x.shape) for x in lanes)


def _by_parity(index: jax.Array, axis: int, shape: tuple[int, ...]) -> jax.Array:
    return index[np.arange(shape[axis]) % 2].reshape([n if a == axis else 1 for a, n in enumerate(shape)])


def _at_first(table: Factor, axis: Axis) -> Factor:
    place = table.axes.index(axis)
    return Factor(jnp.take(table.table, 0, axis=place), table.axes[:place] + table.axes[place + 1 :])


def _named(table: Factor, s: str, t: int, colours: tuple[int, ...], structure: Structure) -> Factor:
    """The axes of a site's colours become axes of the site."""
    size = len(structure.sites[s].support)

    def renamed(table: Factor, names: Sequence[Axis | None]) -> Factor:
        for colour, name in zip(colours, names, strict=True):
            place = table.axes.index(Colour(colour))
            if name is None:
                table = _at_first(table, Colour(colour))
            else:
                axes: tuple[Axis, ...] = (*table.axes[:place], name, *table.axes[place + 1 :])
                table = Factor(jax.lax.slice_in_dim(table.table, 0, size, axis=place), axes)
        return table

    if s not in structure.chain_axis:
        return renamed(table, [s])
    relation = structure.credit[t][s][structure.chain_axis[s]]
    kind = "" if relation is None else relation[0]  # None was refused
    now, before = (
        (s if kind in ("at", "step") else None),
        (PreviousStep(s) if kind in ("before", "step") else None),
    )
    # at even steps the site itself has the first colour
    even, odd = renamed(table, [now, before]), renamed(table, [before, now])
    time = structure.time_of(s)
    is_odd = [np.arange(n) % 2 if a == time else np.zeros(1, int) for a, n in even.sizes().items()]
    which = np.array(sum(np.ix_(*is_odd)), bool)
    return Factor(jnp.where(which, laid_out(odd, even.axes), even.table), even.axes)


def _eliminated(
    terms: tuple[int, ...], factors: list[Factor], structure: Structure, keep: frozenset[int], like: int
) -> Group:
    mine = [s for s in structure.sites if any(s in structure.credit[t] for t in terms)]
    # Of these, the steps of a chain go with it, and the others stay.
    kept = keep.union(frozenset.intersection(*map(structure.plates_of, mine)) if mine else ())
    first = tuple(a for a in factors[like].axes if isinstance(a, int))
    result = _product_without(mine, [factors[t] for t in terms], structure, kept, keep)
    return Group(terms, tuple(mine), laid_out(result, first))


def _product_without(
    away: list[str],
    factors: list[Factor],
    structure: Structure,
    kept: frozenset[int],
    apart: frozenset[int] | None = None,
) -> Factor:
    """The sites ``away`` summed out of the product of factors, from the innermost plates outwards, the
    cheapest first.

    :param kept: plates that no product is taken along; of these, ``apart`` are as if each element were alone.
    """
    keep = kept if apart is None else apart

    def reduced(factor: Factor) -> Factor:
        """Multiplied along the plates that none of its sites lies in."""
        return multiplied_along(factor, factor.plates - kept.union(*map(structure.plates_of, factor.sites)))

    pool, left = list(map(reduced, factors)), list(away)
    while left:
        s = min(left, key=lambda s: (-len(structure.plates_of(s)), s in structure.chain_axis, _cost(s, pool)))
        time = structure.time_of(s)
        chain = [s] if time is None else [c for c in left if structure.time_of(c) == time]
        left = [c for c in left if c not in chain]
        touching = [f for f in pool if f.sites & set(chain)]
        pool = [f for f in pool if not f.sites & set(chain)]
        _refuse_crossing(s, chain, touching, structure, keep)
        joint = product(touching)
        if time is None:
            pool.append(reduced(summed(joint, s)))
        else:
            pool.append(
                reduced(summed_along(joint, time, {c: len(structure.sites[c].support) for c in chain}))
            )
    return product(pool)


def _refuse_crossing(
    s: str, chain: list[str], touching: list[Factor], structure: Structure, keep: frozenset[int]
) -> None:
    time = structure.time_of(s)
    for f in touching:
        along = f.plates | (structure.plates_of(s) if time is not None else frozenset())
        inside = time is not None and any(time in structure.plates_of(o) for o in f.sites - set(chain))
        apart = any(structure.plates_of(c) != structure.plates_of(s) for c in chain)
        if along - keep != structure.plates_of(s) - keep or inside or apart:
            others = ", ".join(f"'{o}'" for o in sorted((f.sites | set(chain)) - {s}))
            raise ModelError(
                f"Site '{s}' and {others} lie in plates or scans that cross, and a density reads both: "
                "no elimination sums them out. Give the guide one of them."
            )


def _at(factor: Factor, indices: Mapping[str, jax.Array], structure: Structure) -> jax.Array:
    """One entry of a table for each element of its plates: that of the outcomes that the sites have there."""
    plates = [a for a in factor.axes if isinstance(a, int)]
    sizes = factor.sizes()
    table = laid_out(factor, [*(a for a in factor.axes if not isinstance(a, int)), *plates])
    places = []
    for axis in factor.axes:
        if isinstance(axis, int):
            continue
        s = axis.site if isinstance(axis, PreviousStep) else str(axis)
        own = tuple(structure.axis_number((s, a)) for a in range(len(structure.sites[s].shape)))
        index = indices[s]
        if isinstance(axis, PreviousStep):  # the first step reads no earlier one, whatever stands there
            index = jnp.roll(index, 1, axis=structure.chain_axis[s])
        long = [a for a, n in enumerate(index.shape) if n > 1]
        along = Factor(index.reshape([index.shape[a] for a in long]), tuple(own[a] for a in long))
        places.append(jnp.broadcast_to(laid_out(along, plates), [sizes[a] for a in plates]))
    grid = np.indices([sizes[a] for a in plates])
    return table[(*places, *grid)]


def _cost(site: str, factors: Sequence[Factor]) -> int:
    sizes: dict = {}
    for f in factors:
        if site in f.sites:
            sizes |= f.sizes()
    return math.prod(sizes.values())
