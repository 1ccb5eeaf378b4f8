"""What the program on small starts claims, at its small size."""

import re

import jax.numpy as jnp
import numpy as np

from tests.papers.programs import claims, module


def test_a_small_start_is_worth_ranks():
    small, large, larger, normal = (
        [float(x) for x in re.findall(r"[\d.]+", row.ours)] for row in claims("small_initialization")
    )
    # the worst of the small ones is better than the best of all others
    assert small[2] < 0.02 and small[2] < 0.3 * min(large[1], larger[1], normal[1])
    assert larger[0] > large[0]


def test_the_measurements():
    """Without outliers they are those of the matrix, and a tenth is off."""
    program = module("small_initialization")
    a, y = program.measured(0, 0.0)
    exact = np.tensordot(np.asarray(a), program.TRUTH @ program.TRUTH.T, 2)
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)
    a, y = program.measured(0, 0.1)
    off = jnp.abs(y - np.tensordot(np.asarray(a), program.TRUTH @ program.TRUTH.T, 2)) > 1e-3
    assert 0.03 < off.mean() < 0.2
