"""Work spread over devices: the same numbers as on one, to rounding; and what is no mesh is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ppl_ext.algorithms import ParticleFilter
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import chains_over
from ppl_ext.runtime.sharding import agreed, along, check_mesh, everywhere, gathered, placed
from tests.on_devices import run_on


def run_with(devices: int, folder: Path) -> dict[str, np.ndarray]:
    run_on(devices, "tests.sharded", folder / f"{devices}.npz", devices)
    return dict(np.load(folder / f"{devices}.npz"))


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(tmp_path):
    """For every algorithm that takes a mesh, and for every kind of chain."""
    one, eight = (run_with(n, tmp_path) for n in (1, 8))
    assert one.keys() == eight.keys() and len(one) > 25
    for name in one:
        assert np.isfinite(one[name]).all(), name
        np.testing.assert_allclose(eight[name], one[name], rtol=2e-4, atol=2e-4, err_msg=name)


def test_without_a_mesh_nothing_is_placed():
    tree = {"x": np.ones(3)}
    for placing in (along, gathered, placed):
        assert placing(None, tree) is tree
    assert everywhere(tree) is tree and agreed(0.5) == 0.5
    check_mesh("here", None, 3, "num")


def test_what_does_not_divide_is_refused():
    three = Mesh(np.array(jax.devices()[:1] * 3), ("a",))
    check_mesh("here", three, 6, "num")
    with pytest.raises(
        ArgumentError,
        match="here: num=4 does not divide over the 3 devices of the mesh's axis 'a'. Take a multiple of 3.",
    ):
        check_mesh("here", three, 4, "num")


def test_what_is_no_mesh_is_refused():
    for make in (
        lambda: ParticleFilter(8, mesh=[0, 1]),
        lambda: chains_over("devices"),
        lambda: chains_over(None),
    ):
        with pytest.raises(
            ArgumentTypeError, match="mesh must be a jax.sharding.Mesh, such as jax.make_mesh gives, got "
        ):
            make()
    with pytest.raises(ArgumentError, match=r"mesh must have one axis, and this one has 2, \('a', 'b'\)"):
        check_mesh("here", jax.make_mesh((1, 1), ("a", "b")))
    with pytest.raises(ArgumentError, match="must be of type AxisType.Auto"):
        check_mesh("here", jax.make_mesh((1,), ("a",)))
