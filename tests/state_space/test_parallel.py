"""Exact answers at all times at once: the same as those of one step after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ExactFilter
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.smoothing import additive, smooth
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.prefixes import prefixes, tree_sum
from ppl_ext.state_space.small_matrices import added
from tests.algorithms.state_spaces import FINITE, LINEAR, finite, linear
from tests.state_space.test_exact import vector
from tests.state_space.test_kalman import (
    CASES,
    change,
    check_against_the_joint_law,
    hessian,
    joint_law,
    level,
    trend,
)

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(0)
Y = RNG.normal(size=11)
SEEN = np.arange(11) % 3 != 1
GAPS = np.where(SEEN, Y, np.nan)
TWO = np.where(RNG.uniform(size=(6, 2)) < 0.3, np.nan, RNG.normal(size=(6, 2)))


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def turned(y, seen):
    """A scan that runs backward, some of whose observations are masked."""

    def step(x, now):
        y_t, is_seen = now
        x = numpyro.sample("x", dist.Normal(0.9 * x + 0.2, 0.5))
        with mask(mask=is_seen):
            numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(1.0, 1.0)), (y, seen), reverse=True)


def convex(y):
    """With a factor that rises without end, one that is convex in the state, and one in its change."""

    def step(x, y_t):
        new = numpyro.sample("x", dist.Normal(0.8 * x, 0.5))
        numpyro.sample("y", dist.Normal(new, 1.0), obs=y_t)
        numpyro.factor("up", 0.3 * new + 0.2 * new**2)
        numpyro.factor("even", -0.7 * (new - x) ** 2)
        return new, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def wide(y):
    """Five states, two of which are seen, without a site before the scan."""
    by = jnp.eye(5) * 0.7 + jnp.eye(5, k=1) * 0.3

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(by @ x, 0.4).to_event(1))
        numpyro.sample("y", dist.Normal(x[:2].sum(), 0.2), obs=y_t)
        numpyro.sample("z", dist.Normal(x[3], 2.0), obs=y_t)
        return x, None

    scan(step, jnp.ones(5), y)


def one_way(y):
    """A chain whose states are left for good, so that most entries of its matrices are impossible."""
    law = jnp.array([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]])

    def step(k, y_t):
        k = numpyro.sample("k", dist.Categorical(law[k]))
        numpyro.sample("y", dist.Normal(1.0 * k, 0.8), obs=y_t)
        return k, None

    scan(step, 0, y)


def second_order(y):
    """A chain whose step reads two states back."""

    def step(carry, y_t):
        k, before = carry
        up = 0.2 + 0.3 * k + 0.4 * before
        new = numpyro.sample("k", dist.Categorical(jnp.stack([1 - up, up])))
        numpyro.sample("y", dist.Normal(2.0 * new, 1.0), obs=y_t)
        return (new, k), None

    scan(step, (0, 1), y)


MODELS = {
    "linear": (linear, (GAPS,), LINEAR),
    "finite": (finite, (GAPS,), FINITE),
    "turned": (turned, (Y, SEEN), {}),
    "of two states": (change, (Y, 0.7, 0.4), {}),
    "several sites": (vector, (TWO,), {}),
    "convex": (convex, (Y[:5],), {}),
    "wide": (wide, (Y,), {}),
    "one way": (one_way, (GAPS,), {}),
    "second order": (second_order, (Y,), {}),
    **{f"linear, {n} steps": (linear, (Y[:n],), LINEAR) for n in (1, 2, 3)},
    **{f"finite, {n} steps": (finite, (Y[:n],), FINITE) for n in (1, 2, 3)},
}


def both(model, args, parameters):
    return [
        jax.jit(lambda p=p: smooth_exactly(lower(model, args, {}, parameters), parallel=p))()
        for p in (False, True)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_all_that_is_known_is_the_same(name, double):
    one, all_at_once = both(*MODELS[name])
    assert np.isfinite(one.log_evidence)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-10, atol=1e-11), one, all_at_once)


DERIVED = {
    "of two states": lambda p: (change, (Y, p[0], p[1]), {}),
    "trend": lambda p: (trend, (Y, p[0], p[1]), {}),
    "finite": lambda p: (finite, (GAPS,), {"stay": p[0], "loud": p[1]}),
}


@pytest.mark.parametrize("name", DERIVED)
def test_derivatives(name, double):
    def found(p, parallel):
        model, args, parameters = DERIVED[name](p)
        s = smooth_exactly(lower(model, args, {}, parameters), parallel=parallel)
        return jnp.stack([s.log_evidence, s.mean[1].sum() + s.cross[2].sum()])

    one, all_at_once = (
        jax.jit(lambda p, k=k: jax.jacrev(found)(p, k))(jnp.array([0.7, 0.4])) for k in (False, True)
    )
    assert np.isfinite(one).all() and np.abs(one).min() > 1e-3
    np.testing.assert_allclose(all_at_once, one, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("parallel", [False, True])
def test_states_that_cannot_be_have_no_derivative(parallel, double):
    """Of a chain that begins in a known state the others are impossible at first."""

    def log_evidence(loud):
        def model(y):
            def step(k, y_t):
                k = numpyro.sample("k", dist.Categorical(jnp.array([[0.7, 0.3], [0.0, 1.0]])[k]))
                k = numpyro.sample("l", dist.Categorical(jnp.array([[1.0, 0.0], [0.0, 1.0]])[k]))
                numpyro.sample("y", dist.Normal(1.0 * k, loud), obs=y_t)
                return k, None

            scan(step, 0, y)

        return smooth_exactly(lower(model, (Y[:3],)), parallel=parallel).log_evidence

    def right(loud):
        changes = jnp.arange(3)[None] >= jnp.arange(4)[:, None]  # the first time in the second state
        prior = jnp.array([0.3, 0.7 * 0.3, 0.49 * 0.3, 0.343])
        return logsumexp(dist.Normal(1.0 * changes, loud).log_prob(Y[:3]).sum(1) + jnp.log(prior))

    found, expected = jax.jit(jax.value_and_grad(log_evidence))(0.8), jax.value_and_grad(right)(0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(("model", "moves", "noise"), CASES)
def test_small_noise_in_single_precision(model, moves, noise):
    """As of one step after the other: see test_kalman.py."""
    y = RNG.normal(size=30).astype(np.float32)
    found = jax.jit(lambda: smooth_exactly(lower(model, (y, moves, noise), {}), parallel=True))()
    check_against_the_joint_law(found, model, y, moves, noise)


@pytest.mark.parametrize(("moves", "noise"), [(1.0, 1e-3), (1e-3, 1.0)])
def test_derivatives_where_noise_is_small(moves, noise):
    y = np.random.default_rng(1).normal(size=30).astype(np.float32)

    def log_evidence(log_moves, log_noise):
        args = (y, jnp.exp(log_moves), jnp.exp(log_noise))
        return smooth_exactly(lower(level, args, {}), parallel=True).log_evidence

    found = jax.jit(jax.grad(log_evidence, (0, 1)))(jnp.log(moves), jnp.log(noise))
    h = 1e-4
    right = [
        (joint_law(level, y, moves * np.exp(h * a), noise * np.exp(h * b))[0]
         - joint_law(level, y, moves * np.exp(-h * a), noise * np.exp(-h * b))[0]) / (2 * h)
        for a, b in ((1, 0), (0, 1))
    ]  # fmt: skip
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_a_long_series_in_single_precision():
    """Sums and products of 3000 steps: errors do not add up."""
    y = np.random.default_rng(2).normal(size=3000)
    for model, parameters in ((linear, LINEAR), (finite, FINITE)):
        found = both(model, (y.astype(np.float32),), parameters)[1]
        with jax.enable_x64(True):
            right = both(model, (y,), parameters)[0]
        np.testing.assert_allclose(found.log_evidence, right.log_evidence, rtol=1e-6)
        np.testing.assert_allclose(found.mean, right.mean, atol=1e-5)


def test_data_that_are_impossible():
    def model(y):
        def step(k, y_t):
            k = numpyro.sample("k", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("y", dist.Categorical(jnp.eye(3)[k]), obs=y_t)
            return k, None

        scan(step, 0, y)

    one, all_at_once = both(model, (np.array([0, 1, 2, 0, 1]),), {})
    assert np.isneginf(all_at_once.log_evidence)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6), one, all_at_once)


def test_as_an_algorithm_and_as_a_smoother():
    y = Y[:4].astype(np.float32)
    for model, parameters in ((linear, LINEAR), (finite, FINITE)):
        one, all_at_once = (
            log_density(marginal(model, [*parameters], ExactFilter(parallel=p)), parameters, y)
            for p in (False, True)
        )
        np.testing.assert_allclose(all_at_once.total, one.total, rtol=1e-5)
        functionals = {"score": additive.score(), "square": lambda t, a, b: (t > 0) * a * b}
        runs = [
            smooth(model, functionals, backward="exact", parallel=p).run(
                jax.random.key(0), y, params=parameters
            )
            for p in (False, True)
        ]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5),
            *[r.expectations for r in runs],
        )
        draws = [r.sample(jax.random.key(1), num_samples=3) for r in runs]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-4), *draws)


@pytest.mark.parametrize(("model", "parameters"), [(linear, LINEAR), (finite, FINITE)])
def test_no_loop_goes_through_all_steps(model, parameters):
    y = np.zeros(50, np.float32)
    functionals = {"square": lambda t, a, b: a * b}

    def evidence(parallel):
        return log_density(
            marginal(model, [*parameters], ExactFilter(parallel=parallel)), parameters, y
        ).total

    def smoothing(parallel):
        smoother = smooth(model, functionals, backward="exact", parallel=parallel)
        return smoother.run(jax.random.key(0), y, params=parameters).expectations["square"]

    for run in (evidence, smoothing):
        loops = [str(jax.make_jaxpr(lambda p=p, run=run: run(p))()).count("length=49") for p in (False, True)]
        assert loops[0] > 0 and loops[1] == 0


def test_what_cannot_be_in_parallel_is_refused():
    with pytest.raises(ArgumentError, match="parallel=True is for backward='exact'"):
        smooth(linear, parallel=True)
    with pytest.raises(ArgumentTypeError, match="ExactFilter: parallel"):
        ExactFilter(parallel=1)
    with pytest.raises(ArgumentTypeError, match="smooth: parallel"):
        smooth(linear, backward="exact", parallel="yes")


@pytest.mark.parametrize("num", [0, 1, 2, 3, 4, 7, 8, 30])
def test_products_of_what_does_not_commute(num):
    """Of affine maps, from the left and from the right."""
    maps = RNG.integers(-1, 3, (num, 2)).astype(np.float32)

    def after(earlier, later):
        return jnp.stack([later[0] * earlier[0], later[0] * earlier[1] + later[1]])

    found = prefixes(after, jnp.asarray(maps), jnp.array([1.0, 0.0]))
    back = prefixes(after, jnp.asarray(maps), jnp.array([1.0, 0.0]), reverse=True)
    for i in range(num):
        for got, part in ((found[i], maps[: i + 1]), (back[i], maps[i:])):
            for x in (0.0, 1.0):
                right = x
                for slope, offset in part:
                    right = slope * right + offset
                np.testing.assert_allclose(got[0] * x + got[1], right, rtol=1e-5)


def test_a_sum_keeps_what_is_small():
    terms = np.concatenate([[1e8], np.full(1000, 0.01), [-1e8]]).astype(np.float32)
    np.testing.assert_allclose(tree_sum(jnp.asarray(terms)).value, 10.0, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 5])
def test_rotations_explain_what_they_can(n):
    """Of rows with several columns of data, and of a root with nothing in it."""
    rows, data, z = RNG.normal(size=(4, n)), RNG.normal(size=(4, 3)), RNG.normal(size=(n, 3))
    for root in (np.tril(RNG.normal(size=(n, n))), np.zeros((n, n))):
        with jax.enable_x64(True):
            factor, y, left = map(np.asarray, added(*map(jnp.asarray, (root, z, rows, data))))
        np.testing.assert_allclose(factor @ factor.T, root @ root.T + rows.T @ rows, atol=1e-12)
        np.testing.assert_allclose(factor @ y, root @ z + rows.T @ data, atol=1e-12)
        np.testing.assert_allclose(y.T @ y + left.T @ left, z.T @ z + data.T @ data, atol=1e-12)


@pytest.mark.slow
def test_second_derivatives_are_right_or_none():
    """NaN where JAX forgets the rule, and never a number that is wrong."""
    right, backwards, forwards = hessian(level, 0.7, 0.5, parallel=True)
    np.testing.assert_allclose(forwards, right, rtol=5e-3, atol=5e-3)
    seen = np.where(np.isnan(backwards), right, backwards)  # by the version of JAX
    np.testing.assert_allclose(seen, right, rtol=5e-3, atol=5e-3)
