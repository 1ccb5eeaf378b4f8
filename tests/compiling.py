"""How tests compile: nearly all their time goes there, so what they compile is made with little effort and
once.

Three things are set for a process of tests. XLA leaves out most of its optimisations (``light``). What was
compiled is kept, so that a program that another test had before is read back (``keep``; JAX's own cache is by
function, and every test has functions of its own). JAX makes a context of MLIR with all its dialects anew for
each program, a tenth to a third of a test's time and two thirds of its memory; here programs share one
(``share_contexts``).

What runs runs on one thread of OpenBLAS (``one_thread``).
"""

import atexit
import os
import shutil
import tempfile

import jax

PLAIN_CODE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""XLA's older code generator, in one piece: the code is slower, and made in half the time."""

PROGRAMS_IN_A_CONTEXT = 200
"""A context keeps every type and constant that it was asked for, so it is let go after a while."""


def light(on):
    """XLA without most of its optimisations, in this process and those that it starts."""
    jax.config.update("jax_disable_most_optimizations", on)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(on))
    # XLA ends the process at a flag that it does not know
    if on and jax.__version__.startswith("0.10."):
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), PLAIN_CODE]).strip()


def one_thread():
    """OpenBLAS on one thread in the processes that this one starts: the workers of pytest-xdist share the
    cores, and threads that wait for each other spin. A test of small factorisations that takes 6 seconds took
    241 beside another worker.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep():
    """What is compiled is kept for this process: two that write one file may read halves of it."""
    folder = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def share_contexts():
    """Programs that are lowered share a context; without effect where JAX has moved what makes one."""
    from jax._src.interpreters import mlir

    made, make = [], getattr(mlir, "make_ir_context", None)

    def shared():
        if len(made) == PROGRAMS_IN_A_CONTEXT:
            made.clear()
        made.append(made[0] if made else make())
        return made[0]

    if make is not None:
        mlir.make_ir_context = shared
