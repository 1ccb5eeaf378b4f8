"""What is no array among the arguments of an episode: a constant, part of the structure in which the arrays
are laid out.
"""

import functools
from collections.abc import Callable
from enum import Enum
from typing import Any

import jax

from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.constants import content


class Held:
    """An object without arrays as a pytree of no leaves: it passes through whatever is done to them, and what
    is compiled knows it.

    >>> jax.tree.map(lambda x: x + 1, (Held("linear"), 2))
    (Held('linear'), 3)
    """

    def __init__(self, x: Any):
        self.x, self.content = x, content(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)

    def __repr__(self) -> str:
        return f"Held({described(self.x)})"


jax.tree_util.register_pytree_node(Held, lambda held: ((), held), lambda held, _: held)


def is_setting(x: Any) -> bool:
    """Whether this is meant as it is, and no column of data that has not been made numbers yet."""
    return isinstance(x, str | bytes | Enum) or not (
        isinstance(x, bool | int | float | complex)
        or any(hasattr(x, name) for name in ("dtype", "to_numpy", "__array__", "__jax_array__"))
    )


def held(tree: Any) -> Any:
    """Hold what is no array among some arguments."""
    return jax.tree.map(lambda x: Held(x) if is_setting(x) else x, tree)


def opened(tree: Any) -> Any:
    """The arguments as a program takes them."""
    return jax.tree.map(
        lambda x: x.x if isinstance(x, Held) else x, tree, is_leaf=lambda x: isinstance(x, Held)
    )


def opening(program: Callable) -> Callable:
    """Make a program take arguments that are held."""

    @functools.wraps(program)
    def run(*args, **kwargs):
        args, kwargs = opened((args, kwargs))
        return program(*args, **kwargs)

    return run
