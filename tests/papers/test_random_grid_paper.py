"""What the program on random grids claims, at its small size, and the formulas that it is measured by."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.integrate import solve_bvp

import ppl_ext
from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


@pytest.mark.slow
def test_a_solver_learns_from_the_equation_and_bands_cover():
    """Few steps: no solution at all is off by 1, and the bands are of a network that knows little yet."""
    *errors, bands = claims("random_grid_processes")
    assert all(0.0 < numbers(row.ours)[0] < 0.2 for row in errors)
    half, nine, deviation = numbers(bands.ours)
    # 100 problems, of which each says some three things about its field
    assert abs(half - 0.5) < 0.15 and abs(nine - 0.9) < 0.1 and 0.02 < deviation < 0.45


def test_the_solution_solves_the_equation():
    program = module("random_grid_processes")
    z, at = jnp.array([0.5, -1.0, 0.7, 1.2]), np.linspace(0.0, 1.0, 30)

    def field(x):
        return np.asarray(program.field(z, jnp.atleast_1d(x)))

    def slopes(x, state):  # u, and the flow e^a u'
        return np.stack([state[1] * np.exp(-field(x)), -np.ones_like(x)])

    found = solve_bvp(
        slopes, lambda left, right: np.array([left[0], right[0]]), at, np.zeros((2, 30)), tol=1e-6
    )
    np.testing.assert_allclose(program.solution(z, jnp.asarray(at)), found.sol(at)[0], atol=2e-6)


def test_the_factor_is_the_residual_of_the_equation():
    """By differences of the sum of terms and of the field, in place of their derivatives."""
    program = module("random_grid_processes")
    z, w = jnp.array([0.5, -1.0, 0.7, 1.2]), jnp.asarray(np.random.default_rng(0).normal(size=program.TERMS))
    x, step = jnp.linspace(0.05, 0.95, program.POINTS), 0.01
    for end in program.terms(jnp.array([0.0, 1.0])):
        np.testing.assert_allclose(end, 0.0, atol=1e-6)
    values = {"z": z, "x": x, "w": w}
    with numpyro.handlers.trace() as record, numpyro.handlers.substitute(data=values):
        numpyro.handlers.seed(program.model, 0)()
    before, here, after = (np.asarray(program.terms(x + s) @ w, float) for s in (-step, 0.0, step))
    u1, u2 = (after - before) / (2 * step), (after - 2 * here + before) / step**2
    a1 = np.asarray(program.field(z, x + step) - program.field(z, x - step), float) / (2 * step)
    known = u2 + a1 * u1 + np.exp(-np.asarray(program.field(z, x)))
    site = record["equation"]
    # differences of single precision: 1e-7 / 1e-4 for the second one, and a bend of some 30² / 12 step²
    np.testing.assert_allclose(site["fn"].base_dist.loc, known, atol=0.05)
    np.testing.assert_allclose(site["value"], 0.0)
    # the weights that solve the equation leave the density that a residual of zero has
    fine = jnp.linspace(0.0, 1.0, 200)
    best = jnp.linalg.lstsq(program.terms(fine), program.solution(z, fine))[0]
    at_best = ppl_ext.log_density(program.model, {**values, "w": best}).by_site["equation"]
    assert at_best.sum() > 30 * (-0.5 * np.log(2 * np.pi) - np.log(program.MISFIT)) - 3.0


def test_a_network_reads_any_grid_in_any_order():
    program = module("random_grid_processes")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=200))
    order = rng.permutation(200)
    network = numpyro.handlers.seed(lambda x, y: program.network("any", x, y, 3), 0)
    said = network(x, jnp.sin(x))
    np.testing.assert_allclose(network(x[order], jnp.sin(x[order])), said, atol=1e-5)
    np.testing.assert_allclose(network(x[:100], jnp.sin(x[:100])), said, atol=0.1)


def test_bands_are_those_of_the_law_of_the_weights():
    """The deviation of the field, against draws of the law: 4.5 standard errors of 4000."""
    program = module("random_grid_processes")
    z, x = jnp.array([0.5, -1.0, 0.7, 1.2]), jnp.linspace(0.02, 0.98, program.POINTS)
    tree = numpyro.handlers.trace(numpyro.handlers.seed(program.inverse, 0))
    params = {
        name: site["value"] for name, site in tree.get_trace(None, x, x).items() if site["type"] == "param"
    }
    away, scale = program.off(params, z, x, jnp.zeros(program.POINTS))
    law = numpyro.handlers.seed(numpyro.handlers.substitute(program.inverse, data=params), 0)(
        None, x, program.solution(z, x)
    )[1]
    draws = jax.vmap(lambda z: program.field(z, program.AT))(law.sample(jax.random.key(0), (4000,)))
    np.testing.assert_allclose(draws.std(0), scale, rtol=4.5 / 8000**0.5)
    truth = program.field(z, program.AT)
    np.testing.assert_allclose(abs(draws.mean(0) - truth) / draws.std(0), away, atol=0.2)


def test_readings_are_of_what_the_solver_draws():
    program = module("random_grid_processes")
    first = numpyro.handlers.trace(numpyro.handlers.seed(program.guide, 0)).get_trace()
    params = {name: site["value"] for name, site in first.items() if site["type"] == "param"}
    x = jnp.linspace(0.02, 0.98, program.POINTS)
    record = numpyro.handlers.trace(numpyro.handlers.seed(program.readings, 1)).get_trace(params, x, x)
    assert all(site["type"] == "sample" for site in record.values())  # the solver is trained no more
    w, y = record["w"], record["y"]
    with numpyro.handlers.substitute(data=params):
        law = program.solver(record["z"]["value"], program.NODES)
    np.testing.assert_allclose(w["fn"].mean, law.mean, atol=1e-6)
    np.testing.assert_allclose(y["fn"].base_dist.loc, program.terms(x) @ w["value"], atol=1e-6)
    np.testing.assert_allclose(y["fn"].base_dist.scale, program.NOISE)


@pytest.mark.slow
def test_errors_and_bands_at_full_size():
    *errors, bands = module("random_grid_processes").claims()
    assert all(numbers(row[2])[0] < 0.05 for row in errors)
    half, nine, _ = numbers(bands[2])
    assert abs(half - 0.5) < 0.04 and abs(nine - 0.9) < 0.03
