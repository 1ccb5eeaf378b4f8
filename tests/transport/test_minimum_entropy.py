"""A greedy coupling: against all vertices of the transport polytope, and as a conditional law in a model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ppl_ext
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.transport import DiscreteCoupling, minimum_entropy_coupling

BITS = np.log(2.0)


def entropy(x):
    x = np.asarray(x, float).ravel()
    return -(x[x > 0] * np.log(x[x > 0])).sum()


def least_of_all(p, q):
    """The least entropy over the vertices of the polytope: a concave function has its minimum at one.

    A vertex has n + m - 1 cells, and no more, that may be positive.
    """
    n, m = len(p), len(q)
    rows = np.zeros((n + m, n * m))
    for i, j in itertools.product(range(n), range(m)):
        rows[i, i * m + j] = rows[n + j, i * m + j] = 1.0
    best, found = np.inf, 0
    for cells in itertools.combinations(range(n * m), n + m - 1):
        a = rows[:, cells]
        if np.linalg.matrix_rank(a) == n + m - 1:
            x = np.linalg.lstsq(a, np.concatenate([p, q]), rcond=None)[0]
            if x.min() > -1e-12:
                best, found = min(best, entropy(x.clip(0))), found + 1
    assert found
    return best


def pairs(num, n, m, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(n), num), rng.dirichlet(np.ones(m), num)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (3, 3)])
def test_the_bound_the_least_and_the_greedy_one(shape):
    excess = []
    with jax.enable_x64(True):
        p, q = pairs(25, *shape)
        couplings = jax.jit(jax.vmap(minimum_entropy_coupling))(p, q)
        for k in range(25):
            coupling = jax.tree.map(lambda x, k=k: x[k], couplings)
            least = least_of_all(p[k], q[k])
            assert float(coupling.least_entropy) <= least + 1e-9
            assert least - 1e-9 <= float(coupling.entropy) <= least + BITS * 0.531
            np.testing.assert_allclose(float(coupling.entropy), entropy(coupling.joint), rtol=1e-12)
            excess.append(float(coupling.entropy) - least)
    assert np.mean(excess) < 0.05 * BITS and np.mean(np.array(excess) < 1e-9) > 0.6


@pytest.mark.parametrize("shape", [(1, 4), (7, 5), (32, 32)])
def test_margins_are_exact(shape):
    p, q = pairs(100, *shape)
    for x64, rounding in ((False, 1e-6), (True, 1e-14)):
        with jax.enable_x64(x64):
            joint = np.asarray(jax.vmap(minimum_entropy_coupling)(p, q).joint, np.float64)
            assert (joint >= 0).all() and ((joint > 0).sum((1, 2)) <= sum(shape) - 1).all()
            np.testing.assert_allclose(joint.sum(2), p, atol=rounding)
            np.testing.assert_allclose(joint.sum(1), q, atol=rounding)


def test_400_random_pairs_are_near_the_bound():
    with jax.enable_x64(True):
        couplings = jax.vmap(minimum_entropy_coupling)(*pairs(400, 64, 64))
        found = jax.vmap(lambda c: (c.entropy, c.least_entropy))(couplings)
    excess = np.subtract(*map(np.asarray, found)) / BITS
    assert excess.min() > 0 and excess.mean() < 0.24 and excess.max() < 0.405


def test_the_bound_by_hand():
    """Sums .6, .9, 1 and .5, 1, 1: the least of them is .5, .9, 1."""
    coupling = minimum_entropy_coupling([0.3, 0.6, 0.1], [0.5, 0.5])
    np.testing.assert_allclose(coupling.least_entropy, entropy([0.5, 0.4, 0.1]), rtol=1e-6)
    same = minimum_entropy_coupling([0.2, 0.5, 0.3], [0.5, 0.3, 0.2])
    np.testing.assert_allclose(same.joint, [[0, 0, 0.2], [0.5, 0, 0], [0, 0.3, 0]], atol=1e-7)
    np.testing.assert_allclose([same.entropy, same.information], [entropy([0.2, 0.5, 0.3])] * 2, rtol=1e-6)


def test_conditionals_are_laws_of_a_model():
    p, q = jnp.array([0.4, 0.6, 0.0]), jnp.array([0.5, 0.3, 0.2])
    coupling = minimum_entropy_coupling(p, q)

    def model(y=None):
        x = numpyro.sample("x", dist.Categorical(probs=p), infer={"enumerate": "parallel"})
        numpyro.sample("y", coupling.given_first(x), obs=y)

    for y in range(3):  # the margin of y, with x summed out
        np.testing.assert_allclose(jnp.exp(ppl_ext.log_density(model, {}, y).total), q[y], rtol=1e-5)
    joint = np.asarray(coupling.joint)
    np.testing.assert_allclose(coupling.given_first(jnp.arange(2)).probs * p[:2, None], joint[:2], atol=1e-6)
    np.testing.assert_allclose(coupling.given_second(jnp.arange(3)).probs * q[:, None], joint.T, atol=1e-6)
    np.testing.assert_allclose(coupling.given_first(2).probs, q, atol=1e-6)  # never: the margin
    draws = coupling.given_first(jnp.ones(2000, int)).sample(jax.random.key(0))
    error = np.sqrt(joint[1] / 0.6 * (1 - joint[1] / 0.6) / 2000)
    assert (np.abs(np.bincount(draws, minlength=3) / 2000 - joint[1] / 0.6) <= 4.5 * error + 1e-6).all()


def test_other_joint_laws_have_the_same_reading():
    independent = DiscreteCoupling(jnp.outer(jnp.array([0.3, 0.7]), jnp.array([0.5, 0.25, 0.25])))
    np.testing.assert_allclose(independent.information, 0.0, atol=1e-6)
    np.testing.assert_allclose(
        independent.entropy, entropy([0.3, 0.7]) + entropy([0.5, 0.25, 0.25]), rtol=1e-6
    )


def test_derivatives_are_those_of_the_order_of_masses():
    p, q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.6, 0.4])

    def first(p):
        return minimum_entropy_coupling(p / p.sum(), q).joint[0, 0]

    # p_1 is below q_1, so that the cell is p_1 / (p_1 + p_2 + p_3)
    np.testing.assert_allclose(jax.grad(first)(p), [0.5, -0.5, -0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"p": [0.5, 0.6]}, ArgumentError, "p must sum to one.*it sums to 1.1.*Divide"),
        ({"q": [50.0, 50.0]}, ArgumentError, "q must sum to one.*it sums to 100"),
        ({"p": [0.5, -0.5, 1.0]}, ArgumentError, "p must be probabilities.*index 1 it is -0.5"),
        ({"q": [np.nan, 1.0]}, ArgumentError, "q must be probabilities.*index 0 it is nan"),
        ({"p": np.full((2, 2), 0.25)}, ArgumentError, "p must be a vector of probabilities"),
        ({"q": []}, ArgumentError, "q must be a vector"),
        ({"q": 1.0}, ArgumentError, "q must be a vector"),
        ({"p": "fair"}, ArgumentTypeError, "p must be an array of numbers"),
        ({"p": None}, ArgumentTypeError, "p must be an array of numbers"),
    ],
)
def test_what_is_no_law_is_refused_by_name(change, error, words):
    with pytest.raises(error, match=f"minimum_entropy_coupling: {words}"):
        minimum_entropy_coupling(**{"p": [0.5, 0.5], "q": [0.5, 0.5]} | change)


@pytest.mark.parametrize("value", [2, -1])
def test_values_that_there_are_not(value):
    coupling = minimum_entropy_coupling([0.5, 0.5], [0.25, 0.75])
    with pytest.raises(ArgumentError, match=f"given_first: the variable has the values 0 to 1, got {value}"):
        coupling.given_first([0, value])
    traced = jax.jit(lambda y: coupling.given_second(y).probs)(jnp.array([1, value]))
    assert np.isfinite(traced[0]).all() and np.isnan(traced[1]).all()


def test_a_value_is_a_number_of_a_row_and_no_mask():
    coupling = minimum_entropy_coupling([0.5, 0.5], [0.25, 0.75])
    for given in (coupling.given_first, lambda x: jax.jit(lambda x: coupling.given_first(x).probs)(x)):
        found = given(jnp.array([True, False]))
        np.testing.assert_array_equal(getattr(found, "probs", found), [[0.5, 0.5], [0.0, 1.0]])
    with pytest.raises(ArgumentError, match="given_second: values are numbered by integers, got 0.5"):
        coupling.given_second(0.5)
