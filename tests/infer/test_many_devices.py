"""Chains spread over devices: the same numbers as on one, to rounding."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from tests.infer.many_devices import guide, model
from tests.on_devices import run_on


def run_with(devices: int, folder: Path) -> dict[str, np.ndarray]:
    run_on(devices, "tests.infer.many_devices", folder, devices)
    return dict(np.load(folder / f"{devices}.npz"))


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(tmp_path):
    """And a run that was stopped goes on where it was, to the last bit, on as many devices."""
    one, eight = (run_with(n, tmp_path) for n in (1, 8))
    assert one.keys() == eight.keys() and one["losses"].shape == (8, 60)
    for name in one:
        np.testing.assert_allclose(eight[name], one[name], rtol=2e-5, atol=2e-5, err_msg=name)


def test_what_is_no_mesh_is_refused():
    with pytest.raises(ArgumentTypeError, match="mesh must be a jax.sharding.Mesh"):
        fit(
            jax.random.key(0),
            model,
            guide,
            ELBO(),
            optax.adam(0.1),
            5,
            np.zeros(3, np.float32),
            mesh="devices",
        )
