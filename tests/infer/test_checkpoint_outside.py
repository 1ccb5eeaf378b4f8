"""A checkpoint is of what its run computes: of the numbers that model and guide read from outside of their
arguments, too.
"""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoDelta

from ppl_ext.errors import ArgumentError, NonFiniteError
from ppl_ext.infer import Checkpoint, fit
from ppl_ext.objectives import ELBO
from ppl_ext.runtime.checkpoint import PROGRAM, VERSIONS

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py


class Level:
    """A model that reads its data, and the scale of its prior, from its object."""

    def __init__(self, y, scale):
        self.y, self.scale, self.unread = y, scale, 0.0

    def model(self):
        mean = numpyro.sample("mean", dist.Normal(0.0, self.scale))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=self.y)


CHANGES = {
    "nothing": lambda level: None,
    "nothing that is read": lambda level: setattr(level, "unread", 1.0),
    "an array in place": lambda level: level.y.__setitem__(2, 5.0),
    "an array": lambda level: setattr(level, "y", jnp.zeros(4)),
    "a number": lambda level: setattr(level, "scale", 2.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_on_other_data_from_outside_is_another_run(change, tmp_path):
    level = Level(np.arange(4.0, dtype=np.float32), 1.0)

    def run(num_steps, learning_rate=0.1):
        options = {"progress_bar": False, "checkpoint": Checkpoint(tmp_path / "run.npz")}
        return fit(
            jax.random.key(0),
            level.model,
            AutoDelta(level.model),
            ELBO(),
            optax.adam(learning_rate),
            num_steps,
            **options,
        )

    run(5)
    CHANGES[change](level)
    if change.startswith("nothing"):
        assert run(7, learning_rate=0.01).num_steps == 7
        return
    with pytest.raises(
        ArgumentError,
        match="of another run: its program, with the numbers that it reads from outside of its arguments",
    ):
        run(7)


def test_another_version_may_write_the_program_otherwise(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    about = {VERSIONS: "jax 1", PROGRAM: "a", "data": "d"}
    Checkpoint(path).save({"loc": jnp.ones(2)}, np.zeros(3), about)
    for changed, is_another in (
        ({VERSIONS: "jax 2", PROGRAM: "b"}, False),
        ({PROGRAM: "b"}, True),
        ({VERSIONS: "jax 2", "data": "e"}, True),
    ):
        with pytest.raises(ArgumentError, match="of another run") if is_another else nullcontext():
            Checkpoint(path).load({"loc": jnp.zeros(2)}, about | changed)


def test_a_callback_that_changes_the_data_is_told_of_where_the_run_breaks_down():
    level = Level(np.zeros(4, np.float32), 1.0)
    with pytest.raises(
        NonFiniteError,
        match="attribute 'y' of Level, which the program reads, has changed since the run began",
    ):
        fit(
            jax.random.key(0),
            level.model,
            AutoDelta(level.model),
            ELBO(),
            optax.chain(optax.sgd(0.1), optax.scale_by_schedule(lambda t: jnp.where(t > 3000, jnp.nan, 1.0))),
            10_000,
            progress_bar=False,
            callback=lambda progress: setattr(level, "y", np.ones(4, np.float32)),
            early_stopping=lambda losses: None,
        )
