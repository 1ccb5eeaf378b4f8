"""What the programs on equations that oscillate fast claim, at their small sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.papers.programs import claims, module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_equations", "equations_in_the_plane"])
def test_fast_waves_are_found_and_the_equation_is_solved(name):
    """Few steps. A wave whose frequency is off by a tenth is wrong by a tenth of itself and more."""
    [row] = claims(name)
    error, *found = (float(x) for x in re.findall(r"\d+\.?\d*(?:e-\d+)?", row.ours))
    assert error < 5e-3
    assert found and all(abs(x - 100.0) < 0.2 for x in found)


WAVES = jnp.log(jnp.array([0.7, 0.2])), jnp.array([3.0, 11.0]), jnp.log(jnp.array([0.4, 2.0]))


@pytest.mark.parametrize(
    ("name", "order"), [("fast_equations", 2), ("fast_equations", 4), ("equations_in_the_plane", 2)]
)
def test_the_kernels_derivatives_are_those_of_jax(name, order):
    kernel = module(name).kernel
    with jax.enable_x64(True):
        waves = tuple(jnp.asarray(np.asarray(x), jnp.float64) for x in WAVES)
        lags = jnp.linspace(-1.0, 1.5, 7)

        def derivative(s):
            return kernel(0, s, *waves)

        for _ in range(order):
            derivative = jax.grad(derivative)
        expected = jax.jit(jax.vmap(derivative))(lags)
        np.testing.assert_allclose(kernel(order, lags, *waves), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["fast_equations", "equations_in_the_plane"])
def test_the_kernel_of_a_wave_is_its_formula(name):
    found = module(name).kernel(0, jnp.array(0.3), *WAVES)
    expected = 0.7 * np.exp(-0.5 * 0.75**2) * np.cos(0.9) + 0.2 * np.exp(-0.5 * 0.15**2) * np.cos(3.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_equations", "equations_in_the_plane"])
def test_every_solution_is_within_a_thousandth(name):
    for _, known, ours in module(name).claims():
        if known == "at most 1e-3":
            assert float(ours.split(";")[0]) < 1e-3
