"""Programs of ``tutorials/papers/``, run small."""

import functools

from tools.papers import PROGRAMS, Claim, loaded


@functools.cache
def module(name):
    return loaded(PROGRAMS / f"{name}.py")


@functools.cache
def claims(name):
    """The rows of a program at its small sizes."""
    return [Claim(*row) for row in module(name).claims(small=True)]
