"""A run that is killed at any moment resumes from its checkpoint and ends with the same bits; a file of
anything else is refused.
"""

import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import Checkpoint, fit
from ppl_ext.objectives import ELBO
from tests.infer import interrupted

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted():
    return interrupted.run()


def assert_same_bits(result, expected):
    np.testing.assert_array_equal(result["losses"], expected.losses)
    for name, value in expected.params.items():
        np.testing.assert_array_equal(result[name], value)


def after_killing(times: int, folder: Path, seed: int = 0):
    """Run in new processes, killing the first few at random moments of their working life."""
    checkpoint, target = folder / "run.npz", folder / "result.npz"
    rng, killed = random.Random(seed), 0
    while not target.exists():
        lifetime = [str(rng.uniform(0.01, 0.12))] if killed < times else []
        command = [sys.executable, "-m", "tests.infer.interrupted", str(checkpoint), str(target), *lifetime]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        if lifetime:
            assert done.returncode == -9 or target.exists(), done.stderr
            killed += done.returncode == -9
        else:
            assert done.returncode == 0, done.stderr
    assert killed == times
    return np.load(target)


def test_killed_once_ends_with_the_same_bits(tmp_path, uninterrupted):
    assert_same_bits(after_killing(1, tmp_path), uninterrupted)


@pytest.mark.slow
def test_killed_ten_times_ends_with_the_same_bits(tmp_path, uninterrupted):
    assert_same_bits(after_killing(10, tmp_path), uninterrupted)


def stop_after(num_chunks):
    calls = []

    def callback(progress):
        calls.append(progress.losses.shape[1])
        return len(calls) == num_chunks

    return callback


@pytest.mark.slow
def test_stopped_run_goes_on_in_the_same_process(tmp_path, uninterrupted):
    checkpoint = Checkpoint(tmp_path / "run.npz", every=100)
    half = interrupted.run(checkpoint, callback=stop_after(13))
    assert half.stop_reason == "stopped by the callback"
    assert half.num_steps < 4000
    whole = interrupted.run(checkpoint)
    assert_same_bits({"losses": whole.losses, **whole.params}, uninterrupted)


@pytest.mark.slow
def test_finished_run_is_returned_and_can_be_prolonged(tmp_path, uninterrupted):
    checkpoint = Checkpoint(tmp_path / "run.npz")
    interrupted.run(checkpoint, num_steps=300)
    again = interrupted.run(
        checkpoint, num_steps=300, callback=lambda progress: pytest.fail("nothing was left to do")
    )
    assert again.num_steps == 300
    longer = interrupted.run(checkpoint)
    assert_same_bits({"losses": longer.losses, **longer.params}, uninterrupted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run.npz"
    interrupted.run(Checkpoint(path), num_steps=100)
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.slow
def test_truncated_file_is_refused_by_name(saved, tmp_path, share):
    path = tmp_path / "cut.npz"
    path.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(ArgumentError, match=r"cut\.npz' is no whole checkpoint"):
        interrupted.run(Checkpoint(path), num_steps=100)


@pytest.mark.slow
def test_foreign_file_is_refused_by_name(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, weights=np.ones(3))
    with pytest.raises(ArgumentError, match=r"foreign\.npz' is no whole checkpoint"):
        interrupted.run(Checkpoint(path), num_steps=100)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("rng_key", {"rng_key": jax.random.key(8)}),
        ("objective", {"objective": ELBO(num_particles=2)}),
        ("num_chains", {"num_chains": 3}),
        ("data", {"y": np.zeros(20, np.float32)}),
        ("state", {"optim": optax.sgd(1e-2)}),
    ],
)
@pytest.mark.slow
def test_checkpoint_of_another_run_is_refused(saved, what, change):
    y = np.random.default_rng(0).normal(2.0, 1.0, 20).astype(np.float32)
    run = {
        "rng_key": jax.random.key(7),
        "objective": ELBO(),
        "optim": optax.adam(1e-2),
        "num_chains": 2,
        "y": y,
    } | change
    with pytest.raises(ArgumentError, match=f"of another run: its {what} is"):
        fit(
            run["rng_key"],
            interrupted.model,
            interrupted.guide,
            run["objective"],
            run["optim"],
            100,
            run["y"],
            num_chains=run["num_chains"],
            progress_bar=False,
            checkpoint=Checkpoint(saved),
        )


def test_no_partial_files_are_left(saved):
    assert [p.name for p in saved.parent.iterdir()] == ["run.npz"]


def test_arguments():
    with pytest.raises(ArgumentError, match="every"):
        Checkpoint("x.npz", every=0)
    with pytest.raises(ArgumentTypeError, match="checkpoint"):
        fit(
            jax.random.key(0),
            interrupted.model,
            interrupted.guide,
            ELBO(),
            optax.sgd(0.1),
            1,
            np.ones(20),
            checkpoint="x.npz",
        )
