"""What the programs on objectives and latent capacity claim."""

import numpy as np
import pytest

from tests.papers.programs import claims, module


def numbers(row):
    """The first number of the known figure, and of ours."""
    return float(row.known.split()[0]), float(row.ours.split()[0])


def assert_capacities(rows):
    """Constraints are met, and multipliers are slopes of the rate-distortion curve.

    A multiplier moves with the noise of the encoder's steps, by some percent.
    """
    assert len(rows) % 4 == 0
    for row in rows:
        known, ours = numbers(row)
        np.testing.assert_allclose(ours, known, rtol=0.02 if "nats" in row.claim else 0.15)


def test_capacities_are_met_and_multipliers_are_slopes():
    assert_capacities(claims("capacitron"))


def test_the_slope_of_the_curve_is_its_derivative():
    """The distortion at C, whose derivative the multiplier is."""
    of = module("capacitron")

    def distortion(c):
        residual = np.minimum(of.WITHIN, of.exact(of.WITHIN, c) * of.NOISE**2)
        return residual.sum() / (2 * of.NOISE**2)

    for c in (0.2, 1.0, 3.0, 6.0):
        slope = (distortion(c - 1e-4) - distortion(c + 1e-4)) / 2e-4
        np.testing.assert_allclose(slope, of.exact(of.WITHIN, c), rtol=1e-5)


@pytest.mark.slow
def test_capacities_at_full_size():
    from tools.papers import Claim

    assert_capacities([Claim(*row) for row in module("capacitron").claims()])
