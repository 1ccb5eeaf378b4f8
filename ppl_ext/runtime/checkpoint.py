"""Save a run as it goes, and go on from there to the last bit: a file of plain arrays, replaced whole or not
at all.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, described
from ppl_ext.tracing.jaxprs import fingerprint

_FORMAT = "ppl_ext run 1"
VERSIONS, PROGRAM = "versions", "program, with the numbers that it reads from outside of its arguments,"


def program(fn: Callable, *args: Any) -> dict[str, str]:
    """What a run computes, for ``about``: its fingerprint, which another version may change, and the
    versions.
    """
    try:
        own = version("ppl_ext")
    except PackageNotFoundError:  # run from its source
        own = "of no version"
    versions = f"ppl_ext {own}, jax {jax.__version__}, numpyro {numpyro.__version__}"
    return {VERSIONS: versions, PROGRAM: fingerprint(fn, *args)}


def digest(arrays: Iterable[Any]) -> str:
    """A digest of the numbers of some arrays; ``None`` among them counts for nothing."""
    found = hashlib.sha256()
    for x in arrays:
        if x is not None:
            found.update(np.ascontiguousarray(np.asarray(x)).tobytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """Where a run saves its state, and every how many steps at least.

    If the file exists, the run continues from it; to begin anew, delete it. The state (parameters, optimiser,
    keys, losses) is stored as plain arrays, never pickled, and written to a file beside it that then takes
    its place, so that a kill at any moment leaves a whole one.

    :param path: the file.
    :param every: steps between two saves; the run saves at the end, too.
    :raises ArgumentError: if ``every`` is below 1, or the path is a folder or in one that does not exist;
        when loaded, if the file is damaged or of another run.
    :raises ArgumentTypeError: if the path is no name of a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(Path(folder) / "run.npz",
    ...         every=100)  # fit(..., checkpoint=checkpoint) saves and loads by itself
    ...     checkpoint.save({"loc": jnp.ones(2)}, losses=np.array([3.0, 1.0]), about={"model": "level"})
    ...     state, losses = checkpoint.load({"loc": jnp.zeros(2)}, about={"model": "level"})
    >>> state["loc"].tolist(), losses.tolist()
    ([1.0, 1.0], [3.0, 1.0])
    """

    path: str | os.PathLike
    every: int = 1000

    def __post_init__(self):
        check_count("Checkpoint: every", self.every)
        if not isinstance(self.path, str | os.PathLike) or not str(self.path):
            raise ArgumentTypeError(
                f"Checkpoint: path must be the name of a file, got {described(self.path)}."
            )
        path = Path(self.path)
        if path.is_dir():
            raise ArgumentError(
                f"Checkpoint: path '{path}' is a folder; name a file in it, such as '{path / 'run.npz'}'."
            )
        if not path.parent.is_dir():
            raise ArgumentError(
                f"Checkpoint: path '{path}' is in a folder that does not exist; make '{path.parent}' first."
            )

    def save(self, state: Any, losses: np.ndarray, about: dict[str, Any]) -> None:
        """Replace the file by this state; ``about`` describes the run, for :meth:`load` to compare."""
        leaves = jax.tree.leaves(state)
        header = {"format": _FORMAT, "about": about, "structure": _structure(state)}
        path = Path(self.path)
        arrays: dict[str, Any] = {f"leaf_{i}": _numbers(x) for i, x in enumerate(leaves)}
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, header=np.array(json.dumps(header)), losses=losses, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)

    def load(self, like: Any, about: dict[str, Any]) -> tuple[Any, np.ndarray] | None:
        """The saved state, in the structure of ``like``, and the losses so far; ``None`` if there is no file.

        :raises ArgumentError: if the file is damaged, of something else, or of another run; it says what
            differs.
        """
        path = Path(self.path)
        if not path.exists():
            return None
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header.get("format") != _FORMAT:
                    raise KeyError("format")
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ArgumentError(
                f"'{path}' is no whole checkpoint of a run ({type(error).__name__}: {error}). Delete it to "
                "begin anew."
            ) from error
        structure = _structure(like)
        missing, extra = (
            [x for x in structure if x not in header["structure"]],
            [x for x in header["structure"] if x not in structure],
        )
        old = header["about"]
        skipped = (VERSIONS, PROGRAM) if old.get(VERSIONS) != about.get(VERSIONS) else ()
        differences = [(key, old.get(key), value) for key, value in about.items() if key not in skipped]
        differences.append(
            ("state", ", ".join(extra[:3]) or "smaller", ", ".join(missing[:3]) or "smaller")
            if missing or extra
            else ("", 0, 0)
        )
        for what, saved, wanted in differences:
            if saved != wanted:
                raise ArgumentError(
                    f"'{path}' is of another run: its {what} is {saved}, here {wanted}. Delete it or take "
                    "another path."
                )
        leaves, treedef = jax.tree.flatten(like)
        restored = [_array(arrays[f"leaf_{i}"], x) for i, x in enumerate(leaves)]
        return jax.tree.unflatten(treedef, restored), arrays["losses"]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _structure(state: Any) -> list[str]:
    """Name, shape and type of every leaf."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return [f"{jax.tree_util.keystr(path)}: {x.dtype}{list(x.shape)}" for path, x in paths]


def _numbers(x: jax.Array) -> np.ndarray:
    numbers = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
    # bfloat16 and its kin mean nothing to npz; they go by their bits.
    return (
        np.ascontiguousarray(numbers).view(f"u{numbers.dtype.itemsize}")
        if numbers.dtype.kind == "V"
        else numbers
    )


def _array(numbers: np.ndarray, like: jax.Array) -> jax.Array:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(numbers), impl=jax.random.key_impl(like))
    return jnp.asarray(numbers.view(like.dtype) if numbers.dtype != like.dtype else numbers)
