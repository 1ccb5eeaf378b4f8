#!/usr/bin/env bash
# JAX makes a context of MLIR, with every dialect loaded, for each program that it compiles, be it one addition, and what it caches of the program keeps that
# context. In jax 0.10.2 an addition at a new shape holds 1.4 MiB for as long as JAX's caches hold the program; 1.2 MiB of it is the context, and making it is a
# sixth of the time that lowering and compiling take. jax.clear_caches() lets go of them, and the memory is used again, but the process stays as large as it was
# until the allocator is told to trim (malloc_trim). In jax 0.12.0 an addition holds .37 MiB.
#
# It matters: a process that meets many shapes (tests, notebooks, a service with requests of all lengths) grows by a gibibyte for each 700 of them in jax
# 0.10.2. A suite of tests with one context for 200 programs took a quarter less time and a third of the memory.
#
# Expected from memory: a compiled addition holds some kilobytes.
# Versions: jax 0.10.2 on Python 3.11, jax 0.12.0.1 on Python 3.13; Linux with glibc, where a process can read its own size.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/look.py" <<'PYTHON'
import ctypes
import gc
import os
import sys

import jax
import numpy as np


def size():  # what the process has in memory, in MiB
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


add = jax.jit(lambda x: x + 1.0)
add(np.ones(3)).block_until_ready()


def programs(n=300):  # the growth of the process for each of n programs
    before = size()
    for length in range(4, n + 4):
        add(np.ones(length)).block_until_ready()
    gc.collect()
    return (size() - before) / n


if "shared" in sys.argv:  # one context for all programs, in place of JAX's own function that makes one
    from jax._src.interpreters import mlir

    context = mlir.make_ir_context()
    mlir.make_ir_context = lambda: context
start = size()
first = programs()
jax.clear_caches()
gc.collect()
cleared = (size() - start) / 300
second = programs()
jax.clear_caches()
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
trimmed = (size() - start) / 300
print(f"jax {jax.__version__}{', one context' * ('shared' in sys.argv)}: {first:.2f} MiB for each program, {cleared:.2f} with the caches cleared, "
      f"{second:.2f} more for the same programs again, {trimmed:.2f} with the allocator trimmed")
low, high = float(sys.argv[1]), float(sys.argv[2])
assert low < first < high and cleared > 0.9 * first and second < 0.1 and (trimmed < 0.5 * first or first < 0.3)
PYTHON
look() { # its name, its Python, the bounds, the packages
    "$2" -m venv "$work/$1"
    "$work/$1/bin/python" -m pip -qq --disable-pip-version-check install "${@:5}"
    JAX_PLATFORMS=cpu "$work/$1/bin/python" "$work/look.py" "$3" "$4"
    JAX_PLATFORMS=cpu "$work/$1/bin/python" "$work/look.py" 0.1 0.4 shared
}
look old python3.11 1.0 2.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
look new "${NEW_PYTHON:-python3.13}" 0.2 0.7 jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.4.6
# Output seen:
#   jax 0.10.2: 1.45 MiB for each program, 1.44 with the caches cleared, 0.01 more for the same programs again, 0.16 with the allocator trimmed
#   jax 0.10.2, one context: 0.26 MiB for each program, 0.26 with the caches cleared, 0.01 more for the same programs again, 0.06 with the allocator trimmed
#   jax 0.12.0.1: 0.37 MiB for each program, 0.36 with the caches cleared, 0.01 more for the same programs again, 0.10 with the allocator trimmed
#   jax 0.12.0.1, one context: 0.26 MiB for each program, 0.25 with the caches cleared, 0.01 more for the same programs again, 0.09 with the allocator trimmed
