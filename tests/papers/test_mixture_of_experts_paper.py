"""What the program on mixtures of experts claims, at its small size, and its parts against exact answers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests.papers.programs import claims, module


def numbers(text):
    return np.array([float(x) for x in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)])


def test_two_experts_come_in_as_the_root_of_the_rows():
    two, flat, told = (numbers(row.ours) for row in claims("mixture_of_experts"))
    voronoi, hellinger = two[:4:2], two[4::2]
    # ten times the rows: 0.32 of the distance, whose square is chi-square by 8 n, of nine parameters
    assert 0.2 < hellinger[1] / hellinger[0] < 0.5 and voronoi[1] < 0.6 * voronoi[0]
    for n, mean in zip((300, 3000), hellinger, strict=True):
        assert 0.6 < mean / (9 / (8 * n)) ** 0.5 < 1.4
    assert flat[0] < 1e-5 and told[0] > 1e-3


@pytest.mark.slow
def test_three_experts_for_two_are_slower_and_their_law_is_not():
    two, three, _, _ = (numbers(row[2]) for row in module("mixture_of_experts").claims())
    for law in (two[4::2], three[4::2]):
        assert 0.1 < law[1] / law[0] < 0.26  # 0.173 is the root
    assert two[2] / two[0] < 0.25 < three[2] / three[0] < 0.7  # and 0.416 the fourth root


def test_the_model_and_its_gradient_are_those_of_the_sum_over_experts():
    program, rng = module("mixture_of_experts"), np.random.default_rng(0)
    u = np.asarray(program.TRUTH) + 0.1 * rng.normal(size=(2, 5)) * [[1] * 5, [0, 0, 1, 1, 1]]
    x, y = rng.uniform(-1, 1, 20), rng.normal(size=20)
    weight = np.exp(x[:, None] * u[:, 0] + u[:, 1])
    parts = norm.pdf(y[:, None], x[:, None] * u[:, 2] + u[:, 3], 0.1 + np.exp(u[:, 4]))
    exact = -np.log((weight / weight.sum(1, keepdims=True) * parts).sum(1)).sum()
    params = {"gate": jnp.asarray(u[:1, :2], float), "rest": jnp.asarray(u[:, 2:], float)}
    data = jnp.asarray(x, float), jnp.asarray(y, float)

    def loss(params):
        return program.TASK[0].loss(jax.random.key(0), params, program.model, program.no_guide, *data, 2)

    def summed(params):
        gates = jnp.append(params["gate"], jnp.zeros((1, 2)), 0)
        return -program.law(jnp.column_stack([gates, params["rest"]]), data[0]).log_prob(data[1]).sum()

    value, slope = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for name, known in jax.grad(summed)(params).items():
        np.testing.assert_allclose(slope[name], known, rtol=1e-3, atol=1e-3)


def test_the_losses():
    program = module("mixture_of_experts")
    truth = np.asarray(program.TRUTH, float)
    assert program.voronoi(truth) < 1e-6 and program.hellinger(jnp.asarray(truth, float)) < 1e-3
    # all gates moved, and the order of the experts: the same law
    other = truth[::-1] + [0.7, -0.3, 0, 0, 0]
    assert program.voronoi(other) < 1e-6 and program.hellinger(jnp.asarray(other, float)) < 1e-3
    # an expert in two halves, whose levels are off by as much: weights add up, and each counts by its own
    halves = np.array([truth[0] - [0, np.log(2), 0, 0.1, 0], truth[0] - [0, np.log(2), 0, -0.1, 0], truth[1]])
    np.testing.assert_allclose(program.voronoi(halves), 0.1 * np.exp(0.5), rtol=1e-5)
    # one weight off by a factor
    heavier = truth + [[0, np.log(1.5), 0, 0, 0], [0] * 5]
    np.testing.assert_allclose(program.voronoi(heavier), 0.5 * np.exp(0.5), rtol=1e-5)
    # and one scale, whose w is exp(0.5)
    wider = truth + [[0] * 5, [0, 0, 0, 0, np.log(2.0)]]
    np.testing.assert_allclose(program.voronoi(wider), np.exp(-1.6), rtol=1e-5)


def test_hellinger_of_two_normal_laws():
    program = module("mixture_of_experts")
    same = jnp.array([[0.0, 0.0, 0.0, 0.5, -1.0]] * 2)  # both experts alike: one normal law
    x, y = jnp.zeros(1), program.Y[:, None]
    p, q = (np.exp(program.law(u, x).log_prob(y)[:, 0] / 2) for u in (same, same.at[:, 3].set(0.9)))
    scale = 0.1 + np.exp(-1.0)
    exact = np.sqrt(1 - np.exp(-(0.4**2) / (8 * scale**2)))
    np.testing.assert_allclose(np.sqrt(np.trapezoid((p - q) ** 2, program.Y) / 2), exact, rtol=1e-4)
    old, program.TRUTH = program.TRUTH, same
    try:
        found = program.hellinger.__wrapped__(same.at[:, 3].set(0.9))
    finally:
        program.TRUTH = old
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_the_flat_direction_is_that_of_temperature_and_gate():
    axis = module("mixture_of_experts").least_known(jnp.asarray)[1]
    known = np.array([4.0, 0, 0, 0, 0, 1.0]) / 17**0.5  # b and τ in proportion
    np.testing.assert_allclose(abs(axis @ known), 1.0, atol=1e-5)
