"""What every test stands on: the CPU, a key to start from, and which rows of a long table run by default."""

import os
from collections import defaultdict

import jax
import numpy as np
import pytest

from tests import compiling

jax.config.update("jax_platforms", "cpu")


def pytest_configure(config):
    """Default tests compile with little effort, see ``compiling``. With slow tests and benchmarks asked for,
    JAX is as users have it.

    The environment's ``JAX_DISABLE_MOST_OPTIMIZATIONS`` has the last word, so that either set can be run
    either way.
    """
    by_default = "not slow" in config.getoption("markexpr")
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        compiling.light(by_default)
    compiling.one_thread()
    if by_default:
        compiling.keep()
        compiling.share_contexts()


@pytest.fixture
def rng_key():
    """The key a test starts from."""
    return jax.random.key(0)


@pytest.hookimpl(tryfirst=True)  # before the rows marked slow are left out
def pytest_collection_modifyitems(items):
    """In a module that sets ``DEFAULT_ROWS = n``, n rows of each parametrised test, evenly spread, run by
    default, the others are slow.

    A row compiles programs of its own and takes a second or two: all of them, in ``make test-all``, take half
    an hour.
    """
    tables = defaultdict(list)
    for item in items:
        if hasattr(getattr(item, "module", None), "DEFAULT_ROWS") and not item.get_closest_marker("slow"):
            tables[item.nodeid.split("[")[0]].append(item)
    for rows in tables.values():
        by_default = np.linspace(0, len(rows) - 1, rows[0].module.DEFAULT_ROWS).round()
        for number, row in enumerate(rows):
            if number not in by_default:
                row.add_marker(pytest.mark.slow)
