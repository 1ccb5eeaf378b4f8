"""How relations between a random site and the arrays of a program move through JAX's primitives, one rule each (:mod:`ppl_ext.credit`).

A primitive without a rule here relates every element of its inputs to every position of its outputs: variance is lost, never correctness.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Primitive
from jax.interpreters import ad, batching

Relation = tuple | None
Deps = dict[str, tuple[Relation, ...]]

site_p = Primitive("ppl_ext_site")  # identity that marks the value of a random site in the trace
site_p.def_impl(lambda x, **_: x)
site_p.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(site_p, lambda ct, x, **_: [ct])
batching.primitive_batchers[site_p] = lambda args, dims, **params: (args[0], dims[0])


class Loops(NamedTuple):
    """Where the walk stands: how many loops enclose it, and the marks met so far."""

    level: int
    met: set[str]


# --- the lattice -------------------------------------------------------------------------------------------------------------------


_ON_AN_AXIS = ("at", "before", "step", "upto")


def _join_relation(r: Relation, s: Relation) -> Relation:
    if r == s:
        return r
    if r is None or s is None or r[1] != s[1]:
        return None
    for own, earlier, both, rest in (("at", "before", "step", "upto"), ("now", "prev", "link", "past")):
        if r[0] in (own, earlier, both, rest) and s[0] in (own, earlier, both, rest):
            return (rest if rest in (r[0], s[0]) else both, r[1])
    return None


def _join(*all_deps: Deps) -> Deps:
    out: Deps = {}
    for deps in all_deps:
        for site, relation in deps.items():
            out[site] = tuple(map(_join_relation, out[site], relation)) if site in out else relation
    return out


def _move(deps: Deps, axis_map: Callable[[int], int | None]) -> Deps:
    """Follow array axes to their new place (``None``: lost). Two site axes on one array axis would be a diagonal; we give that up."""

    def move(relation):
        out, used = [], set()
        for r in relation:
            if r is not None and r[0] in _ON_AN_AXIS:
                a = axis_map(r[1])
                r = None if a is None or a in used else (r[0], a)
                used.add(a)
            out.append(r)
        return tuple(out)

    return {site: move(relation) for site, relation in deps.items()}


def _mix(deps: Deps) -> Deps:
    return _move(deps, lambda a: None)


# --- rules: (equation, dependencies of inputs, enclosing loops) -> dependencies of outputs ------------------------------------


def through(jaxpr, in_deps: list[Deps], loops: Loops) -> list[Deps]:
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    env: dict = dict(zip(jaxpr.invars, in_deps, strict=True))
    for eqn in jaxpr.eqns:
        deps = [{} if isinstance(v, Literal) else env.get(v, {}) for v in eqn.invars]
        if eqn.primitive is site_p:
            around = tuple(("now", i) for i in range(loops.level))
            elements = tuple(("at", a) for a in range(eqn.params["batch_ndim"]))
            loops.met.add(eqn.params["site"])
            # Joined, not replaced: a step's draw may already feel the same site at earlier steps, through the law it is drawn from.
            out = [_join(deps[0], {eqn.params["site"]: around + elements})]
        elif eqn.primitive.name in _NESTING:
            out = _NESTING[eqn.primitive.name](eqn, deps, loops)
        elif not any(deps):
            continue
        else:
            out = _RULES.get(eqn.primitive.name, _mixing)(eqn, deps, loops)
        env.update(zip(eqn.outvars, out, strict=True))
    return [{} if isinstance(v, Literal) else env.get(v, {}) for v in jaxpr.outvars]


def _mixing(eqn, deps, loops):
    return [_mix(_join(*deps))] * len(eqn.outvars)


def _elementwise(eqn, deps, loops):
    shape = eqn.outvars[0].aval.shape

    def aligned(v, d):  # operands have the output's rank, with axes of size one broadcast, or are scalars
        given = v.aval.shape
        return _move(d, lambda a: a if len(given) == len(shape) and given[a] == shape[a] else None)

    return [_join(*map(aligned, eqn.invars, deps))] * len(eqn.outvars)


def _axes(axis_map):
    """A rule for one main operand (others are indices or padding and mix): ``axis_map(eqn, axis) -> axis or None``."""

    def rule(eqn, deps, loops):
        moved = _move(deps[0], lambda a: axis_map(eqn, a))
        return [_join(moved, *map(_mix, deps[1:]))] * len(eqn.outvars)

    return rule


def _reduced(eqn, a):
    axes = eqn.params["axes"]
    return None if a in axes else a - sum(x < a for x in axes)


def _broadcast(eqn, a):
    out = eqn.params["broadcast_dimensions"][a]
    return out if eqn.invars[0].aval.shape[a] == eqn.params["shape"][out] else None


def _reshaped(eqn, a):
    if eqn.params.get("dimensions") is not None:
        return None
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    before = np.prod(old[:a], dtype=int)
    for b in range(len(new)):
        if np.prod(new[:b], dtype=int) == before and new[b] == old[a]:
            return b
    return None


def _sliced(eqn, a):
    return a if eqn.invars[0].aval.shape[a] == eqn.outvars[0].aval.shape[a] else None


def _padded(eqn, a):
    # A shift (pad one end, crop the other) keeps the size, so only untouched axes count.
    return a if eqn.params["padding_config"][a] == (0, 0, 0) else None


def _concatenate(eqn, deps, loops):
    moved = [_move(d, lambda a: None if a == eqn.params["dimension"] else a) for d in deps]
    return [_join(*moved)]


def _stack(eqn, deps, loops):
    axis = eqn.params["axis"]
    return [_join(*[_move(d, lambda a: a + (a >= axis)) for d in deps])]


def _cumulative(eqn, deps, loops):
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]

    def along(r):
        if r is None or r[0] not in _ON_AN_AXIS or r[1] != axis:
            return r
        return None if reverse else ("upto", axis)

    return [{site: tuple(map(along, relation)) for site, relation in deps[0].items()}]


def _dot(eqn, deps, loops):
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    lhs, rhs = (v.aval.ndim for v in eqn.invars)
    free_l = [a for a in range(lhs) if a not in lc and a not in lb]
    free_r = [a for a in range(rhs) if a not in rc and a not in rb]
    place_l = {a: i for i, a in enumerate([*lb, *free_l])}
    place_r = {a: i for i, a in enumerate(rb)} | {a: len(lb) + len(free_l) + i for i, a in enumerate(free_r)}
    return [_join(_move(deps[0], place_l.get), _move(deps[1], place_r.get))]


def _gather(eqn, deps, loops):
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = (v.aval for v in eqn.invars)
    batch_out = [a for a in range(eqn.outvars[0].aval.ndim) if a not in numbers.offset_dims]
    place_i = dict(zip(range(indices.ndim - 1), batch_out, strict=True))
    paired = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    window = [a for a in range(operand.ndim) if a not in numbers.collapsed_slice_dims and a not in paired]
    place_o = {a: out for a, out in zip(window, numbers.offset_dims, strict=True) if sizes[a] == operand.shape[a]}
    place_o |= {a: place_i[i] for a, i in paired.items()}
    return [_join(_move(deps[0], place_o.get), _move(deps[1], place_i.get))]


def _convolution(eqn, deps, loops):
    numbers = eqn.params["dimension_numbers"]
    lhs = _move(deps[0], lambda a: numbers.out_spec[0] if a == numbers.lhs_spec[0] and eqn.params["batch_group_count"] == 1 else None)
    return [_join(lhs, _mix(deps[1]))]


def _batched_matrix(eqn, deps, loops):
    def place(v, d, out):
        return _move(d, lambda a: a if a < v.aval.ndim - 2 and a < out.aval.ndim else None)

    return [_join(*[place(v, d, out) for v, d in zip(eqn.invars, deps, strict=True)]) for out in eqn.outvars]


def _call(eqn, deps, loops):
    inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
    return through(inner, deps, loops)


def _cond(eqn, deps, loops):
    branches = [through(b, deps[1:], loops) for b in eqn.params["branches"]]
    return [_join(_mix(deps[0]), *outs) for outs in zip(*branches, strict=True)]


def _while(eqn, deps, loops):
    nc, nb = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, carry = deps[:nc], deps[nc : nc + nb], deps[nc + nb :]
    while True:
        (stop,) = through(eqn.params["cond_jaxpr"], cond_consts + carry, loops)
        outs = through(eqn.params["body_jaxpr"], body_consts + carry, loops)
        new = [_join(c, o, _mix(stop)) for c, o in zip(carry, outs, strict=True)]
        if new == carry:
            return carry
        carry = new


def _scan(eqn, deps, loops):
    level = loops.level
    nc, nk, reverse = eqn.params["num_consts"], eqn.params["num_carry"], eqn.params["reverse"]
    consts, carry, xs = deps[:nc], deps[nc : nc + nk], deps[nc + nk :]

    def enter(r):  # the slice of a scanned input
        if r is None or r[0] not in _ON_AN_AXIS:
            return r
        if r[1] > 0:
            return (r[0], r[1] - 1)
        return ("now", level) if r[0] == "at" else None if reverse else (inside[r[0]], level)

    def later(r):  # a carry, seen by the next iteration
        if r is None or r[0] in _ON_AN_AXIS or r[1] != level:
            return r
        return ("prev", level) if r[0] == "now" else ("past", level)

    def leave(r):  # stacked outputs
        if r is None or r[0] in _ON_AN_AXIS:
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
        outs = through(eqn.params["jaxpr"], consts + carry + xs, Loops(level + 1, loops.met))
        new = [_join(c, over(later, o)) for c, o in zip(carry, outs[:nk], strict=True)]
        if new == carry:
            break
        carry = new
    return [over(forget, c) for c in carry] + [over(leave, o) for o in outs[nk:]]


_NESTING = {"scan": _scan, "cond": _cond, "while": _while} | dict.fromkeys(
    ["jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"],
    _call,
)

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj convert_element_type copy
copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite
le le_to lgamma log log1p logistic lt lt_to max min mul mulhi ne neg nextafter not  or polygamma population_count pow
random_gamma_grad real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
""".split()

_RULES = (
    dict.fromkeys(_ELEMENTWISE, _elementwise)
    | dict.fromkeys(
        ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"],
        _axes(_reduced),
    )
    | dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], _cumulative)
    | dict.fromkeys(["slice", "dynamic_slice"], _axes(_sliced))
    | dict.fromkeys(["cholesky", "triangular_solve", "eigh", "qr", "lu", "svd"], _batched_matrix)
    | {
        "broadcast_in_dim": _axes(_broadcast),
        "reshape": _axes(_reshaped),
        "squeeze": _axes(lambda e, a: None if a in e.params["dimensions"] else a - sum(d < a for d in e.params["dimensions"])),
        "transpose": _axes(lambda e, a: e.params["permutation"].index(a)),
        "rev": _axes(lambda e, a: None if a in e.params["dimensions"] else a),
        "split": _axes(lambda e, a: None if a == e.params["axis"] else a),
        "pad": _axes(_padded),
        "top_k": _axes(lambda e, a: a if a < e.invars[0].aval.ndim - 1 else None),
        "tile": _axes(lambda e, a: a if e.params["reps"][a] == 1 else None),
        "unstack": _axes(lambda e, a: None if a == e.params["axis"] else a - (a > e.params["axis"])),
        "stack": _stack,
        "concatenate": _concatenate,
        "dot_general": _dot,
        "gather": _gather,
        "conv_general_dilated": _convolution,
    }
)
