"""Run by ``test_processes.py``, once a process: one run over the devices of all of them, by
``jax.distributed`` over loopback.

``python -m tests.processes ADDRESS NUM ID FOLDER WHAT``, where WHAT is ``all`` (every kind of run, to a
file), ``killed:K`` (process K kills itself in the middle of a fit with a checkpoint), or ``resumed`` (that
fit, from its checkpoint if there is one).
"""

import os
import signal
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType

from ppl_ext.infer import SGHMC, Checkpoint, fit
from ppl_ext.objectives import IWELBO
from tests.sharded import X, chains, guide, line, meta, smoothed

STEPS = 200


def fitted(mesh, **options):
    how = {"num_chains": 8, "mesh": mesh, "progress_bar": False}
    result = fit(
        jax.random.key(1), line, guide, IWELBO(2), optax.adam(0.05), STEPS, X, 1.5 * X, **how, **options
    )
    return {"loc": result.params["loc"], "losses": result.losses}


def everything(mesh):
    yield "fit", fitted(mesh)
    yield "smooth", smoothed(mesh, "mcmc")
    yield "meta", meta(mesh)
    yield "sghmc", chains(mesh, SGHMC(line, step_size=0.01), X, 1.5 * X)


def main(address: str, num: str, number: str, folder: str, what: str) -> None:
    if int(num) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            address, int(num), int(number), heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10
        )
    mesh = (
        jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
        if jax.device_count() > 1
        else None
    )
    if what == "all":
        found = {
            f"{name}/{key}": np.asarray(x) for name, values in everything(mesh) for key, x in values.items()
        }
    else:

        def callback(now):
            if what == f"killed:{number}" and now.losses.shape[1] >= STEPS // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        found = fitted(mesh, checkpoint=Checkpoint(f"{folder}/run.npz", every=20), callback=callback)
    np.savez(f"{folder}/{what}-{num}-{number}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
