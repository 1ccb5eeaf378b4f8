"""Programs of ``tutorials/papers/``, run small."""

import functools

import pytest

from tools.papers import PROGRAMS, Claim, loaded


@functools.cache
def module(name):
    return loaded(PROGRAMS / f"{name}.py")


@functools.cache
def claims(name):
    """The rows of a program at its small sizes."""
    return [Claim(*row) for row in module(name).claims(small=True)]


SIZES = [False, pytest.param(True, marks=pytest.mark.slow, id="whole")]


def rows_of(name, whole):
    """The rows of a program at its small sizes, or of the whole of it."""
    return [Claim(*row) for row in module(name).claims()] if whole else claims(name)
