"""Plateau stops on noise without a trend, never while the loss still falls by more than its noise, and says
why.
"""

import numpy as np
import pytest

from ppl_ext.errors import ArgumentError
from ppl_ext.infer import Plateau

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py


def noise(num_steps, seed=0, chains=2):
    return np.random.default_rng(seed).normal(size=(chains, num_steps))


def test_stops_on_pure_noise_and_gives_the_numbers():
    reason = Plateau(window=100, patience=2)(noise(2000, seed=3))
    assert reason is not None
    assert reason.startswith("plateau: over the last 3 windows of 100 steps the loss changed by ")


@pytest.mark.parametrize("drop", [0.01, 0.1, 1.0])
def test_goes_on_while_the_loss_falls(drop):
    """A fall of 10 nats or more from window to window is 70 standard errors."""
    losses = noise(3000) - drop * np.arange(3000)
    rule = Plateau(window=1000, patience=2)
    assert all(rule(losses[:, :n]) is None for n in range(1, 3001, 250))


def test_one_chain_that_improves_keeps_all_going():
    losses = noise(3000)
    losses[1] -= 0.05 * np.arange(3000)
    assert Plateau(window=500)(losses) is None


def test_waits_for_patience():
    losses = np.concatenate([noise(1000) - 0.1 * np.arange(1000), noise(400, seed=5) - 100.0], axis=1)
    assert Plateau(window=200, patience=2)(losses) is None  # one flat window after the fall
    assert Plateau(window=200, patience=1)(losses) is not None


def test_looks_at_whole_windows_only():
    losses = noise(2000, seed=3)
    rule = Plateau(window=100)
    assert rule(losses) == rule(np.concatenate([losses, 1e6 * np.ones((2, 99))], axis=1))


def test_correlated_noise_is_not_taken_for_improvement():
    """An autoregressive loss (correlation .9) has four times the window noise that independent steps would
    have.

    Batch means see most of it: at most 15 % of windows pass for an improvement. With plain standard errors
    more than 25 % would.
    """
    rng, false, plain = np.random.default_rng(0), 0, 0
    for _ in range(400):
        x = rng.normal(size=1000)
        for t in range(1, 1000):
            x[t] += 0.9 * x[t - 1]
        false += Plateau(window=500, patience=1)(x[None]) is None
        a, b = x[:500], x[500:]
        plain += a.mean() - b.mean() > 2 * np.hypot(a.std(), b.std()) / np.sqrt(500)
    assert false / 400 < 0.15
    assert plain / 400 > 0.25


def test_tolerance():
    losses = noise(1000) - 0.01 * np.arange(1000)
    assert Plateau(window=250, patience=1)(losses) is None
    assert Plateau(window=250, patience=1, tolerance=5.0)(losses) is not None


@pytest.mark.parametrize("wrong", [{"window": 5}, {"patience": 0}, {"tolerance": -1.0}, {"z": -2.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Plateau(**wrong)
