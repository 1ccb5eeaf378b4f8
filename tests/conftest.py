"""What every test stands on: the CPU, a key to start from, and which rows of a long table run by default."""

import os
from collections import defaultdict

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")

PLAIN_CODE = "--xla_cpu_use_fusion_emitters=false"
"""XLA's older code generator: the code is slower, and made in half the time."""


def pytest_configure(config):
    """Default tests compile without most of XLA's optimisations: nearly all their time is compiling. With
    slow tests asked for, all are on.

    The environment's ``JAX_DISABLE_MOST_OPTIMIZATIONS`` has the last word, so that either set can be run
    either way.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        light = "not slow" in config.getoption("markexpr")
        jax.config.update("jax_disable_most_optimizations", light)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(light))  # for the processes that tests start
        # XLA ends the process at a flag that it does not know
        if light and jax.__version__.startswith("0.10."):
            os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), PLAIN_CODE]).strip()


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
