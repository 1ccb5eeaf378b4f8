"""Log likelihood terms of a model whose finite latent sites are summed out, by the one elimination that
objectives use too.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ppl_ext.densities.by_plates import agrees
from ppl_ext.densities.elimination_structure import Declared
from ppl_ext.densities.finite_sites import finite_site
from ppl_ext.densities.summed_sites import finite_terms
from ppl_ext.densities.variable_elimination import Elimination
from ppl_ext.diagnostics.sites import TIME, Site, messages_at
from ppl_ext.errors import ModelError

Plates = tuple[tuple[str, int], ...]
"""The plates of a joined term: their names, and their axes counted from the right of the site's batch."""


def plates_left(site: Site, ndim: int, kept: Iterable[int]) -> Plates:
    """The plates along the axes of a site's term that are kept."""
    plates = {ndim + p.dim: p.name for p in site.plates} | ({0: TIME} if site.in_scan else {})
    return tuple((plates.get(a, f"_pyro_dim_{ndim - a}"), a - ndim) for a in kept)


def over_plates(value: jax.Array, plates: Plates) -> jax.Array:
    """A term without the axes, of size one, along which others were multiplied."""
    kept = {value.ndim + dim for _, dim in plates}
    return jnp.squeeze(value, tuple(a for a in range(value.ndim) if a not in kept))


def sample_sites(sites: Mapping[str, Site]) -> list[str]:
    """The names of a model's sample sites, in order."""
    return [n for n, s in sites.items() if s.kind in ("latent", "observed", "factor")]


def elimination_at(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
    finite: Iterable[str],
    by_plates: bool = False,
) -> Elimination:
    """The terms of a model on its full plates as tables over its finite sites; no scale. Works under ``jit``
    and ``vmap``.

    :param by_plates: where the data flow between a site and a term is lost along a plate of both, the plate
        decides.
    """
    finite, names = frozenset(finite), sample_sites(sites)
    values = {n: v for n, v in values.items() if n not in finite}
    at_any = messages_at(model, values, args, kwargs, params)
    supports = {n: finite_site(n, at_any[n]) for n in names if n in finite}
    declared = None
    if by_plates:
        ranks = {n: len(sites[n].batch_shape) for n in names}
        axes = {n: {p.name: ranks[n] + p.dim for p in sites[n].plates if ranks[n] >= -p.dim} for n in names}
        declared = Declared({n: axes[n] for n in supports}, [axes[n] for n in names])

    def terms(more: Mapping[str, Any]) -> list[jax.Array]:
        return finite_terms(messages_at(model, {**values, **more}, args, kwargs, params), names, finite)

    return Elimination(terms, supports, names, declared)


def by_plates_needed(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
    finite: Iterable[str],
) -> bool:
    """Whether the sites can be summed out only if plates are trusted where the data flow is lost; checked at
    one draw, by numbers.

    Some densities mix axes inside (a mixture of multivariates, a sine-skewed law), and the data flow cannot
    see that rows stay apart. Their plate says so. That the tables then made are those of the program is seen
    by giving each element an outcome of its own, at random.

    :raises ModelError: if they cannot be summed out; the message names the sites.
    """
    finite = frozenset(finite)
    try:
        jax.eval_shape(
            lambda v, p: elimination_at(model, v, args, kwargs, p, sites, finite).lane_size,
            dict(values),
            dict(params),
        )
        return False
    except ModelError as error:
        refusal = error
    values = {n: jnp.asarray(v) for n, v in values.items()}  # which a program may index by an outcome
    try:
        trusted = elimination_at(model, values, args, kwargs, params, sites, finite, by_plates=True)
    except ModelError:
        raise refusal from None
    names = sample_sites(sites)
    rest = {n: v for n, v in values.items() if n not in finite}

    def terms(more: Mapping[str, Any]) -> list[jax.Array]:
        return finite_terms(messages_at(model, {**rest, **more}, args, kwargs, params), names, finite)

    if not agrees(trusted, terms):
        raise refusal
    return True


def relevant(
    elimination: Elimination, names: list[str], start: Iterable[str], through: Iterable[str]
) -> set[str]:
    """``start`` and the sites in ``through`` linked to it by finite sites, the finite sites themselves
    included.
    """
    feels = {n: frozenset(deps) for n, deps in zip(names, elimination.credit, strict=True)}
    chosen, candidates = set(start), set(through) | set(elimination.sites)
    while True:
        reached = set().union(*(feels[s] for s in chosen))
        more = {s for s in candidates - chosen if feels[s] & reached or s in reached}
        if not more:
            return chosen
        chosen |= more


class TermsPlan:
    """Which tables make up the term of each observed site; the same at every draw, so decided once.

    ``plan``: by label, the observed sites and, if terms were joined, the plates that are left.
    """

    def __init__(
        self,
        elimination: Elimination,
        sites: Mapping[str, Site],
        units: Literal["observation", "independent"],
        observed: Iterable[str],
    ):
        self.names, self.sites = sample_sites(sites), sites
        self.number = {n: i for i, n in enumerate(self.names)}
        self.groups: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...], frozenset[int]]] = {}
        self.plan: dict[str, tuple[tuple[str, ...], Plates | None]] = {}
        finite, observed = frozenset(elimination.sites), list(observed)
        hidden = [n for n in self.names if n not in finite and sites[n].kind != "observed"]
        members: tuple[str, ...]
        for name in observed:
            own = elimination.plates(self.number[name])
            if units == "observation":
                group, members, keep = relevant(elimination, self.names, [name], hidden), (name,), own
                self._check_exact(elimination, group - {name}, name, own)
            else:
                group = relevant(elimination, self.names, [name], self.names)
                members, keep = tuple(n for n in observed if n in group), frozenset()
            if not group & finite:
                members, keep = (name,), own
            rest = group - set(members)
            # Latent sites below a finite one tell of it already: the terms are conditional on them.
            condition = self._numbers(rest) if rest - finite else ()
            label = "+".join(members)
            self.groups[label] = (members, self._numbers(group), condition, keep)
            self.plan[label] = (members, self._left(elimination, label))

    def _numbers(self, group: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted(self.number[n] for n in group))

    def _left(self, elimination: Elimination, label: str) -> Plates | None:
        members, group, _, keep = self.groups[label]
        like = self.number[members[0]]
        sizes = [n for a, n in elimination.factors[like].sizes().items() if isinstance(a, int)]
        shape = elimination.summed(group, keep, like).value.shape
        if len(members) == 1 and list(shape) == sizes:
            return None
        kept = [a for a, n in enumerate(sizes) if shape[a] == n]
        return plates_left(self.sites[members[0]], len(sizes), kept)

    def evaluate(self, elimination: Elimination) -> dict[str, jax.Array]:
        """The terms by label, over their batch or over the plates that are left."""
        out = {}
        for label, (members, group, condition, keep) in self.groups.items():
            like = self.number[members[0]]
            value = elimination.summed(group, keep, like).value
            if condition:
                value = value - elimination.summed(condition, keep, like).value
            plates = self.plan[label][1]
            out[label] = value if plates is None else over_plates(value, plates)
        return out

    def _check_exact(self, elimination: Elimination, rest: set[str], name: str, own: frozenset[int]) -> None:
        """One observation at a time is exact if what else is known of its finite sites lies in its own plate
        elements.
        """
        finite = frozenset(elimination.sites)
        evidence = rest - finite
        if not evidence:
            return
        spans = {elimination.structure.plates_of(n) & own for n in rest & finite}
        beyond = [
            n for n in evidence if not all(elimination.plates(self.number[n]) & own <= span for span in spans)
        ]
        if len(spans) > 1 or beyond:
            raise ModelError(
                f"Single terms of '{name}' cannot be had exactly: the latent site "
                f"{', '.join(map(repr, sorted(evidence)))} depends on finite sites that several "
                "observations share. Use units='independent'."
            )
