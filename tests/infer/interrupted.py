"""A run that a test kills: ``python -m tests.infer.interrupted CHECKPOINT RESULT [SECONDS_TO_LIVE]``."""

import os
import signal
import sys
import threading

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext.infer import Checkpoint, fit
from ppl_ext.objectives import ELBO


def model(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 5.0))
    with numpyro.plate("n", y.shape[0], subsample_size=4) as rows:
        numpyro.sample("y", dist.Normal(loc, 1.0), obs=y[rows])


def guide(y):
    loc = numpyro.param("q_loc", jax.random.normal)
    numpyro.sample(
        "loc", dist.Normal(loc, numpyro.param("q_scale", 1.0, constraint=dist.constraints.positive))
    )


def run(checkpoint=None, num_steps=4000, callback=None):
    y = np.random.default_rng(0).normal(2.0, 1.0, 20).astype(np.float32)
    options = {"num_chains": 2, "progress_bar": False, "checkpoint": checkpoint, "callback": callback}
    return fit(jax.random.key(7), model, guide, ELBO(), optax.adam(1e-2), num_steps, y, **options)


if __name__ == "__main__":
    path, target, *lifetime = sys.argv[1:]
    killer = (
        threading.Timer(float(lifetime[0]), lambda: os.kill(os.getpid(), signal.SIGKILL))
        if lifetime
        else None
    )

    def slowly(progress):
        if killer is not None and not killer.is_alive():
            killer.start()  # the life begins with the first chunk: starting Python and compiling do not count
        import time

        time.sleep(0.02)

    result = run(Checkpoint(path, every=1), callback=slowly)
    np.savez(target, losses=result.losses, **result.params)
