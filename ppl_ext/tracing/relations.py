"""Relations between the elements of a random site and the positions of an array, as
:mod:`ppl_ext.tracing.credit` defines them, and their joins.
"""

from collections.abc import Callable

Relation = tuple | None
Deps = dict[str, tuple[Relation, ...]]  # by site, a relation for each of its axes

ON_AN_AXIS = ("at", "before", "step", "upto")


def _join_relation(r: Relation, s: Relation) -> Relation:
    if r == s:
        return r
    if r is None or s is None or r[1] != s[1]:
        return None
    for own, earlier, both, rest in (("at", "before", "step", "upto"), ("now", "prev", "link", "past")):
        if r[0] in (own, earlier, both, rest) and s[0] in (own, earlier, both, rest):
            return (rest if rest in (r[0], s[0]) else both, r[1])
    return None


def _join_relations(r: tuple[Relation, ...], s: tuple[Relation, ...]) -> tuple[Relation, ...]:
    if len(r) != len(s):  # a site met inside a loop and outside of it: of its axes nothing is known
        return (None,) * max(len(r), len(s))
    return tuple(map(_join_relation, r, s))


def join(*all_deps: Deps) -> Deps:
    """What touches any of several arrays."""
    out: Deps = {}
    for deps in all_deps:
        for site, relation in deps.items():
            out[site] = _join_relations(out[site], relation) if site in out else relation
    return out


def move(deps: Deps, axis_map: Callable[[int], int | None]) -> Deps:
    """Follow array axes to their new place (``None``: lost). Two site axes on one array axis would be a
    diagonal; we give that up.
    """

    def moved(relation):
        out, used = [], set()
        for r in relation:
            if r is not None and r[0] in ON_AN_AXIS:
                a = axis_map(r[1])
                r = None if a is None or a in used else (r[0], a)
                used.add(a)
            out.append(r)
        return tuple(out)

    return {site: moved(relation) for site, relation in deps.items()}


def mix(deps: Deps) -> Deps:
    """Each element touches every position; inside a loop still only in the iterations that it touched."""
    return move(deps, lambda a: None)


def anything(deps: Deps) -> Deps:
    """Each element touches every position, in every iteration too."""
    return {site: (None,) * len(relation) for site, relation in deps.items()}


def fits(deps: Deps, ndim: int) -> bool:
    """Whether all these relations speak of axes that an array has."""
    return not deps or all(
        r is None or r[0] not in ON_AN_AXIS or 0 <= r[1] < ndim
        for relation in deps.values()
        for r in relation
    )
