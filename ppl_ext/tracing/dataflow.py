"""How relations between a random site and the arrays of a program move through the program
(:mod:`ppl_ext.tracing.credit`).

Operations on arrays have their rules in :mod:`ppl_ext.tracing.array_rules`; here stand the walk and what
holds programs inside: calls, branches and loops. An operation without a rule relates every element of its
inputs to every position of its outputs, and so does one with a parameter that is not known, one whose
operands or inner programs are not as many and as large as they should be, and one whose rule fails. A site
that is marked inside of it is lost: it counts as one that was never met. Variance is lost so, never
correctness.
"""

from typing import NamedTuple

from ppl_ext.tracing.array_rules import ELEMENTWISE, RULES, mixing
from ppl_ext.tracing.jaxprs import (
    CALLS,
    Body,
    Literal,
    Primitive,
    UnreadableError,
    ad,
    batching,
    branches_of,
    called_by,
    equations_within,
    has_state,
    parameters,
    scan_of,
    while_of,
)
from ppl_ext.tracing.relations import ON_AN_AXIS, Deps, anything, fits, join, mix

site_p = Primitive("ppl_ext_site")  # identity that marks the value of a random site in the trace
site_p.def_impl(lambda x, **_: x)
site_p.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(site_p, lambda ct, x, **_: [ct])
batching.primitive_batchers[site_p] = lambda args, dims, **params: (args[0], dims[0])


class Loops(NamedTuple):
    """Where the walk stands: how many loops enclose it, and what it has met so far."""

    level: int
    met: set[str]  # marks
    lost: set[str]  # marks inside what could not be opened
    written: Deps  # what touches memory that is written to: any of it may be read wherever memory is read
    unread: dict[str, str]  # what could not be read though there is a rule for it, by primitive


def start() -> Loops:
    """Outside of all loops."""
    return Loops(0, set(), set(), {}, {})


def through(body: Body, in_deps: list[Deps], loops: Loops) -> list[Deps]:
    """The relations of what a program returns, given those of what it takes.

    :raises UnreadableError: if it takes another number of arrays.
    """
    if len(body.invars) != len(in_deps):
        raise UnreadableError(f"a program of {len(body.invars)} inputs is given {len(in_deps)}")
    env: dict = dict(zip(body.invars, in_deps, strict=True))
    for eqn in body.eqns:
        deps = [{} if isinstance(v, Literal) else env.get(v, {}) for v in eqn.invars]
        env.update(zip(eqn.outvars, _results(eqn, deps, loops), strict=True))
    return [{} if isinstance(v, Literal) else env.get(v, {}) for v in body.outvars]


def _results(eqn, deps: list[Deps], loops: Loops) -> list[Deps]:
    name = eqn.primitive.name
    if eqn.primitive is site_p:
        return _marked(eqn, deps, loops)
    if has_state(eqn) or (eqn.effects and name not in _NESTING):
        return _through_memory(eqn, deps, loops)
    if name in RULES:
        if not any(deps):
            return [{}] * len(eqn.outvars)
    elif name not in _NESTING:
        _lose_marks(eqn, loops)
        return mixing(eqn, deps)
    try:
        parameters(eqn, elementwise=name in ELEMENTWISE)
        out = _NESTING[name](eqn, deps, loops) if name in _NESTING else RULES[name](eqn, deps)
        if len(out) != len(eqn.outvars) or not all(
            fits(d, len(v.aval.shape)) for d, v in zip(out, eqn.outvars, strict=True)
        ):
            raise UnreadableError(f"the rule of '{name}' does not fit its {len(eqn.outvars)} results")
        return out
    # a version of JAX may have changed anything, and then anything may go wrong in reading it
    except Exception as error:
        loops.unread.setdefault(
            name, str(error) if isinstance(error, UnreadableError) else f"'{name}': {error!r}"
        )
        _lose_marks(eqn, loops)
        return mixing(eqn, deps)


def _marked(eqn, deps: list[Deps], loops: Loops) -> list[Deps]:
    site = eqn.params["site"]
    around = tuple(("now", i) for i in range(loops.level))
    elements = tuple(("at", a) for a in range(eqn.params["batch_ndim"]))
    loops.met.add(site)
    # Joined, not replaced: a step's draw may already feel the same site at earlier steps, through the law it
    # is drawn from.
    return [join(deps[0], {site: around + elements})]


def _lose_marks(eqn, loops: Loops) -> None:
    loops.lost.update(inner.params["site"] for inner in equations_within(eqn) if inner.primitive is site_p)


def _through_memory(eqn, deps: list[Deps], loops: Loops) -> list[Deps]:
    """What writes to memory or to the world outside: which value lands where is not followed, nor is what it
    holds opened.
    """
    _lose_marks(eqn, loops)
    touching = anything(join(loops.written, *deps))
    loops.written.update(touching)
    return [touching] * len(eqn.outvars)


# --- what holds programs inside: (equation, relations of inputs, enclosing loops) -> relations of outputs
# -----------------------


def _call(eqn, deps, loops):
    return through(called_by(eqn), deps, loops)


def _cond(eqn, deps, loops):
    branches = [through(b, deps[1:], loops) for b in branches_of(eqn)]
    return [join(mix(deps[0]), *outs) for outs in zip(*branches, strict=True)]


def _while(eqn, deps, loops):
    loop = while_of(eqn)
    nc, nb = loop.num_condition_consts, loop.num_body_consts
    cond_consts, body_consts, carry = deps[:nc], deps[nc : nc + nb], deps[nc + nb :]
    while True:
        before = dict(loops.written)
        (stop,) = through(loop.condition, cond_consts + carry, loops)
        outs = through(loop.body, body_consts + carry, loops)
        new = [join(c, o, mix(stop)) for c, o in zip(carry, outs, strict=True)]
        if new == carry and loops.written == before:
            return carry
        carry = new


def _scan(eqn, deps, loops):
    level = loops.level
    scan = scan_of(eqn)
    nc, nk, reverse = scan.num_consts, scan.num_carry, scan.reverse
    consts, carry, xs = deps[:nc], deps[nc : nc + nk], deps[nc + nk :]

    def enter(r):  # the slice of a scanned input
        if r is None or r[0] not in ON_AN_AXIS:
            return r
        if r[1] > 0:
            return (r[0], r[1] - 1)
        return ("now", level) if r[0] == "at" else None if reverse else (inside[r[0]], level)

    def later(r):  # a carry, seen by the next iteration
        if r is None or r[0] in ON_AN_AXIS or r[1] != level:
            return r
        return ("prev", level) if r[0] == "now" else ("past", level)

    def leave(r):  # stacked outputs
        if r is None or r[0] in ON_AN_AXIS:
            return r and (r[0], r[1] + 1)
        if r[1] != level:
            return r
        return ("at", 0) if r[0] == "now" else None if reverse else (outside[r[0]], 0)

    def forget(r):  # the last carry
        return None if r is not None and r[0] in outside and r[1] == level else r

    inside = {"before": "prev", "step": "link", "upto": "past"}
    outside = {"now": "at", "prev": "before", "link": "step", "past": "upto"}

    def over(f, d):
        return {site: tuple(map(f, relation)) for site, relation in d.items()}

    xs = [over(enter, d) for d in xs]
    while True:
        before = dict(loops.written)
        outs = through(scan.body, consts + carry + xs, loops._replace(level=level + 1))
        new = [join(c, over(later, o)) for c, o in zip(carry, outs[:nk], strict=True)]
        if new == carry and loops.written == before:
            break
        carry = new
    return [over(forget, c) for c in carry] + [over(leave, o) for o in outs[nk:]]


_NESTING = {"scan": _scan, "cond": _cond, "while": _while} | dict.fromkeys(CALLS, _call)
