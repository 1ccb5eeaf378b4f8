"""What programs on sets of compromises claim, at their small sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import ppl_ext
from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_repulsion_spreads_a_set_of_compromises():
    rows = claims("pareto_sets")
    assert len(rows) == 6
    areas, errors = np.array([numbers(row.ours) for row in rows]).reshape(2, 3, 2).transpose(2, 0, 1)
    best, whole = numbers(rows[2].known)
    assert best < whole and (areas < best).all()
    # a linear cost: the kernel alone does harm, and with its repulsion beats the same without
    alone, attracted, repelled = areas[0]
    off = np.hypot(errors[0], errors[0, 0])
    assert repelled - alone > 4.5 * off[2] and repelled - alone > 0.01
    assert alone - attracted > 4.5 * off[1]
    # Chebyshev's cost spreads by itself: nothing to gain
    assert np.abs(areas[1] - areas[1, 0]).max() < 0.005 and areas[1].min() > repelled
    # without the kernel, towards the exact minima: from either side, for training is short
    limits = [numbers(rows[k].known)[0] for k in (0, 3)]
    assert np.abs(areas[:, 0] - limits).max() < 0.01


def test_hypervolumes_are_exact():
    program = module("pareto_sets")
    linear, chebyshev, best, whole = program.exact()
    np.testing.assert_allclose(program.front(np.linspace(0.0, 1.0, 20_001)), whole, atol=1e-4)
    # two points and one that a point beats, and one out of reach
    points = np.array([[0.5, 0.4], [0.2, 0.9], [0.6, 0.5], [2.0, 0.1]])
    np.testing.assert_allclose(program.hypervolume(points), 0.6 * 0.7 + 0.3 * 0.2)
    bounds, rng = [(0.0, 1.0)] * 20, np.random.default_rng(0)
    for _ in range(3):
        found = minimize(lambda root: -program.front(root), np.sort(rng.uniform(size=20)), bounds=bounds)
        assert -found.fun < best + 1e-6
    assert max(linear, chebyshev) < best
    # the minima of both costs along the front, on a grid
    root = np.linspace(0.0, 1.0, 20_001)
    f = np.stack([root**2, 1.0 - root])
    for known, cost in zip((linear, chebyshev), (np.sum, np.max), strict=True):
        least = [root[cost(np.asarray(r, float)[:, None] * f, axis=0).argmin()] for r in program.EVEN]
        np.testing.assert_allclose(program.front(np.array(least)), known, atol=2e-4)


def test_a_solution_on_the_front_costs_as_the_front_says():
    program = module("pareto_sets")
    x = jnp.zeros(program.DIM).at[0].set(0.25)
    np.testing.assert_allclose(program.zdt1(x), [0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(program.zdt1(x.at[1:].set(1.0)), [0.25, 10 - 2.5**0.5], rtol=1e-6)
    # where r₂ = 2 r₁ √f₁ the first coordinate rests; the others fall by r₂ (1 - √f₁ / 2) 9 / 29 / τ
    r = jnp.array([0.5, 0.5])
    score = jax.grad(lambda x: ppl_ext.log_density(program.solution, {"x": x}, r, "linear").total)(x)
    np.testing.assert_allclose(score[0], 0.0, atol=1e-5)
    np.testing.assert_allclose(score[1:], -0.5 * 0.75 * 9 / 29 / program.TAU, rtol=1e-5)


def test_the_direction_is_that_of_svgd():
    """By hand, sums in loops and the kernel's gradient in finite differences."""
    program = module("pareto_sets")
    x = np.random.default_rng(0).uniform(0.2, 0.8, (4, program.DIM))
    score = np.random.default_rng(1).normal(size=x.shape)

    def zdt1(x):
        g = 1 + 9 * x[1:].mean()
        return np.array([x[0], g - (g * x[0]) ** 0.5])

    f = np.stack([zdt1(row) for row in x])
    width = 0.1 * np.median(np.linalg.norm(f[:, None] - f, axis=-1)) ** 2 / np.log(4)

    def k(a, b):
        return np.exp(-((a - b) ** 2).sum() / width)

    shifts = 1e-6 * np.eye(program.DIM)
    for repulsion in (0.0, 2.0):
        found = program.direction(jnp.asarray(x), jnp.asarray(score), repulsion)
        for i in range(4):
            total = np.zeros(program.DIM)
            for j in range(4):
                rise = [k(zdt1(x[i] + d), f[j]) - k(zdt1(x[i] - d), f[j]) for d in shifts]
                total += k(f[j], f[i]) * score[j] - repulsion * np.array(rise) / 2e-6
            np.testing.assert_allclose(found[i], total / 4, rtol=1e-3, atol=2e-4)
