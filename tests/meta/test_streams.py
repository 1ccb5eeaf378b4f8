"""Episodes as they come, and runs that are broken off: the same answer as without."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

from ppl_ext import log_density
from ppl_ext.errors import ArgumentError
from ppl_ext.meta import ArrivingStream, EpisodeStream, ExactLinearGaussian, LaplaceGGN, SimulatedStream, lift
from ppl_ext.meta.episode import Masked, Rows
from ppl_ext.runtime.checkpoint import Checkpoint
from tests.meta import interrupted
from tests.meta.test_lift import KEY, STREAM, curve, episodes, line, quiet


@pytest.fixture(scope="module")
def whole():
    return interrupted.run(None, 7)


@pytest.mark.slow
def test_a_run_goes_on_in_a_new_process_to_the_last_bit(whole, tmp_path):
    path = tmp_path / "run.npz"
    interrupted.run(path, 3)
    command = [sys.executable, "-m", "tests.meta.interrupted", str(path), "7"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split()[-1] == interrupted.bits(whole.state)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["losses"].sum(0), whole.losses)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(whole, tmp_path):
    path = tmp_path / "run.npz"
    interrupted.run(path, 3)
    same = interrupted.run(path, 3)  # made already: nothing is left to do
    assert int(same.state.step) == 3
    with pytest.raises(ArgumentError, match="its batch_size is 2, here 3"):
        lift(curve, ["rate", "share"]).fit(
            KEY,
            interrupted.data(),
            local_solver=LaplaceGGN(num_steps=2),
            batch_size=3,
            checkpoint=Checkpoint(path),
            progress_bar=False,
        )


@pytest.mark.slow
def test_a_saved_fit_adapts_and_goes_on(whole, tmp_path):
    lifted, path = lift(curve, ["rate", "share"]), whole.save(tmp_path / "fit.npz")
    loaded = lifted.load(path, interrupted.data(), whole.solver)
    assert interrupted.bits((loaded.niw, loaded.state.shared)) == interrupted.bits(
        (whole.niw, whole.state.shared)
    )
    np.testing.assert_array_equal(loaded.losses, whole.losses)
    new = interrupted.data()[0]
    np.testing.assert_array_equal(
        loaded.adapt(KEY, *new, num_samples=5).theta, whole.adapt(KEY, *new, num_samples=5).theta
    )
    assert int(interrupted.run(None, 1, init=loaded).state.step) == 8
    with pytest.raises(ArgumentError, match="its local sites is"):
        lift(line, ["w"]).load(path, episodes())
    with pytest.raises(ArgumentError, match="init is of another hierarchy"):
        quiet(lift(line, ["w"]), init=whole)


@pytest.mark.slow
def test_a_generator_is_the_list_in_its_order():
    """One pass, batches of two in order of arrival: what a list whose random order is the identity gives."""

    class InOrder(EpisodeStream):
        def batches(self, rng_key, batch_size, first_step=0):
            return (self.batch([i, i + 1], pad_to=8) for i in range(2 * first_step, len(self), 2))

    listed = quiet(lift(line, ["w"]), InOrder(episodes()), batch_size=2, num_steps=3)
    made = []

    def arriving():
        for episode in episodes():
            made.append(episode)
            yield episode

    arrived = quiet(
        lift(line, ["w"], num_episodes=6), ArrivingStream(arriving, peek=3), batch_size=2, num_steps=None
    )
    # at most: there are three batches
    passing = quiet(lift(line, ["w"], num_episodes=6), arriving(), batch_size=2, num_steps=50)
    assert arrived.losses.shape == passing.losses.shape == (3,)
    for a, b, c in zip(*(jax.tree.leaves(f.niw) for f in (listed, arrived, passing)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)


def test_only_a_batch_is_held():
    """The next episodes are made when they are needed."""
    made = []

    def arriving():
        for i in range(100):
            made.append(i)
            yield np.zeros(3, np.float32), np.zeros(3, np.float32)

    batches = ArrivingStream(arriving, peek=2).batches(KEY, 5)
    del made[:]
    assert next(batches).numbers.tolist() == [0, 1, 2, 3, 4] and len(made) == 5
    assert next(batches).numbers.tolist() == [5, 6, 7, 8, 9] and len(made) == 10
    later = ArrivingStream(arriving, peek=2).batches(KEY, 5, first_step=3)
    assert next(later).numbers.tolist() == [15, 16, 17, 18, 19]


def test_simulated_episodes_are_numbered_from_the_first_step_on():
    batches = SimulatedStream(lambda key: jax.random.normal(key, (4,))).batches(KEY, 3, first_step=2)
    assert [next(batches).numbers.tolist() for _ in range(2)] == [[6, 7, 8], [9, 10, 11]]


def test_whole_numbers_and_short_floats_are_numbers():
    whole, short = np.arange(3), np.asarray(jnp.ones(3, jnp.bfloat16))
    assert EpisodeStream([(whole, short), (whole[:2], short[:2])]).lengths.tolist() == [3, 2]


def test_padding_is_masked_in_whatever_plate_the_rows_are():
    def model(y):
        with numpyro.plate("rows", y.shape[0], dim=-2), numpyro.plate("columns", y.shape[1]):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    masked = log_density(Masked(model, Rows(("rows",), jnp.array(3))), {}, y)
    np.testing.assert_allclose(masked.total, norm.logpdf(y[:3]).sum(), rtol=1e-5)


def test_what_was_peeked_at_is_not_lost():
    """An iterator cannot be begun again: its first episodes, drawn to see their shapes, come first."""
    passing = ArrivingStream(iter([(np.full(3, i, np.float32),) for i in range(5)]), peek=3)
    assert [np.asarray(batch.args[0]).mean().item() for batch in passing.batches(KEY, 1)] == [
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
    ]


@pytest.mark.slow
def test_arrays_and_lists_are_streams():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    as_arrays, as_list = EpisodeStream.from_arrays(x, 2 * x), [(row, 2 * row) for row in x]
    a, b = (quiet(lift(line, ["w"]), s, num_steps=2).niw for s in (as_arrays, as_list))
    np.testing.assert_array_equal(a.loc, b.loc)


@pytest.mark.slow
def test_batch_sizes_change_between_runs():
    """2, then 3, then all: a run goes on with other batches, without failure."""
    fit = quiet(lift(line, ["w"]), batch_size=2, num_steps=3)
    for batch_size in (3, None):
        fit = quiet(lift(line, ["w"]), batch_size=batch_size, num_steps=2, init=fit, rate=0.5)
    assert int(fit.state.step) == 7 and np.isfinite(fit.losses).all()
    assert isinstance(fit.solver, ExactLinearGaussian) and len(fit.posteriors(STREAM).mean) == 6


class _Drift:
    """An episode model that reads from its object."""

    def __init__(self):
        self.scale = np.float32(1.0)

    def model(self, y):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(level, self.scale), obs=y)


@pytest.mark.parametrize("change", ["nothing", "outside", "episodes"])
def test_a_checkpoint_is_of_its_episodes_and_of_what_the_model_reads(change, tmp_path):
    drift, episodes = _Drift(), [np.arange(3.0, dtype=np.float32), np.ones(2, np.float32)]

    def run(num_steps):
        options = {
            "num_steps": num_steps,
            "progress_bar": False,
            "checkpoint": Checkpoint(tmp_path / "run.npz"),
        }
        return lift(drift.model, ["level"]).fit(
            KEY, episodes, local_solver=LaplaceGGN(num_steps=1), **options
        )

    run(2)
    if change == "nothing":
        assert len(run(3).losses) == 3
        return
    if change == "outside":
        drift.scale = np.float32(2.0)
    else:
        episodes[1] = 2 * episodes[1]
    with pytest.raises(
        ArgumentError, match="of another run: its " + ("program" if change == "outside" else "data")
    ):
        run(3)
