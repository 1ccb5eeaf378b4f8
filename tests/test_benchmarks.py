"""The benchmarks run, and what they show that is not a time holds: a time is nobody's assertion here."""

import numpy as np
import pytest

from benchmarks import bernoullis


@pytest.mark.parametrize("strategy", bernoullis.AIMS)
def test_the_noise_of_a_thousand_local_bernoullis(strategy):
    """Per-coordinate standard deviations, over 200 draws; charged with the whole cost they are over a thousand."""
    args = bernoullis.initial_params(), bernoullis.data()
    _, sd = bernoullis.moments(bernoullis.contenders()[strategy], args, 200)
    assert np.sqrt(np.mean(sd**2)) <= bernoullis.AIMS[strategy][0]


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["bernoullis"])
def test_quick_runs(name, monkeypatch):
    monkeypatch.setattr("jax.config.update", lambda *args: None)  # the compilation cache is the test run's business
    __import__(f"benchmarks.{name}", fromlist=["main"]).main(quick=True)
