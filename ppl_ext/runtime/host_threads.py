"""Whether the threads of a host are enough for the devices that it pretends to have."""

import os

import jax

from ppl_ext.errors import ArgumentError


def refuse_to_starve(where: str) -> None:
    """Before jax 0.12 (0.10.2 was seen to, 0.12.0 not) a program on several devices that one host pretends to
    have can wait for ever: where XLA's pool has no more threads than there are devices, each of them may wait
    for another thread to help.
    """
    devices = jax.local_device_count()
    if jax.__version_info__ < (0, 12) and threads() <= devices:
        raise ArgumentError(
            f"{where}: mesh has {devices} devices of one host, whose {threads()} threads may then wait for "
            f"each other for ever in jax {jax.__version__}. Set the environment variable NPROC={2 * devices} "
            "before JAX is imported, which is how many threads XLA then starts, or install jax 0.12."
        )


def threads() -> int:
    """How many threads XLA's runtime for CPUs starts, where this is more than it has devices."""
    asked = os.environ.get("NPROC", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
