"""Sites inside a ``jax.vmap`` of the program's own: met once, outside of it, with the lanes as leading axes.

NumPyro draws such a site from one key, so that all lanes get the same noise, and what its handlers keep of it
is a tracer that dies with the ``vmap``. Here the message of the site becomes a primitive whose batching rule
sends it on where the ``vmap`` was called: the law has the lanes as leading batch axes (outermost ``vmap``
first), every lane has a draw of its own, and the value goes back into the lanes. So a site under a ``vmap``
is to every handler what it would be in one more plate on the far left.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from numpyro.distributions.transforms import AffineTransform, PowerTransform, Transform
from numpyro.primitives import _PYRO_STACK, Messenger, apply_stack, plate

from ppl_ext.errors import ModelError
from ppl_ext.tracing.inner_jits import InsideError, trace_state
from ppl_ext.tracing.jaxprs import Primitive, ad, batching

_KINDS = ("sample", "deterministic", "prng_key")


class Outside(Messenger):
    """Send messages out of each ``vmap`` that is opened inside this handler, and do nothing else."""

    def __init__(self):
        super().__init__()
        self.state = trace_state()

    def process_message(self, msg):
        sent_out(self, self.state, msg)


def sent_out(handler: Messenger, state: Any, msg: dict) -> bool:
    """Whether a message comes from inside a ``vmap`` opened after ``state`` was taken; if so it is dealt
    with, and ``handler`` and those outside of it have met it with its lanes: ``handler`` leaves this one
    alone (:func:`was_sent`), the others never see it. Sites that a transformation hides (``_ppl_ext_hidden``)
    do not leave it.

    :raises InsideError: from inside another transformation, which nothing can leave; also for NumPyro's
        control flow.
    """
    kind = msg["type"]
    if kind == "control_flow":
        if trace_state() != state and "_ppl_ext_met" not in msg:
            raise control_flow_inside()
        # by a handler inside, whose affair it is
        met, msg["_ppl_ext_met"] = "_ppl_ext_met" in msg and trace_state() != state, True
        return met
    if kind not in _KINDS or trace_state() == state or "_ppl_ext_hidden" in msg:
        return False
    if kind == "prng_key" and msg["kwargs"]["rng_key"] is not None:
        return False  # a handler inside, such as that of a scan's steps, has answered
    try:
        msg["value"] = _Message(handler, state, msg).value()
    except InsideError:
        if kind != "prng_key":
            raise
        return False  # a key is no site: inside jax.grad or jit it is given as ever
    msg["stop"], msg["_ppl_ext_sent"] = True, handler
    return True


def control_flow_inside() -> InsideError:
    return InsideError(
        "NumPyro's scan or cond stands inside jax.vmap, jax.jit or another transformation within the "
        "program, and its sites cannot leave it. Put the vmap into the body of the scan, or the lanes into "
        "a numpyro.plate."
    )


def was_sent(handler: Messenger, msg: dict) -> bool:
    return msg.get("_ppl_ext_sent") is handler


class Lanes(NamedTuple):
    """An array with the lanes in front of the axes that one lane has."""

    array: jax.Array
    lanes: tuple[int, ...]

    def aligned(self, ndim: int) -> jax.Array:
        """Align an array as one lane's would be with ``ndim`` axes, the missing ones in front."""
        rest = self.array.shape[len(self.lanes) :]
        return self.array.reshape(self.lanes + (1,) * (ndim - len(rest)) + rest)


class _Message:
    """A site's message on its way out of the lanes."""

    def __init__(self, handler: Messenger, state: Any, msg: dict):
        self.handler, self.state, self.msg = handler, state, msg
        parts = {"value": msg["value"]}
        if msg["type"] == "sample":
            parts |= {"fn": self._law(), "scale": msg["scale"], "infer": dict(msg["infer"])}
        parts["key"] = None if msg["type"] == "deterministic" else msg["kwargs"]["rng_key"]
        self.leaves, self.structure = jax.tree.flatten(parts)

    def _outside(self) -> list[Messenger]:
        """The handlers that have not met the message yet, innermost last."""
        return (
            _PYRO_STACK[: _PYRO_STACK.index(self.handler) + 1]
            if self.handler in _PYRO_STACK
            else [self.handler]
        )

    def _law(self) -> Distribution:
        """One lane's law, with an axis for each plate that is to come and for each that only its value has:
        lanes go left of them.
        """
        fn = self.msg["fn"]
        batch = (*self.msg["kwargs"]["sample_shape"], *fn.batch_shape)
        value = jnp.ndim(self.msg["value"]) - fn.event_dim if self.msg["is_observed"] else 0
        depth = max(value, *(-h.dim for h in self._outside() if isinstance(h, plate)), 0)
        batch = (1,) * (depth - len(batch)) + batch
        return fn if batch == tuple(fn.batch_shape) else fn.expand(batch)

    def value(self) -> Any:
        traced = [x for x in self.leaves if isinstance(x, jax.core.Tracer)]
        return site_p.bind(*traced, message=self, lanes=(), mapped=((),) * len(traced))

    def deliver(
        self, traced: list[jax.Array], lanes: tuple[int, ...], mapped: tuple[tuple[bool, ...], ...]
    ) -> jax.Array:
        arrays = iter(zip(traced, mapped, strict=True))

        def leaf(x):
            if not isinstance(x, jax.core.Tracer):
                return x
            array, axes = next(arrays)
            if not any(axes):
                return array
            rest = array.shape[sum(axes) :]
            kept = iter(array.shape)
            array = array.reshape([next(kept) if m else 1 for m in axes] + list(rest))
            return Lanes(jnp.broadcast_to(array, lanes + rest), lanes)

        parts = jax.tree.unflatten(self.structure, [leaf(x) for x in self.leaves])
        return getattr(self, "_" + self.msg["type"])(parts, lanes)

    def _sent(self, **changes) -> Any:
        stack = _PYRO_STACK[:]
        _PYRO_STACK[:] = self._outside()
        try:
            return apply_stack(
                {**self.msg, "cond_indep_stack": list(self.msg.get("cond_indep_stack", ())), **changes}
            )["value"]
        finally:
            _PYRO_STACK[:] = stack

    def _prng_key(self, parts, lanes):
        return random.split(self._sent(kwargs={"rng_key": _one(parts["key"])}), lanes)

    def _deterministic(self, parts, lanes):
        return self._sent(value=jax.tree.map(lambda x: _whole(x, lanes), parts["value"], is_leaf=_is_lanes))

    def _sample(self, parts, lanes):
        one, name = parts["fn"], self.msg["name"]
        ndim = len(one.batch_shape)
        fn = in_lanes(one, lanes, name)
        value = parts["value"]
        if value is not None:
            shape, given = one.shape(), jnp.shape(self.msg["value"])
            own = self.msg["fn"].shape(self.msg["kwargs"]["sample_shape"])
            whole = not _is_lanes(value) and given == lanes + own
            if whole and self.msg["is_observed"]:
                raise ModelError(
                    f"Site '{name}' is observed inside jax.vmap with the shape {given} of all its lanes "
                    f"together; one lane has {own}. Pass data that differ between lanes through the vmap, "
                    "or put numpyro.handlers.condition around ppl_ext.handlers.vmapped(program)."
                )
            if whole:  # a handler outside gave the site its value
                value = jnp.reshape(value, lanes + (1,) * (len(shape) - len(own)) + own)
            elif _is_lanes(value):
                value = value.aligned(len(shape))
            try:
                value = jnp.broadcast_to(value, lanes + jnp.broadcast_shapes(own if whole else given, shape))
            except ValueError:
                raise ModelError(
                    f"Site '{name}' is sampled inside jax.vmap: one lane has shape {own}, the value given "
                    f"{given}."
                ) from None
        scale = parts["scale"].aligned(ndim) if _is_lanes(parts["scale"]) else parts["scale"]
        infer = {k: v.aligned(ndim) if _is_lanes(v) else v for k, v in parts["infer"].items()}
        kwargs = {**self.msg["kwargs"], "rng_key": _one(parts["key"]), "sample_shape": ()}
        return jnp.asarray(self._sent(fn=fn, value=value, scale=scale, infer=infer, kwargs=kwargs))


def _is_lanes(x) -> bool:
    return isinstance(x, Lanes)


def _whole(x, lanes: tuple[int, ...]) -> jax.Array:
    return x.array if _is_lanes(x) else jnp.broadcast_to(x, lanes + jnp.shape(x))


def _one(key):
    """The first of the keys that the lanes brought: it draws for all of them."""
    return key.array[(0,) * len(key.lanes)] if _is_lanes(key) else key


def in_lanes(fn: Distribution, lanes: tuple[int, ...], name: str) -> Distribution:
    """A distribution with ``lanes`` in front of its batch shape.

    :param fn: one lane's; its parameters that differ between lanes are :class:`Lanes`.
    """
    differs = any(map(_is_lanes, jax.tree.leaves(fn, is_leaf=_is_lanes)))
    return _in_lanes(fn, lanes, name, 0) if differs else fn.expand(lanes + tuple(fn.batch_shape))


def _in_lanes(fn: Distribution, lanes: tuple[int, ...], name: str, extra: int) -> Distribution:
    """A distribution with ``extra`` axes of size one after the lanes, and of the same type, whose attributes
    its owner may ask for.
    """
    batch = lanes + (1,) * extra + tuple(fn.batch_shape)
    match fn:
        case MaskedDistribution():
            mask = fn._mask.aligned(extra + len(fn.batch_shape)) if _is_lanes(fn._mask) else fn._mask
            return _in_lanes(fn.base_dist, lanes, name, extra).mask(mask)
        case ExpandedDistribution():
            missing = len(fn.batch_shape) - len(fn.base_dist.batch_shape)
            return _in_lanes(fn.base_dist, lanes, name, extra + missing).expand(batch)
        case Independent():
            return _in_lanes(fn.base_dist, lanes, name, extra).to_event(fn.reinterpreted_batch_ndims)

    def inside(x, ndim: int):
        if isinstance(x, Distribution):
            return _in_lanes(x, lanes, name, extra)
        if (
            isinstance(x, Transform)
            and len(batch) > len(lanes)
            and not isinstance(x, AffineTransform | PowerTransform)
        ):
            if any(map(_is_lanes, jax.tree.leaves(x, is_leaf=_is_lanes))):
                raise InsideError(
                    f"Site '{name}' is sampled inside jax.vmap, and the {type(x).__name__} of its law "
                    "differs between lanes that have a batch of their own. Use numpyro.plate instead of "
                    "that vmap."
                )
        if isinstance(x, list | tuple) and not _is_lanes(x):
            return type(x)(inside(y, ndim) for y in x)
        return jax.tree.map(
            lambda y: y.aligned(extra + ndim) if _is_lanes(y) else _of_rank(y, len(lanes) + extra + ndim),
            x,
            is_leaf=_is_lanes,
        )

    def ndim(field: str) -> int:
        """Axes of a parameter: the batch's and those of its own event."""
        try:
            event = (
                fn.event_dim
                if isinstance(fn, TransformedDistribution)
                else fn.arg_constraints[field].event_dim
            )
        except (KeyError, NotImplementedError):
            event = fn.event_dim
        return len(fn.batch_shape) + event

    data, aux = fn.tree_flatten()
    fields = type(fn).gather_pytree_data_fields()
    out = type(fn).tree_unflatten(
        aux, tuple(inside(x, ndim(field)) for x, field in zip(data, fields, strict=True))
    )
    out._batch_shape = batch
    return out


def _of_rank(x, ndim: int):
    """A parameter that all lanes share, with every axis, which NumPyro's ``scan`` relies on; what is known
    stays known.
    """
    if isinstance(x, jax.core.Tracer):
        return x.reshape((1,) * (ndim - x.ndim) + x.shape) if x.ndim < ndim else x
    if not isinstance(x, int | float | np.ndarray | np.generic | jax.Array) or np.ndim(x) >= ndim:
        return x
    return np.reshape(x, (1,) * (ndim - np.ndim(x)) + np.shape(x))


# --- the primitive: a site's message; it never runs, and only its batching rule can carry it out
# -------------------------------


def _refused(*args, message: _Message, **params):
    name = message.msg.get("name", message.msg["type"])
    raise InsideError(
        f"Site '{name}' is sampled inside jax.jit, jax.grad, jax.lax.scan or another transformation within "
        "the program, and its value and density cannot leave it. Use numpyro.contrib.control_flow's scan "
        "and cond instead of those of jax.lax, and leave an inner jit away: the whole program is compiled "
        "anyway."
    )


def _carried_out(axis_data, values, dims, *, message: _Message, lanes, mapped):
    values = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(values, dims, strict=True)]
    mapped = tuple((d is not None, *m) for d, m in zip(dims, mapped, strict=True))
    lanes = (axis_data.size, *lanes)
    if trace_state() == message.state:
        return message.deliver(values, lanes, mapped), 0
    return site_p.bind(*values, message=message, lanes=lanes, mapped=mapped), 0


site_p = Primitive("ppl_ext_vmapped_site")
site_p.def_impl(_refused)
site_p.def_abstract_eval(_refused)
ad.primitive_jvps[site_p] = lambda primals, tangents, **params: _refused(**params)
# unlike the ordinary table, also asked where no operand has the lanes
batching.fancy_primitive_batchers[site_p] = _carried_out
