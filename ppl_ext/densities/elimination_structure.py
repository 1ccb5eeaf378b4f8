"""Which sites and terms run along together: the plates and chains that a sum over finite sites follows."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppl_ext.densities.finite_sites import Finite
from ppl_ext.errors import ModelError
from ppl_ext.tracing.credit import Deps

MAX_JOINT = 4096  # outcomes of a site whose elements are read together


class Declared(NamedTuple):
    """The axis (counted from the left) of each declared plate, by site and by term."""

    sites: Mapping[str, Mapping[str, int]]
    terms: Sequence[Mapping[str, int]]

    def decided(self, credit: Sequence[Deps], sites: Mapping[str, Finite]) -> list[Deps]:
        """The relations, with those that the data flow lost along a plate of both taken from the plate."""

        def decide(s: str, relation, there: Mapping[str, int]):
            axes = {axis: there[plate] for plate, axis in self.sites.get(s, {}).items() if plate in there}
            taken = {r[1] for r in relation if r is not None}
            return tuple(
                ("at", axes[a])
                if r is None and sites[s].shape[a] > 1 and a in axes and axes[a] not in taken
                else r
                for a, r in enumerate(relation)
            )

        return [
            {s: decide(s, r, there) for s, r in deps.items()}
            for deps, there in zip(credit, self.terms, strict=True)
        ]


def linked_terms(credit: Sequence[Deps]) -> list[tuple[int, ...]]:
    """Terms that share a site, directly or by way of others."""
    groups: list[tuple[set[str], list[int]]] = []
    for t, deps in enumerate(credit):
        if deps:
            touching = [g for g in groups if g[0] & deps.keys()]
            groups = [g for g in groups if g not in touching]
            groups.append(
                (
                    set(deps).union(*(g[0] for g in touching)),
                    sorted([t, *(i for g in touching for i in g[1])]),
                )
            )
    return [tuple(terms) for _, terms in groups]


def meets(s: str, site: Finite, credit: Sequence[Deps]) -> bool:
    """Whether some term reads elements of a site together, other than along a chain, and they can be one site
    of not too many outcomes.
    """
    links = {
        axis
        for deps in credit
        for axis, r in enumerate(deps.get(s, ()))
        if r is not None and r[0] in ("before", "step")
    }
    relations = [r for deps in credit for r, n in zip(deps.get(s, ()), site.shape, strict=False) if n > 1]
    meets = len(links) > 1 or any(r is None or r[0] == "upto" for r in relations)
    return meets and len(site.support) ** math.prod(site.shape) <= MAX_JOINT


def joint_site(site: Finite) -> Finite:
    outcomes, elements = len(site.support), math.prod(site.shape)
    digits = np.arange(outcomes**elements)[:, None] // outcomes ** np.arange(elements) % outcomes
    return Finite(site.support[digits.reshape(-1, *site.shape)], ())


class Structure:
    """Which axes of sites and terms run along together (each such class is a plate and has a number), and
    which sites are chains.
    """

    def __init__(self, sites: Mapping[str, Finite], credit: Sequence[Deps], names: Sequence[str]):
        self.sites, self.credit = sites, credit
        self.chain_axis: dict[str, int] = {}
        parent: dict = {}

        def find(node):
            while (up := parent.setdefault(node, node)) != node:
                node = up
            return node

        for t, deps in enumerate(credit):
            for s, relation in deps.items():
                for axis, r in enumerate(relation):
                    if sites[s].shape[axis] == 1:
                        continue
                    link = (
                        r is not None and r[0] in ("before", "step") and self.chain_axis.get(s, axis) == axis
                    )
                    if r is None or not (link or r[0] == "at"):
                        raise ModelError(
                            f"Elements of site '{s}' meet in the density of '{names[t]}', so they cannot be "
                            f"summed out one by one, and together they have more than {MAX_JOINT} joint "
                            f"values. Give the guide a site '{s}', or let each element of the density read "
                            "one element of it (in a scan also the one before; a chain that looks further "
                            "back can carry the pair of its last states as one site)."
                        )
                    if link:
                        self.chain_axis[s] = axis
                    parent[find((s, axis))] = find((t, r[1]))
        numbers: dict = {}
        self.axis_number = lambda node: numbers.setdefault(find(node), len(numbers))

    def plates_of(self, s: str) -> frozenset[int]:
        return frozenset(self.axis_number((s, axis)) for axis, n in enumerate(self.sites[s].shape) if n > 1)

    def axes_of(self, t: int, ndim: int) -> tuple[int, ...]:
        return tuple(self.axis_number((t, axis)) for axis in range(ndim))

    def time_of(self, s: str) -> int | None:
        """The plate whose elements are the steps of this site's chain."""
        return self.axis_number((s, self.chain_axis[s])) if s in self.chain_axis else None

    def colours(self) -> dict[str, tuple[int, ...]]:
        """One for each site, two for a chain; sites that some term reads together have different ones."""
        meets: dict[str, set[str]] = {s: set() for s in self.sites}
        for deps in self.credit:
            for s in deps:
                meets[s] |= deps.keys() - {s}
        out: dict[str, tuple[int, ...]] = {}
        for s in self.sites:
            taken = {c for other in meets[s] for c in out.get(other, ())}
            free = (c for c in range(2 * len(self.sites)) if c not in taken)
            out[s] = tuple(next(free) for _ in range(2 if s in self.chain_axis else 1))
        return out
