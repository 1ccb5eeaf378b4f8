"""How relations between a random site and the arrays of a program move through JAX's operations on arrays,
one rule each.

A rule takes an equation and the relations of its operands, and returns those of its results. It reads
parameters that :mod:`ppl_ext.tracing.jaxprs` knows, and no others; an operation without a rule mixes, and so
does one whose rule fails.
"""

import numpy as np

from ppl_ext.tracing.relations import ON_AN_AXIS, Deps, join, mix, move


def mixing(eqn, deps: list[Deps]) -> list[Deps]:
    """Relate every element of the operands to every position of the results."""
    return [mix(join(*deps))] * len(eqn.outvars)


def _elementwise(eqn, deps):
    shape = eqn.outvars[0].aval.shape

    def aligned(v, d):  # operands have the output's rank, with axes of size one broadcast, or are scalars
        given = v.aval.shape
        return move(d, lambda a: a if len(given) == len(shape) and given[a] == shape[a] else None)

    return [join(*map(aligned, eqn.invars, deps))] * len(eqn.outvars)


def _axes(axis_map):
    """A rule for one main operand (others are indices or padding and mix):
    ``axis_map(eqn, axis) -> axis or None``.
    """

    def rule(eqn, deps):
        moved = move(deps[0], lambda a: axis_map(eqn, a))
        return [join(moved, *map(mix, deps[1:]))] * len(eqn.outvars)

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


def _concatenate(eqn, deps):
    moved = [move(d, lambda a: None if a == eqn.params["dimension"] else a) for d in deps]
    return [join(*moved)]


def _stack(eqn, deps):
    axis = eqn.params["axis"]
    return [join(*[move(d, lambda a: a + (a >= axis)) for d in deps])]


def _cumulative(eqn, deps):
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]

    def along(r):
        if r is None or r[0] not in ON_AN_AXIS or r[1] != axis:
            return r
        return None if reverse else ("upto", axis)

    return [{site: tuple(map(along, relation)) for site, relation in deps[0].items()}]


def _dot(eqn, deps):
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    lhs, rhs = (v.aval.ndim for v in eqn.invars)
    free_l = [a for a in range(lhs) if a not in lc and a not in lb]
    free_r = [a for a in range(rhs) if a not in rc and a not in rb]
    place_l = {a: i for i, a in enumerate([*lb, *free_l])}
    place_r = {a: i for i, a in enumerate(rb)} | {a: len(lb) + len(free_l) + i for i, a in enumerate(free_r)}
    return [join(move(deps[0], place_l.get), move(deps[1], place_r.get))]


def _gather(eqn, deps):
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = (v.aval for v in eqn.invars)
    batch_out = [a for a in range(eqn.outvars[0].aval.ndim) if a not in numbers.offset_dims]
    place_i = dict(zip(range(indices.ndim - 1), batch_out, strict=True))
    paired = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    window = [a for a in range(operand.ndim) if a not in numbers.collapsed_slice_dims and a not in paired]
    place_o = {
        a: out for a, out in zip(window, numbers.offset_dims, strict=True) if sizes[a] == operand.shape[a]
    }
    place_o |= {a: place_i[i] for a, i in paired.items()}
    return [join(move(deps[0], place_o.get), move(deps[1], place_i.get))]


def _convolution(eqn, deps):
    numbers = eqn.params["dimension_numbers"]
    lhs = move(
        deps[0],
        lambda a: (
            numbers.out_spec[0] if a == numbers.lhs_spec[0] and eqn.params["batch_group_count"] == 1 else None
        ),
    )
    return [join(lhs, mix(deps[1]))]


def _batched_matrix(eqn, deps):
    def place(v, d, out):
        return move(d, lambda a: a if a < v.aval.ndim - 2 and a < out.aval.ndim else None)

    return [join(*[place(v, d, out) for v, d in zip(eqn.invars, deps, strict=True)]) for out in eqn.outvars]


ELEMENTWISE = frozenset(
    """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex
conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge
gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max
min mul mulhi ne neg nextafter not or polygamma polynomial population_count pow random_gamma_grad real
reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
""".split()
)

RULES = (
    dict.fromkeys(ELEMENTWISE, _elementwise)
    | dict.fromkeys(
        [
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "reduce_xor",
            "argmax",
            "argmin",
        ],
        _axes(_reduced),
    )
    | dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], _cumulative)
    | dict.fromkeys(["slice", "dynamic_slice"], _axes(_sliced))
    | dict.fromkeys(["cholesky", "triangular_solve", "eigh", "qr", "lu", "svd"], _batched_matrix)
    | {
        "broadcast_in_dim": _axes(_broadcast),
        "reshape": _axes(_reshaped),
        "squeeze": _axes(
            lambda e, a: (
                None if a in e.params["dimensions"] else a - sum(d < a for d in e.params["dimensions"])
            )
        ),
        "transpose": _axes(lambda e, a: e.params["permutation"].index(a)),
        "rev": _axes(lambda e, a: None if a in e.params["dimensions"] else a),
        "split": _axes(lambda e, a: None if a == e.params["axis"] else a),
        "pad": _axes(_padded),
        "top_k": _axes(lambda e, a: None if a == e.params["axis"] % e.invars[0].aval.ndim else a),
        "tile": _axes(lambda e, a: a if e.params["reps"][a] == 1 else None),
        "unstack": _axes(lambda e, a: None if a == e.params["axis"] else a - (a > e.params["axis"])),
        # Another width of the elements adds or takes a last axis.
        "bitcast_convert_type": _axes(lambda e, a: a if a < e.outvars[0].aval.ndim else None),
        "optimization_barrier": lambda eqn, deps: deps,
        "stack": _stack,
        "concatenate": _concatenate,
        "dot_general": _dot,
        "gather": _gather,
        "conv_general_dilated": _convolution,
    }
)
