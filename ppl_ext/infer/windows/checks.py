"""What windowed inference is given: whether it fits, in the user's words."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.handlers import block, seed, trace

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer.windows.programs import PAST, Pair, latent
from ppl_ext.infer.windows.state import WindowState
from ppl_ext.runtime.arguments import described


def strong(x: Any) -> jax.Array:
    """An array whose type is its own, and not Python's, so that the next step is no other program."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def alike(x: Any, series: Any) -> Any:
    """One step's data, of the shapes and types of those that the stream began with."""
    x = jax.tree.map(jnp.asarray, x)
    there, new = jax.tree.structure(series), jax.tree.structure(x)
    pairs = [*zip(jax.tree.leaves(x), jax.tree.leaves(series), strict=False)]
    if str(there) != str(new) or any(
        a.shape != b.shape[1:] or jnp.result_type(a, b) != b.dtype for a, b in pairs
    ):
        began = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape[1:])}", series)
        told = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", x)
        raise ArgumentError(
            f"windowed.step: the stream began with data of type and shape {began}, and now has {told}. Begin "
            "it, in init, with what the steps will have."
        )
    return jax.tree.unflatten(there, [strong(a.astype(b.dtype)) for a, b in pairs])


def check_state(where: str, state: Any) -> None:
    if not isinstance(state, WindowState):
        raise ArgumentTypeError(
            f"windowed.{where}: state must be what init or step returned, got {described(state)}."
        )


def check_pair(pair: Pair, carry: Any, x: Any, free: Any) -> None:
    """Whether a step of the model and one of the guide have the same latent sites, and the carry stays."""
    for what, tree in (("free", free), ("carry", carry)):
        real = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
        if not all(bool(jnp.isfinite(a).all()) for a in real):
            raise ArgumentError(
                f"windowed: {what} holds numbers that are not finite, and every step begins with it."
            )
    key = random.key(0)
    with block():
        records = [
            trace(seed(fn, key)).get_trace(*args)
            for fn, args in ((pair.body, (carry, x)), (pair.guide, (free, carry, x)))
        ]
        after = seed(pair.body, key)(carry, x)
    sites = [{n: jnp.shape(v) for n, v in latent(record).items()} for record in records]
    for name, site in (records[0] | records[1]).items():
        if site["type"] in ("param", "mutable"):
            raise ModelError(
                f"windowed: '{name}' is a {site['type']} site, which a stream does not learn. Give "
                "the numbers themselves, or make them part of free, of which each step has its own."
            )
    if sites[0] != sites[1]:
        raise ModelError(
            f"windowed: body has the latent sites {sites[0]}, with their shapes, and guide {sites[1]}. They "
            "must be the same."
        )
    if PAST in sites[0]:
        raise ModelError(f"windowed: rename site '{PAST}', which is the window's own.")
    if not isinstance(after, tuple) or len(after) != 2:
        raise ModelError(
            f"windowed: body must return (carry, output), as that of a scan, got {described(after)}."
        )
    told = [jax.tree.map(lambda a: (jnp.shape(a), str(jnp.result_type(a))), c) for c in (carry, after[0])]
    if told[0] != told[1]:
        raise ModelError(
            f"windowed: body turns the carry {told[0]} into {told[1]}, shapes and types; make the first "
            "carry what body returns."
        )
