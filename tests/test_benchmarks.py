"""The benchmarks run, and what they show that is not a time holds: a time is nobody's assertion here."""

import jax
import numpy as np
import pytest

from benchmarks import air, bernoullis, everywhere, first_number, harness, smoothing


@pytest.mark.parametrize("strategy", bernoullis.AIMS)
def test_the_noise_of_a_thousand_local_bernoullis(strategy):
    """Per-coordinate standard deviations, over 200 draws; charged with the whole cost they are over a
    thousand.
    """
    args = bernoullis.initial_params(), bernoullis.data()
    _, sd = bernoullis.moments(bernoullis.contenders()[strategy], args, 200)
    assert np.sqrt(np.mean(sd**2)) <= bernoullis.AIMS[strategy][0]


def test_the_images_of_air():
    """Images and their counts are what they say: as much ink as digits, none on an empty canvas, and the same
    twice.
    """
    canvases, counts = air.images(64, 3)
    ink = canvases.sum((1, 2))
    assert set(counts) == {0, 1, 2}
    assert (ink[counts == 0] == 0).all() and (ink[counts > 0] > 5).all()
    assert ink[counts == 2].mean() > 1.6 * ink[counts == 1].mean()
    np.testing.assert_array_equal(canvases, air.images(64, 3)[0])


@pytest.mark.parametrize("corner", [-1.0, 0.0, 1.0])
def test_a_drawn_patch_lies_where_it_should(corner):
    rows, columns = air.windows(np.array([[corner, 0.0]]))
    at = round((air.CANVAS - air.PATCH) / 2 * (1 + corner))
    np.testing.assert_allclose(rows[0], np.eye(air.CANVAS)[:, at : at + air.PATCH], atol=1e-6)
    np.testing.assert_allclose(columns[0], np.eye(air.CANVAS)[:, 8:16], atol=1e-6)


def test_one_table_of_every_benchmark(tmp_path):
    """From the saved reports: every verdict in them has its row; and one that failed says so and keeps what
    it printed.
    """
    reports = sorted(harness.RESULTS.glob("*.json"))
    failed = everywhere.run("nothing", tmp_path, quick=True, limit=100.0)
    assert (
        failed["status"] == "failed, see nothing.log"
        and "no such benchmark: nothing" in (tmp_path / "nothing.log").read_text()
    )
    lines = everywhere.table(
        harness.RESULTS,
        {path.stem: {"status": "ran", "seconds": 60.0} for path in reports} | {"nothing": failed},
    )
    assert lines.startswith("cpu (cpu), jax ") and "| nothing | failed, see nothing.log |" in lines
    verdicts = sum(
        path.read_text().count(f'"{verdict}"')
        for path in reports
        for verdict in ("met", "missed", "undecided")
    )
    assert sum(lines.count(f"| {verdict} |") for verdict in ("met", "missed", "undecided")) == verdicts > 50
    assert "| sgmcmc | 1000 steps, 13-100-1, batch 32, run time of ppl_ext over by hand |" in lines
    assert "| at least 20 | met |" in lines and "| at most 1.15 | met |" in lines


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["bernoullis", "chains", "air", "sgmcmc"])
def test_quick_runs(name, monkeypatch):
    # the compilation cache is the test run's business
    monkeypatch.setattr("jax.config.update", lambda *args: None)
    __import__(f"benchmarks.{name}", fromlist=["main"]).main(quick=True)


def test_the_contenders_of_smoothing():
    """They estimate the evidence that Kalman's filter computes, within a trace, and all of them the same
    number of trajectories.
    """
    y = smoothing.series(5)
    smoothing.check(
        {
            "ours": smoothing.ours(2000, functionals=smoothing.FUNCTIONALS),
            "by hand": smoothing.hand_coded(2000),
        },
        y,
    )
    exact = jax.jit(first_number.exactly())(jax.random.key(0), y)[0]
    assert abs(float(exact) - smoothing.log_evidence(y)) < 1e-4
    drawn = jax.jit(smoothing.trajectories(50))(jax.random.key(0), y)
    assert {np.shape(x) for x in jax.tree.leaves(drawn)} <= {(50,), (50, 5)}
