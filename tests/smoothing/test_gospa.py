"""The metric of sets against its definition, over all assignments."""

import itertools

import numpy as np
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.smoothing.tracking import gospa

RNG = np.random.default_rng(1)


def by_definition(x, y, c, p, alpha):
    if len(x) > len(y):
        x, y = y, x
    best = min(
        sum(min(np.linalg.norm(x[i] - y[k]), c) ** p for i, k in enumerate(picks))
        for picks in itertools.permutations(range(len(y)), len(x))
    )
    return (best + c**p / alpha * (len(y) - len(x))) ** (1.0 / p)


def over_assignments(x, y, c, p):
    """The form of alpha = 2: some pairs, and what is left over."""
    best = np.inf
    for k in range(min(len(x), len(y)) + 1):
        for a in itertools.combinations(range(len(x)), k):
            for b in itertools.permutations(range(len(y)), k):
                near = sum(np.linalg.norm(x[i] - y[j]) ** p for i, j in zip(a, b, strict=True))
                best = min(best, near + c**p / 2 * (len(x) + len(y) - 2 * k))
    return best ** (1.0 / p)


def sets():
    for n, m in [(0, 3), (2, 0), (1, 1), (3, 2), (2, 4), (4, 4)]:
        yield RNG.uniform(-4, 4, (n, 2)), RNG.uniform(-4, 4, (m, 2))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_it_is_the_metric_of_the_definition(p):
    for x, y in sets():
        found = gospa(x, y, 3.0, p)
        np.testing.assert_allclose(found.distance, over_assignments(x, y, 3.0, p), rtol=1e-12)
        np.testing.assert_allclose(found.distance, by_definition(x, y, 3.0, p, 2.0), rtol=1e-12)
        np.testing.assert_allclose(gospa(y, x, 3.0, p).distance, found.distance, rtol=1e-12)
        assert gospa(x, x, 3.0, p).distance == 0.0
        for alpha in (0.5, 1.0):
            other = gospa(x, y, 3.0, p, alpha)
            np.testing.assert_allclose(other.distance, by_definition(x, y, 3.0, p, alpha), rtol=1e-12)
            assert other.localisation is None and other.num_missed is None


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_its_parts(p):
    for x, y in sets():
        found = gospa(x, y, 3.0, p)
        total = found.localisation + found.missed + found.false
        np.testing.assert_allclose(found.distance**p, total, rtol=1e-12)
        assert found.num_missed == len(y) - len(found.pairs) and found.num_false == len(x) - len(found.pairs)
        apart = [np.linalg.norm(x[i] - y[j]) for i, j in found.pairs]
        np.testing.assert_allclose(found.localisation, np.sum(np.array(apart) ** p), rtol=1e-12)
        assert all(d < 3.0 for d in apart)


def test_which_part_is_which():
    found = gospa([[0.0]], [[1.0], [50.0], [60.0]], 4.0)
    assert found == (5.0, 1.0, 4.0, 0.0, 2, 0, found.pairs) and found.pairs.tolist() == [[0, 0]]
    assert gospa(np.zeros((0, 2)), np.zeros((0, 2)), 1.0).distance == 0.0


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_high_powers_are_those_of_the_largest(size):
    """Where the power of a distance is no number: near the largest of them, times the number to 1/p."""
    found = gospa([[0.0], [size]], [[0.1 * size], [0.8 * size]], size, p=400.0)
    np.testing.assert_allclose(found.distance, 0.2 * size, rtol=1e-6)
    assert found.pairs.tolist() == [[0, 0], [1, 1]]
    missed = gospa([[0.0]], [[0.1 * size], [0.8 * size]], size, p=400.0)
    np.testing.assert_allclose(missed.distance, size * 0.5 ** (1 / 400), rtol=1e-6)


def test_it_obeys_the_triangle():
    x, y, z = (RNG.uniform(-3, 3, (n, 2)) for n in (2, 3, 4))
    assert gospa(x, z, 2.0).distance <= gospa(x, y, 2.0).distance + gospa(y, z, 2.0).distance + 1e-12


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (([[0.0]], [[0.0]], 0.0), ArgumentError, "gospa: c"),
        (([[0.0]], [[0.0]], 1.0, 0.5), ArgumentError, "p must be at least 1"),
        (([[0.0]], [[0.0]], 1.0, 1.0, 3.0), ArgumentError, "alpha at most 2"),
        (([[0.0]], [[0.0, 1.0]], 1.0), ArgumentError, "coordinates"),
        (([0.0], [[0.0]], 1.0), ArgumentError, r"points \(n, d\)"),
        (([[np.nan]], [[0.0]], 1.0), ArgumentError, "padding is left out"),
        (("here", [[0.0]], 1.0), ArgumentTypeError, "estimates"),
    ],
)
def test_bad_arguments(args, error, words):
    with pytest.raises(error, match=words):
        gospa(*args)
