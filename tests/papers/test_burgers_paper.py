"""What the program on intervals of a neural equation claims, at its small size, and its exact solution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


@pytest.mark.slow
def test_every_way_of_inference_says_how_often_it_covers():
    """Twelve problems, which have a standard error of .1 or so: the posterior's intervals are not far off."""
    viscosity, velocity, *others = claims("burgers_coverage")
    assert len(others) == 6
    for row, half_off, nine_off in ((viscosity, 4.5 * 0.145, 4.5 * 0.087), (velocity, 0.3, 0.2)):
        half, _, nine, _ = numbers(row.ours)
        assert abs(half - 0.5) < half_off and abs(nine - 0.9) < nine_off
        assert nine > half


def test_the_velocity_flows_by_the_equation_of_burgers():
    """By differences in float64, with many nodes: u_t + u u_x - ν u_xx is zero."""
    program = module("burgers_coverage")
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    heights, shifts, step = np.array([0.6, -0.9, 0.3, 0.8]), np.asarray(program.SHIFTS, float), 1e-3

    def u(x, t, nu=0.2):
        at = 2.0 * ((x + np.sqrt(2.0 * nu * t) * nodes)[:, None] - shifts)
        potential = np.logaddexp(at, -at) @ heights / 2.0
        weights = masses * np.exp(-potential / (2.0 * nu))
        return weights @ (np.tanh(at) @ heights) / weights.sum()

    for x, t in ((-0.7, 0.3), (0.2, 0.8), (1.1, 0.5)):
        here, right, left = u(x, t), u(x + step, t), u(x - step, t)
        in_time = (u(x, t + step) - u(x, t - step)) / (2 * step)
        flow = here * (right - left) / (2 * step) - 0.2 * (right - 2 * here + left) / step**2
        assert abs(in_time + flow) < 1e-4 * (1.0 + abs(in_time))
        # and the program's is that, up to its few nodes
        ours = program.velocity(0.2, jnp.asarray(heights), jnp.array(x), jnp.array(t))
        assert abs(float(ours) - here) < 2e-3


def test_the_potential_is_the_antiderivative_of_the_start():
    program = module("burgers_coverage")
    heights, x = jnp.array([0.6, -0.9, 0.3, 0.8]), jnp.linspace(-2.0, 2.0, 9)
    slope = jax.vmap(jax.grad(lambda x: program.start(heights, x)[1]))(x)
    np.testing.assert_allclose(slope, program.start(heights, x)[0], atol=1e-5)


def test_the_readings_are_the_velocity_and_a_batch_stands_for_all():
    program = module("burgers_coverage")
    free = jax.random.normal(jax.random.key(0), (2, 1, 5))
    y, zero = jnp.zeros((2, len(program.X))), jnp.zeros((2, 5))
    model = numpyro.handlers.seed(numpyro.handlers.substitute(program.model, data={"free": free}), 0)
    site = numpyro.handlers.trace(model).get_trace(y, zero)["y"]
    nu, heights = program.unpacked(free[1, 0])
    known = [program.velocity(nu, heights, x, t) for x, t in zip(program.X, program.T, strict=True)]
    np.testing.assert_allclose(site["fn"].loc[1], known, atol=1e-5)
    np.testing.assert_allclose(site["fn"].scale, program.NOISE)
    batch = numpyro.handlers.trace(model).get_trace(y, zero, 5)["y"]
    assert batch["fn"].loc.shape == (2, 5) and batch["scale"] == 2.0
    # a centre moves the prior, and nothing else
    moved = numpyro.handlers.trace(model).get_trace(y, zero + 1.0)
    np.testing.assert_allclose(moved["free"]["fn"].base_dist.loc, 1.0)
    np.testing.assert_allclose(moved["y"]["fn"].loc, site["fn"].loc)


def test_the_viscosity_has_the_law_that_is_said():
    program = module("burgers_coverage")
    nu, heights = program.unpacked(jnp.array([[0.0, 1.0, 2.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(nu, [0.1, 0.1 * np.e], rtol=1e-6)
    np.testing.assert_allclose(heights[0], [0.7, 1.4, 0.0, 0.0], rtol=1e-6)


def test_coverage_counts_what_lies_inside():
    """Normal draws around a truth that is drawn from the same law: nominal, within 4.5 errors of 2000."""
    program = module("burgers_coverage")
    rng = np.random.default_rng(0)
    half, half_error, nine, nine_error = numbers(
        program.told(rng.normal(size=(1000, 2000)), rng.normal(size=2000))
    )
    assert abs(half - 0.5) < 0.005 + 4.5 * 0.0112 and abs(nine - 0.9) < 0.005 + 4.5 * 0.0067
    assert half_error == 0.01 and nine_error == 0.01


@pytest.mark.slow
def test_the_posterior_covers_as_often_as_it_says():
    found = module("burgers_coverage").claims()
    for row in found[:2]:
        for share, level, least in zip(numbers(row[2])[::2], (0.5, 0.9), (0.08, 0.05), strict=True):
            error = max(numbers(row[2])[1 if level == 0.5 else 3], least)
            assert abs(share - level) < 3.5 * error
    several = found[4:6]  # points that agree say nothing of what is not known
    assert all(numbers(row[2])[2] < 0.7 for row in several)
