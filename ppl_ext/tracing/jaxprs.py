"""Everything that is read of JAX's traced programs: equations, their parameters, and the programs inside
them.

JAX promises nothing about these, and they change between minor versions: 0.11 renamed what a scan says of its
operands, 0.12 made one type of open and closed programs. So they are read here and nowhere else, and only as
far as they are known: what carries an unknown parameter, lacks one, or does not fit its operands in number
and shape is an :class:`UnreadableError`, upon which whoever asks takes the safe side. A new version is
checked by ``make test-newest``.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import eval_context
from jax.extend.core import Literal, Primitive, get_opaque_trace_state
from jax.interpreters import ad, batching
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = ["Literal", "Primitive", "ad", "batching", "eval_context", "get_opaque_trace_state"]

# Of every primitive that some rule reads, the parameters of all versions from 0.9 on. An unknown one may
# change what it computes.
_OF_ELEMENTWISE = (
    "accuracy exponent_bits input_dtype mantissa_bits new_dtype out_dtype rounding_method sharding unroll "
    "weak_type y"
)
_OF_CALLS = "jaxpr call_jaxpr fun_jaxpr num_consts"
_PARAMETERS = {
    name: frozenset(known.split())
    for names, known in {
        "argmax argmin": "axes index_dtype",
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor": "axes out_sharding",
        "cumsum cumprod cummax cummin cumlogsumexp": "axis reverse",
        "slice": "start_indices limit_indices strides",
        "dynamic_slice": "slice_sizes",
        "cholesky lu optimization_barrier": "",
        "bitcast_convert_type": "new_dtype",
        "triangular_solve": "left_side lower transpose_a conjugate_a unit_diagonal",
        "eigh": "lower sort_eigenvalues subset_by_index algorithm",
        "qr": "pivoting full_matrices use_magma",
        "svd": "full_matrices compute_uv subset_by_index algorithm",
        "broadcast_in_dim": "shape broadcast_dimensions sharding",
        "reshape": "new_sizes dimensions sharding",
        "squeeze rev": "dimensions",
        "transpose": "permutation",
        "split": "sizes axis",
        "pad": "padding_config",
        "top_k": "k axis is_stable",
        "tile": "reps",
        "stack unstack": "axis",
        "concatenate": "dimension",
        "dot_general": "dimension_numbers precision preferred_element_type out_sharding",
        "gather": "dimension_numbers slice_sizes indices_are_sorted unique_indices mode fill_value",
        "conv_general_dilated": "window_strides padding lhs_dilation rhs_dilation dimension_numbers "
        "feature_group_count "
        "batch_group_count precision preferred_element_type out_sharding",
        "scan": "jaxpr length reverse unroll num_consts num_carry linear _split_transpose ft_in ft_out",
        "while": "cond_jaxpr body_jaxpr cond_nconsts body_nconsts",
        "cond": "branches branches_platforms",
        "jit pjit": f"{_OF_CALLS} in_shardings out_shardings in_layouts out_layouts donated_invars ctx_mesh "
        "name keep_unused inline "
        "compiler_options_kvs",
        "closed_call core_call eval_jaxpr": f"{_OF_CALLS} name",
        "checkpoint remat2": f"{_OF_CALLS} prevent_cse differentiated policy",
        "custom_jvp_call": f"{_OF_CALLS} jvp_jaxpr_fun symbolic_zeros",
        "custom_vjp_call custom_vjp_call_jaxpr": f"{_OF_CALLS} fwd_jaxpr_thunk bwd out_trees symbolic_zeros",
        "call_hi_primitive": "_prim",
    }.items()
    for name in names.split()
}
CALLS = frozenset(name for name, known in _PARAMETERS.items() if "call_jaxpr" in known) | {
    "call_hi_primitive"
}
_ELEMENTWISE = frozenset(_OF_ELEMENTWISE.split())


class UnreadableError(Exception):
    """An equation is not what is known of its primitive: the safe side is to expect anything of it."""


class Body(NamedTuple):
    """A program: what it is given, what it does, what it returns. Constants that JAX keeps with it are given
    by nobody.
    """

    invars: Sequence[Any]
    eqns: Sequence[Any]
    outvars: Sequence[Any]


def body(jaxpr: Any) -> Body:
    """Open a program, be it open or closed."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    if not hasattr(inner, "eqns"):
        raise UnreadableError(f"a {type(jaxpr).__name__} in place of a program")
    if len(inner.constvars) != len(getattr(jaxpr, "consts", ())):
        raise UnreadableError("a program whose constants have no values")
    return Body(inner.invars, inner.eqns, inner.outvars)


def shape_of(v: Any) -> tuple[int, ...]:
    """The shape of a variable or literal; a reference to memory, a token and the like have none."""
    if is_stateful(v):
        raise UnreadableError(f"a {type(v.aval).__name__} in place of an array")
    return v.aval.shape


def is_stateful(v: Any) -> bool:
    """Whether a variable stands for something that can be written to, so that a value may leave it that did
    not enter by an operand.
    """
    kind = type(v.aval)
    if kind not in _STATEFUL:  # asked of every variable, so that it has to be quick
        _STATEFUL[kind] = hasattr(v.aval, "inner_aval") or not hasattr(v.aval, "shape")
    return _STATEFUL[kind]


_STATEFUL: dict[type, bool] = {}


def has_state(eqn: Any) -> bool:
    """Whether an equation reads or writes anything else than its operands and results."""
    return any(map(is_stateful, eqn.invars)) or any(map(is_stateful, eqn.outvars))


def parameters(eqn: Any, elementwise: bool = False) -> dict[str, Any]:
    """The parameters of an equation, if all are known.

    :raises UnreadableError: if one is not.
    """
    known = _ELEMENTWISE if elementwise else _PARAMETERS.get(eqn.primitive.name, frozenset())
    if not known.issuperset(eqn.params):
        unknown = sorted(eqn.params.keys() - known)
        raise UnreadableError(f"'{eqn.primitive.name}' has a parameter '{unknown[0]}'")
    return eqn.params


def _parameter(eqn: Any, name: str) -> Any:
    params = parameters(eqn)
    if name not in params:
        raise UnreadableError(f"'{eqn.primitive.name}' has no parameter '{name}'")
    return params[name]


def _fitting(eqn: Any, jaxpr: Any, ins: list[tuple[int, ...]], outs: list[tuple[int, ...]]) -> Body:
    """An inner program, if it takes and returns arrays of these shapes."""
    inner = body(jaxpr)
    for variables, expected, what in ((inner.invars, ins, "takes"), (inner.outvars, outs, "returns")):
        if (found := _shapes(variables)) != expected:
            raise UnreadableError(
                f"a program inside '{eqn.primitive.name}' {what} {found} and not {expected}"
            )
    return inner


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return list(map(shape_of, variables))


class Scan(NamedTuple):
    """A scan: its operands are constants, then the first carry, then what is scanned; its results the last
    carry, then what is stacked.
    """

    body: Body
    num_consts: int
    num_carry: int
    reverse: bool


def scan_of(eqn: Any) -> Scan:
    """Read a scan.

    :raises UnreadableError: if it does not fit.
    """
    params = parameters(eqn)
    if "ft_in" in params:  # from 0.11 on: groups of operands and of results
        groups, out_groups = _parameter(eqn, "ft_in").unpack(), _parameter(eqn, "ft_out").unpack()
        if (len(groups), len(out_groups)) != (3, 2):
            raise UnreadableError(
                f"'scan' has {len(groups)} groups of operands and {len(out_groups)} of results"
            )
        nc, nk, nx = map(len, groups)
        nk_out, ny = map(len, out_groups)
    else:
        nc, nk_out = _parameter(eqn, "num_consts"), _parameter(eqn, "num_carry")
        nk, nx, ny = nk_out, len(eqn.invars) - nc - nk_out, len(eqn.outvars) - nk_out
    if nk != nk_out or min(nx, ny) < 0 or (nc + nk + nx, nk + ny) != (len(eqn.invars), len(eqn.outvars)):
        raise UnreadableError(f"'scan' says it has {nc} + {nk} + {nx} operands and {nk_out} + {ny} results")
    ins, outs = _shapes(eqn.invars), _shapes(eqn.outvars)
    stacked = ins[nc + nk :] + outs[nk:]
    if ins[nc : nc + nk] != outs[:nk] or any(s[:1] != (_parameter(eqn, "length"),) for s in stacked):
        raise UnreadableError(f"'scan' of length {params['length']} takes {ins} and returns {outs}")
    inner = _fitting(
        eqn,
        _parameter(eqn, "jaxpr"),
        ins[: nc + nk] + [s[1:] for s in ins[nc + nk :]],
        outs[:nk] + [s[1:] for s in outs[nk:]],
    )
    return Scan(inner, nc, nk, bool(_parameter(eqn, "reverse")))


class While(NamedTuple):
    """A loop: its operands are constants of the condition, constants of the body, then the carry, which it
    returns.
    """

    condition: Body
    body: Body
    num_condition_consts: int
    num_body_consts: int


def while_of(eqn: Any) -> While:
    """Read a while loop.

    :raises UnreadableError: if it does not fit.
    """
    nc, nb = _parameter(eqn, "cond_nconsts"), _parameter(eqn, "body_nconsts")
    ins, outs = _shapes(eqn.invars), _shapes(eqn.outvars)
    carry = ins[nc + nb :]
    if carry != outs:
        raise UnreadableError(f"'while' with {nc} + {nb} constants takes {ins} and returns {outs}")
    condition = body(_parameter(eqn, "cond_jaxpr"))
    stops = _shapes(condition.outvars)  # under vmap, an array of the lanes that lead the carry's axes
    if len(stops) != 1 or any(s[: len(stops[0])] != stops[0] for s in carry):
        raise UnreadableError(f"'while' decides by {stops} over a carry of {carry}")
    condition = _fitting(eqn, _parameter(eqn, "cond_jaxpr"), ins[:nc] + carry, stops)
    return While(
        condition, _fitting(eqn, _parameter(eqn, "body_jaxpr"), ins[nc : nc + nb] + carry, outs), nc, nb
    )


def branches_of(eqn: Any) -> list[Body]:
    """The branches of a cond; its first operand, a number, says which, and all take the others.

    :raises UnreadableError: if they do not fit.
    """
    which, *ins = _shapes(eqn.invars)
    if which != ():
        raise UnreadableError(f"'cond' decides by an array of shape {which}")
    return [_fitting(eqn, branch, ins, _shapes(eqn.outvars)) for branch in _parameter(eqn, "branches")]


def called_by(eqn: Any) -> Body:
    """The program that a jit, a checkpoint, a function with its own derivative and the like run on their
    operands.

    :raises UnreadableError: if it does not fit.
    """
    ins, outs = _shapes(eqn.invars), _shapes(eqn.outvars)
    # from 0.11 on: an operation that is written in terms of others
    if eqn.primitive.name == "call_hi_primitive":
        parameters(eqn)
        given = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        return _fitting(
            eqn, jax.make_jaxpr(lambda *args: eqn.primitive.to_lojax(*args, **eqn.params))(*given), ins, outs
        )
    found = [name for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in parameters(eqn)]
    if len(found) != 1:
        raise UnreadableError(f"'{eqn.primitive.name}' has {len(found)} programs inside")
    return _fitting(eqn, eqn.params[found[0]], ins, outs)


def equations_within(eqn: Any) -> Iterator[Any]:
    """All equations of all programs that an equation's parameters hold, wherever in them they are and however
    deep.
    """
    if not eqn.params:
        return iter(())
    seen: set[int] = set()

    def search(x: Any, depth: int) -> Iterator[Any]:
        if (
            id(x) in seen
            or depth > 5
            or isinstance(x, str | bytes | int | float | type | ModuleType | FunctionType | jax.Array | None)
        ):
            return
        seen.add(id(x))
        held: Any = ()
        if hasattr(x, "eqns"):
            for inner in x.eqns:
                yield inner
                yield from search(inner.params, 0)
        elif hasattr(x, "jaxpr"):
            held = [x.jaxpr]
        elif isinstance(x, dict):
            held = list(x.values())
        elif isinstance(x, list | tuple | set | frozenset):
            held = list(x)
        elif isinstance(getattr(x, "__dict__", None), dict):
            held = list(vars(x).values())
        for part in held:
            yield from search(part, depth + 1)

    return search(eqn.params, 0)


def uses(jaxpr: Any, outputs: Sequence[bool]) -> list[bool]:
    """For each input of a traced program, whether the marked outputs may need it; where JAX cannot say, they
    may.

    >>> import jax
    >>> uses(jax.make_jaxpr(lambda x, y, z: (x + y, z))(1.0, 2.0, 3.0), [True, False])
    [True, True, False]
    """
    opened = body(jaxpr)
    try:
        _, used = dce_jaxpr(getattr(jaxpr, "jaxpr", jaxpr), list(outputs))
    except Exception:  # whatever a version of JAX may raise here
        used = []
    return list(used) if len(used) == len(opened.invars) else [True] * len(opened.invars)


def constants_used(jaxpr: Any) -> list[Any]:
    """The arrays that a traced program holds and that its outputs may need; all of them where JAX cannot say.

    >>> import jax, jax.numpy as jnp
    >>> held, idle = jnp.arange(3.0), jnp.arange(4.0)
    >>> [x.shape for x in constants_used(jax.make_jaxpr(lambda x: (idle.sum(), held.sum() + x)[1])(1.0))]
    [(3,)]
    """
    inner, consts = getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))
    try:
        slim, _ = dce_jaxpr(inner, [True] * len(inner.outvars))
        read = {id(v) for eqn in slim.eqns for v in eqn.invars} | {id(v) for v in slim.outvars}
        return [const for var, const in zip(inner.constvars, consts, strict=True) if id(var) in read]
    except Exception:  # whatever a version of JAX may raise here
        return consts


def fingerprint(fn: Callable, *args: Any) -> str:
    """A fingerprint of what a function computes: its operations and the numbers that they hold, the same in
    every process of the same versions.

    What its results do not need does not count, and neither does the order.

    >>> import jax.numpy as jnp
    >>> def near(level):
    ...     return lambda x: (x - level) ** 2
    >>> here = fingerprint(near(1.0), 0.0)
    >>> here == fingerprint(near(1.0), 5.0), here == fingerprint(near(2.0), 0.0)
    (True, False)
    """
    closed = jax.make_jaxpr(fn)(*args)
    inner: Any = getattr(closed, "jaxpr", closed)
    try:
        inner, _ = dce_jaxpr(inner, [True] * len(inner.outvars))
        consts = constants_used(closed)
    except Exception:  # whatever a version of JAX may raise here
        consts = list(getattr(closed, "consts", ()))
    found = [_digest(x) for x in consts]
    for eqn in [e for outer in inner.eqns for e in (outer, *equations_within(outer))]:
        plain = sorted((k, repr(v)) for k, v in eqn.params.items() if isinstance(v, bool | int | float))
        held = [c for v in eqn.params.values() for c in getattr(v, "consts", ())] + [
            v.val for v in eqn.invars if isinstance(v, Literal)
        ]
        found.append(repr((eqn.primitive.name, plain, [_digest(x) for x in held])))
    return hashlib.blake2b("\n".join(sorted(found)).encode(), digest_size=8).hexdigest()


def _digest(x: Any) -> str:
    x = jax.random.key_data(x) if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key) else x
    x = np.asarray(x)
    return (
        f"{x.dtype}{x.shape}{hashlib.blake2b(np.ascontiguousarray(x).tobytes(), digest_size=16).hexdigest()}"
    )
