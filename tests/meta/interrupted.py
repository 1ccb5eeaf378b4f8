"""A training run in a process of its own: ``python -m tests.meta.interrupted FILE NUM_STEPS`` prints the bits
of where it ends.
"""

import sys

import jax
import numpy as np
import optax

from ppl_ext.meta import LaplaceGGN, lift
from ppl_ext.runtime.checkpoint import Checkpoint
from tests.meta.test_lift import KEY, curve


def data():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 2, 6, dtype=np.float32)
    return [(x[:n], rng.normal(size=n).astype(np.float32)) for n in (6, 4, 5, 3)]


def run(path, num_steps, **options):
    """Batches, constrained and shared sites, and an optimiser with state of its own."""
    return lift(curve, ["rate", "share"]).fit(
        KEY,
        data(),
        local_solver=LaplaceGGN(num_steps=2),
        optim=optax.adam(0.03),
        num_steps=num_steps,
        batch_size=2,
        checkpoint=None if path is None else Checkpoint(path, every=1),
        progress_bar=False,
        **options,
    )


def bits(state) -> str:
    return "".join(np.asarray(x).tobytes().hex() for x in jax.tree.leaves(state))


if __name__ == "__main__":
    print(bits(run(sys.argv[1], int(sys.argv[2])).state))
