"""Parameters in an ``npz`` file, nested dictionaries and lists and all, without pickle."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError

_INDEX = "__index__"
"""The one entry of the file that is no array: where each leaf belongs, as JSON."""


def write_params(params: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write the arrays of a pytree to ``path``: to a file beside it, which is then renamed.

    Dictionaries, lists and tuples are nested as they are; other nodes (modules) are written by the names of
    their fields.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_params({"net": {"w": np.ones((2, 3))}, "scale": np.float32(2.0)}, folder
    ...         + "/params.npz")
    ...     back = read_params(path)
    >>> back["net"]["w"].shape, float(back["scale"])
    ((2, 3), 2.0)
    """
    path = Path(path)
    arrays: dict[str, Any] = {}
    index = []
    for i, (keys, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        x = np.asarray(leaf)
        if x.dtype.kind == "O":
            raise ArgumentError(
                f"The param at {jax.tree_util.keystr(keys)} is no array: {type(leaf).__name__}."
            )
        # JAX's own number types (bfloat16, ...) mean nothing to npz; their bytes and their name do.
        index.append({"path": [_key(k) for k in keys], "dtype": x.dtype.name})
        arrays[str(i)] = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" else x
    arrays[_INDEX] = np.array(json.dumps(index))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def read_params(path: str | os.PathLike) -> dict[str, Any]:
    """Read what :func:`write_params` wrote, as nested dictionaries and lists of NumPy arrays."""
    with np.load(path, allow_pickle=False) as file:
        if _INDEX not in file:
            raise ArgumentError(f"{path} is not a file of params: it has no index.")
        tree: dict[Any, Any] = {}
        for i, entry in enumerate(json.loads(str(file[_INDEX]))):
            x, dtype = file[str(i)], jnp.dtype(entry["dtype"])
            node = tree
            for key in entry["path"][:-1]:
                node = node.setdefault(key, {})
            node[entry["path"][-1]] = x if x.dtype == dtype else x.view(dtype)
    return _lists(tree)


def _key(key: Any) -> str | int:
    for name in ("key", "name", "idx"):
        value = getattr(key, name, None)
        if isinstance(value, str | int):
            return value
    return str(key)


def _lists(tree: Any) -> Any:
    """Nodes whose keys are 0, 1, 2, ... were sequences."""
    if not isinstance(tree, dict):
        return tree
    nodes = {k: _lists(v) for k, v in tree.items()}
    if nodes and list(nodes) == list(range(len(nodes))):
        return list(nodes.values())
    return nodes
