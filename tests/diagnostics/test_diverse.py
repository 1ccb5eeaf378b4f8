"""A few of many draws: against the best subset where all can be tried, and on modes that are known."""

import itertools

import jax
import numpy as np
import pytest

from ppl_ext.diagnostics import diverse, diverse_subset
from ppl_ext.errors import ArgumentError, ArgumentTypeError

RNG = np.random.default_rng(0)
METHODS = ("farthest", "kmeans", "dpp")
KEY = jax.random.key(0)


def two_modes(rng, num=300, share=0.05):
    rare = rng.random(num) < share
    return rng.normal(size=(num, 2)) + 8.0 * rare[:, None], rare


@pytest.mark.parametrize("method", METHODS)
def test_a_mode_of_five_in_a_hundred_is_never_missed(method):
    rng, plain = np.random.default_rng(1), []
    for trial in range(30):
        draws, rare = two_modes(rng)
        chosen = diverse_subset(draws, 5, method, rng_key=jax.random.key(trial))
        assert len(set(chosen.tolist())) == 5
        assert rare[chosen].any() and not rare[chosen].all()
        plain += [not rare[rng.choice(300, 5)].any() for _ in range(50)]
    missed = 0.95**5
    assert abs(np.mean(plain) - missed) < 4.5 * (missed * (1 - missed) / len(plain)) ** 0.5 + 0.02


def test_no_draw_is_farther_than_twice_what_the_best_subset_allows():
    for _ in range(20):
        draws = RNG.normal(size=(11, 2))
        points = draws / draws.std(0)
        distances = np.linalg.norm(points[:, None] - points, axis=-1)

        def radius(rows, distances=distances):
            return distances[:, list(rows)].min(1).max()

        best = min(radius(rows) for rows in itertools.combinations(range(11), 3))
        found = diverse_subset(draws, 3)
        assert best <= radius(found) <= 2 * best


def test_farthest_points_by_hand():
    draws = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    assert draws[diverse_subset(draws, 4)].tolist() == [2.0, 10.0, 0.0, 1.0]


def test_means_are_of_where_draws_are_and_not_of_how_many():
    """Nine tenths on the first half of a line, and centres at the middles of its four quarters."""
    draws = np.concatenate([np.linspace(0.0, 1.0, 900), np.linspace(1.0, 2.0, 101)[1:]])
    chosen = draws[diverse_subset(draws, 4, "kmeans")]
    np.testing.assert_allclose(np.sort(chosen), [0.25, 0.75, 1.25, 1.75], atol=0.12)


def test_each_of_k_modes_is_drawn_from_once():
    """The kernel falls apart into blocks, and the leading eigenvectors are one of each."""
    modes = np.repeat(np.arange(4), [200, 50, 20, 10])
    draws = RNG.normal(size=(280, 3)) + 60.0 * np.eye(4)[modes][:, :3]
    for key in range(10):
        chosen = diverse_subset(draws, 4, "dpp", rng_key=jax.random.key(key))
        assert sorted(modes[chosen]) == [0, 1, 2, 3]
    one, other = (diverse_subset(draws, 4, "dpp", rng_key=jax.random.key(k)) for k in (0, 1))
    assert (np.sort(one) != np.sort(other)).any()


@pytest.mark.parametrize("method", METHODS)
def test_units_sites_and_repetitions_play_no_part(method):
    draws, _ = two_modes(np.random.default_rng(2), 120)
    chosen = diverse_subset(draws, 4, method, rng_key=KEY)
    sites = {"a": 2.0**10 * draws[:, 0], "b": draws[:, 1:, None], "constant": np.ones((120, 2))}
    assert set(diverse_subset(sites, 4, method, rng_key=KEY)) == set(chosen)
    often = diverse_subset(np.repeat(draws, 3, axis=0), 4, method, rng_key=KEY)
    assert set(often // 3) == set(chosen)  # a chain that stands still repeats its draws


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num", [1, 2, 5])
def test_all_of_few_draws(method, num):
    assert set(diverse_subset(np.arange(num) ** 2, num, method, rng_key=KEY)) == set(range(num))


def test_a_mean_without_draws_takes_the_nearest_that_is_left(monkeypatch):
    """Of means that start at one place some have no draws of their own."""
    monkeypatch.setattr(diverse, "_farthest", lambda points, k: np.zeros(k, int))
    chosen = diverse_subset(np.array([0.0, 1.0, 2.1, 3.3, 4.6]), 4, "kmeans")
    assert len(set(chosen.tolist())) == 4


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 0}, ArgumentError, "k must be a positive integer, got 0"),
        ({"k": 6}, ArgumentError, "6 draws are asked for, and only 5 of those given differ"),
        ({"draws": np.zeros(9)}, ArgumentError, "2 draws are asked for, and only 1"),
        ({"method": "nearest"}, ArgumentError, "method must be one of farthest, kmeans, dpp, got 'nearest'"),
        ({"method": "dpp"}, ArgumentTypeError, "rng_key must be one random key"),
        ({"draws": np.arange(4001.0), "method": "kmeans"}, ArgumentError, "at most 4000.*got 4001. Thin"),
        (
            {"draws": {"x": np.arange(3), "y": np.arange(4)}},
            ArgumentError,
            "'y' must have one entry for each",
        ),
        ({"draws": {"x": np.array([0.0, np.inf])}}, ArgumentError, "'x' must be finite"),
        ({"draws": {"x": 3.0}}, ArgumentError, "'x' must have one entry"),
        ({"draws": {}}, ArgumentError, "draws is empty"),
        ({"draws": "many"}, ArgumentTypeError, "'draws' must be an array of numbers"),
    ],
)
def test_what_has_no_subset_is_refused_by_name(change, error, words):
    with pytest.raises(error, match=f"diverse_subset: .*{words}"):
        diverse_subset(**{"draws": np.arange(5.0), "k": 2} | change)


def test_traced_draws_are_refused_by_name():
    with pytest.raises(ArgumentTypeError, match="'draws' is traced by jit"):
        jax.jit(lambda x: diverse_subset(x, 2))(np.arange(5.0))
