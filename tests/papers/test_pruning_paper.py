"""What the program on pruning by lot claims, at its small size."""

import numpy as np
import pytest

from tests.papers.programs import claims, module


@pytest.mark.slow
def test_shares_by_units_are_better_than_even_ones():
    """600 steps of a narrow network. Each is a share of 597 rows: standard error .02 at most."""
    [row] = claims("random_pruning")
    even, by_units = float(row.known.split(", ")[1]), float(row.ours)
    assert by_units - even > 4.5 * (2 * 0.25 / 597) ** 0.5


@pytest.mark.parametrize("even", [True, False])
def test_all_layers_keep_what_the_density_says(even):
    program, sizes = module("random_pruning"), (64, 40, 40, 10)
    weights = np.array([64 * 40, 40 * 40, 40 * 10])
    found = program.shares(sizes, 0.05, even)
    np.testing.assert_allclose(found @ weights, 0.05 * weights.sum())
    expected = np.array([1.0, 1.0, 1.0]) if even else np.array([104, 80, 50]) / weights
    np.testing.assert_allclose(found / found[0], expected / expected[0])


def test_a_layer_that_is_full_leaves_the_rest_to_others():
    program, weights = module("random_pruning"), np.array([64 * 40, 40 * 40, 40 * 10])
    found = program.shares((64, 40, 40, 10), 0.5, False)
    assert found[2] == 1.0 and (found < 1.0)[:2].all()
    np.testing.assert_allclose(found @ weights, 0.5 * weights.sum())


def test_weights_that_are_kept_lie_at_their_places_and_others_are_zero():
    program = module("random_pruning")
    at = program.places(np.random.default_rng(0), (6, 4, 3), (0.5, 0.25))
    assert [len(k) for k in at] == [12, 3] and all(len(set(k.tolist())) == len(k) for k in at)
    assert at[0].max() < 24 and at[1].max() < 12


@pytest.mark.slow
def test_wide_networks_need_few_weights():
    """By lot and by units, within .07 of all weights where the layers are wide."""
    *_, wide, _ = module("random_pruning").claims()
    assert float(wide[2]) > float(wide[1].split("weights ")[1]) - 0.07
