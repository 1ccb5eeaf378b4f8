"""How tests compile: a program that was compiled is read back, and programs share a context."""

import os
import subprocess
import sys

from tests import compiling

HITS = """
import jax, numpy as np
from tests import compiling

compiling.keep()
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
twice = [jax.jit(lambda x: x * 2.0 + 1.0)(np.ones(3)) for _ in range(2)]
np.testing.assert_array_equal(twice, np.full((2, 3), 3.0))
print(seen.count("/jax/compilation_cache/cache_hits"))
"""


def test_the_same_program_of_another_function_is_read_back():
    ran = subprocess.run(
        [sys.executable, "-c", HITS],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 1


def test_programs_share_a_context_for_a_while(monkeypatch):
    from jax._src.interpreters import mlir

    made = []
    monkeypatch.setattr(mlir, "make_ir_context", lambda: made.append(object()) or made[-1])
    monkeypatch.setattr(compiling, "PROGRAMS_IN_A_CONTEXT", 3)
    compiling.share_contexts()
    first, second, third, fourth = (mlir.make_ir_context() for _ in range(4))
    assert first is second is third is not fourth and made == [first, fourth]
    monkeypatch.delattr(mlir, "make_ir_context")
    compiling.share_contexts()
    assert not hasattr(mlir, "make_ir_context")
