"""A model with a ``scan`` called with one time of its data after another: what it is called with, and whether
it may be.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.errors import ModelError
from ppl_ext.state_space.model import lower


def time_slice(tree: Any) -> Any:
    """Data of one time as a series of length 1: what a model is called with when data arrive one at a time.

    >>> time_slice({"y": jnp.zeros(3)})["y"].shape
    (1, 3)
    """
    return jax.tree.map(lambda a: jnp.asarray(a)[None], tree)


def check_streams(
    model: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Whether a model may be called with one time slice after another (``args`` and ``kwargs`` hold one, see
    :func:`time_slice`).

    Outside ``jit``, with an example slice.

    :raises ModelError: if the scan has other than one step for it, or the model makes an input of its own
        that changes with time, such as ``jnp.arange(T)``, which would start anew with every slice.
    """
    space = lower(model, args, kwargs, parameters)
    if space.reverse:
        raise ModelError(
            "The scan runs with reverse=True, so it begins at the last observation, and a stream has none "
            "yet. Smooth the whole series by ppl_ext.smoothing.smooth, or write the model forwards."
        )
    if space.num_steps != 1:
        raise ModelError(
            f"Called with one time slice, the model's scan has {space.num_steps} steps; the slice must be "
            "its whole series."
        )
    args, kwargs = jax.tree.map(
        lambda a: jnp.concatenate([a, a]) if getattr(a, "shape", ())[:1] == (1,) else a,
        (tuple(args), dict(kwargs or {})),
    )
    try:
        two = lower(model, args, kwargs, parameters).xs.x
    except ModelError:  # an argument of length 1 that is no series: the model cannot be asked in this way
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(two):
        if len(leaf) == 2 and bool(
            jnp.any((leaf[0] != leaf[1]) & ~(jnp.isnan(leaf[0]) & jnp.isnan(leaf[1])))
        ):
            raise ModelError(
                f"The scan's input {jax.tree_util.keystr(path)} changes with time though the data do not: "
                "the model makes it itself (say by jnp.arange), and it would start anew with every slice. "
                "Pass it to the model as data."
            )
