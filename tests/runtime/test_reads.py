"""What a program reads without a name in its code that says so: Python's own containers, operators, patterns,
trees, masks, indices.

Each row is something that is read and a change to it; a program that only returns it must be in one state
before and in another after.
"""

import argparse
import contextvars
import logging
import operator
import types
from array import array
from collections import ChainMap, UserDict, UserList

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import ppl_ext
from ppl_ext.runtime import reads
from ppl_ext.runtime.outside import reading

WIDTH = 1.0


class Patterned:
    __match_args__ = ("width",)

    def __init__(self, width=1.0):
        self.width = width


class Delegating:
    """Neither knows its names beforehand, nor fails with an AttributeError."""

    def __init__(self):
        self._kept = {"width": 1.0}

    def __getattr__(self, name):
        return self.__dict__["_kept"][name]


class Operating:
    def __init__(self):
        self.factor = 1.0

    def __mul__(self, other):
        return self.factor * other

    def __enter__(self):
        return self.factor

    def __exit__(self, *_):
        pass

    def __float__(self):
        return self.factor


class Computed:
    def __get__(self, instance, owner):
        return 2.0 * instance.hidden


class Described:
    value = Computed()

    def __init__(self):
        self.hidden = 1.0


class Making:
    def __init__(self):
        self.made = WIDTH


@jax.tree_util.register_pytree_node_class
class Node:
    def __init__(self, leaf):
        self.leaf = leaf

    def tree_flatten(self):
        return (self.leaf,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def namespace():
    held = argparse.Namespace(width=1.0)
    return lambda: held.width, lambda: setattr(held, "width", 2.0)


def user_dict():
    held = UserDict(width=1.0)
    return lambda: held["width"], lambda: held.update(width=2.0)


def user_list():
    held = UserList([1.0])
    return lambda: held[-1], lambda: held.append(2.0)


def chain_map():
    held = ChainMap({"width": 1.0})
    return lambda: held["width"], lambda: held.update(width=2.0)


def mapping_proxy():
    under = {"width": 1.0}
    held = types.MappingProxyType(under)
    return lambda: held["width"], lambda: under.update(width=2.0)


def context():
    held = contextvars.ContextVar("held", default=1.0)
    return lambda: held.get(), lambda: held.set(2.0)


def byte_array():
    held = bytearray(b"ab")
    return lambda: held[0], lambda: held.__setitem__(0, 120)


def typed_array():
    held = array("d", [1.0, 2.0])
    return lambda: held[0], lambda: held.__setitem__(0, 5.0)


def mask_of_an_array():
    held = np.ma.array([1.0, 2.0], mask=[False, False])
    return lambda: held.mean(), lambda: held.mask.__setitem__(0, True)


def index_of_a_table():
    held = pd.DataFrame({"y": [1.0, 2.0]})
    return lambda: held.index, lambda: setattr(held, "index", [5, 6])


def index_of_a_column():
    held = pd.Series([1.0, 2.0])
    return lambda: held.index, lambda: setattr(held, "index", [5, 6])


def attributes_of_a_table():
    held = pd.DataFrame({"y": [1.0, 2.0]})
    held.attrs["width"] = 1.0
    return lambda: held.attrs["width"], lambda: held.attrs.update(width=2.0)


def coordinate():
    held = xr.DataArray(np.zeros(2), dims="t", coords={"t": [0, 1]})
    return lambda: held.t.values, lambda: held.__setitem__("t", [5, 6])


def pattern_of_keywords():
    held = Patterned()

    def program():
        match held:
            case Patterned(width=found):
                return found

    return program, lambda: setattr(held, "width", 2.0)


def pattern_of_places():
    held = Patterned()

    def program():
        match held:
            case Patterned(found):
                return found

    return program, lambda: setattr(held, "width", 2.0)


def delegation():
    held = Delegating()
    return lambda: held.width, lambda: held._kept.update(width=2.0)


def operator_of_a_class():
    held = Operating()
    return lambda: held * 2.0, lambda: setattr(held, "factor", 2.0)


def context_manager():
    held = Operating()

    def program():
        with held as factor:
            return factor

    return program, lambda: setattr(held, "factor", 2.0)


def conversion():
    held = Operating()
    return lambda: float(held), lambda: setattr(held, "factor", 2.0)


def descriptor():
    held = Described()
    return lambda: held.value, lambda: setattr(held, "hidden", 2.0)


def global_of_a_constructor():
    return lambda: Making().made, lambda: globals().update(WIDTH=WIDTH + 1.0)


def globals_by_name():
    return lambda: globals()["WIDTH"], lambda: globals().update(WIDTH=WIDTH + 1.0)


def tree():
    held = Node(1.0)
    return lambda: jax.tree.leaves(held), lambda: setattr(held, "leaf", 2.0)


def getter():
    held, get = Patterned(), operator.attrgetter("width")
    return lambda: get(held), lambda: setattr(held, "width", 2.0)


WAYS = [
    *(
        namespace,
        user_dict,
        user_list,
        chain_map,
        mapping_proxy,
        context,
        byte_array,
        typed_array,
        mask_of_an_array,
        index_of_a_table,
    ),
    *(
        index_of_a_column,
        attributes_of_a_table,
        coordinate,
        pattern_of_keywords,
        pattern_of_places,
        delegation,
        operator_of_a_class,
    ),
    *(context_manager, conversion, descriptor, global_of_a_constructor, globals_by_name, tree, getter),
]


def state(program):
    with reading(program) as outside:
        return outside


@pytest.mark.parametrize("way", WAYS)
def test_a_change_without_a_name_is_seen(way):
    program, change = way()
    before, again = state(program), state(program)
    found = program()
    change()
    after = state(program)
    assert before == again
    assert after != before
    assert after == state(program)
    assert not np.array_equal(jnp.asarray(found), jnp.asarray(program()))  # the row tests what it says


def test_a_logger_is_no_data():
    """What Python's own objects keep that the program does not name compiles nothing anew."""
    log = logging.getLogger("ppl_ext.test_reads")

    def program():
        log.info("run")

    before = state(program)
    log.addHandler(logging.NullHandler())
    logging.getLogger("ppl_ext.test_reads.another")
    assert state(program) == before


def test_the_library_knows_its_own_files():
    modules = (ppl_ext.program, ppl_ext.errors, reads)
    assert {reads.package_of(m.__file__) for m in modules} == {"ppl_ext"}
    assert reads.package_of(__file__) is None
