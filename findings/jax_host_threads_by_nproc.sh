#!/usr/bin/env bash
# How many threads XLA's runtime for CPUs starts is set by the environment variable NPROC, which JAX's pages do not name. The flags that are passed
# around for it, XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", leave the pool as it is (of the second, which has no dashes,
# nothing is said either). With --xla_force_host_platform_device_count=D the pool has D threads at least, and no more if the machine has fewer cores.
#
# It matters: in jax 0.10.2 programs of several host devices and what helps them inside (large batches of small linear solves, within a loop) share that
# one pool, and where it had as many threads as there were devices such a program was seen to wait for ever; with NPROC one larger, it returned. jax 0.12.0
# has a pool for execution beside that for the work inside, and the same program returned with any number. The program is not shown here.
#
# Expected from memory: the flags limit the threads, and NPROC is nothing to JAX.
# Versions: jax 0.10.2 on Python 3.11, jax 0.12.0.1 on Python 3.13; Linux, where a process can list its threads.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/look.py" <<'PYTHON'
import collections
import os
import re

import jax

jax.block_until_ready(jax.numpy.ones(3) + 1)
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
count = collections.Counter(re.sub(r"[/\d]+$", "", name) for name in names)
print(" ".join(f"{name}={n}" for name, n in sorted(count.items()) if name.startswith("tf_XLA")))
PYTHON
look() { # its name, its Python, jax, what NPROC=9 gives
    "$2" -m venv "$work/$1"
    "$work/$1/bin/python" -m pip -qq --disable-pip-version-check install "${@:5}"
    seen() { env -u NPROC -u XLA_FLAGS JAX_PLATFORMS=cpu "$@" "$work/$name/bin/python" "$work/look.py"; }
    local name=$1 nine three flagged plain devices
    nine=$(seen NPROC=9)
    three=$(seen NPROC=3)
    plain=$(seen NPROC=3 XLA_FLAGS=--xla_force_host_platform_device_count=1)
    flagged=$(seen NPROC=3 "XLA_FLAGS=--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    devices=$(seen NPROC=3 XLA_FLAGS=--xla_force_host_platform_device_count=5)
    echo "jax $3: NPROC=9 $nine; NPROC=3 $three, with both flags $flagged, with 5 devices $devices"
    [ "$nine" = "$4" ]
    [ "$three" = "${4//9/3}" ]
    [ "$plain" = "$three" ]
    [ "$flagged" = "$three" ]
    [ "$devices" = "${4//9/5}" ]
}
look old python3.11 0.10.2 "tf_XLAEigen=9" jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
look new "${NEW_PYTHON:-python3.13}" 0.12.0.1 "tf_XLACompile=9 tf_XLAEigen=9 tf_XLAExecute=9" jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.4.6
# Output seen:
#   jax 0.10.2: NPROC=9 tf_XLAEigen=9; NPROC=3 tf_XLAEigen=3, with both flags tf_XLAEigen=3, with 5 devices tf_XLAEigen=5
#   jax 0.12.0.1: NPROC=9 tf_XLACompile=9 tf_XLAEigen=9 tf_XLAExecute=9; NPROC=3 tf_XLACompile=3 tf_XLAEigen=3 tf_XLAExecute=3, with both flags
#   tf_XLACompile=3 tf_XLAEigen=3 tf_XLAExecute=3, with 5 devices tf_XLACompile=5 tf_XLAEigen=5 tf_XLAExecute=5
