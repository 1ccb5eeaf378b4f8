"""Acquisitions against closed forms, numerical integrals and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from scipy.stats import norm

from ppl_ext import designs
from ppl_ext.designs.acquisitions.improvement import mean_above
from ppl_ext.designs.acquisitions.knowledge_gradient import hull_gain
from ppl_ext.errors import ArgumentError, ArgumentTypeError

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(120)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
NOISE = 0.6


@pytest.fixture(scope="module")
def law():
    x = np.array([0.0, 0.4, 0.9, 1.0, 2.2])
    covariance = 1.3 * np.exp(-((x[:, None] - x) ** 2)) + 1e-6 * np.eye(5)
    return dist.MultivariateNormal(jnp.array([0.2, 0.0, 0.3, -0.1, 0.1]), jnp.asarray(covariance))


@pytest.fixture(scope="module")
def moments(law):
    return np.asarray(law.mean, float), np.asarray(law.covariance_matrix, float)


@pytest.fixture(scope="module")
def draws(law):
    return law.sample(jax.random.key(1), (4000,))


def test_mean_of_a_positive_part():
    z = np.linspace(-11.0, 6.0, 200)
    far = norm.cdf(z) * z + norm.pdf(z)
    near = z > -6.0  # beyond, double precision cancels
    np.testing.assert_allclose(mean_above(jnp.asarray(z))[near], far[near], rtol=2e-4)
    grid = np.linspace(0.0, 3.0, 40001)
    integral = np.trapezoid(grid * norm.pdf(grid[:, None] + 9.0)[:, 0], grid)
    np.testing.assert_allclose(mean_above(jnp.array(-9.0)), integral, rtol=1e-3)


NORMAL = dist.Normal(jnp.zeros(3), 1.0).to_event(1)


def test_candidates_that_are_alike_and_little_noise():
    """Two of three are one and the same, within 1e-3, so that a covariance in single precision is singular
    beside a noise of 1e-4.
    """
    root = np.array([[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0], [0.0, 0.0, 0.5]], np.float32)
    law, covariance = dist.MultivariateNormal(jnp.zeros(3), scale_tril=root), root.astype(float) @ root.T
    found = designs.PredictiveEntropy(noise=1e-4)(law, pending=[0])
    spread = [np.eye(2) + covariance[np.ix_([0, i], [0, i])] / 1e-8 for i in range(3)]
    np.testing.assert_allclose(found, 0.5 * np.linalg.slogdet(spread)[1], rtol=1e-3)
    gain = designs.KnowledgeGradient(noise=1e-4, rng_key=jax.random.key(0), num_fantasies=4)(law, [0, 0])
    assert np.isfinite(gain).all()


@pytest.mark.parametrize("seed", range(6))
def test_gain_of_the_upper_hull(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 7))
    if seed % 2:  # ties: equal lines, equal slopes, three lines through one point
        a[1], b[1] = a[0], b[0]
        b[3] = b[2]
        a[4:], b[4:] = a.max() + 0.0 * a[4:], [-1.0, 0.0, 1.0]
    z = np.linspace(-12.0, 12.0, 400001)
    highest = np.full_like(z, -np.inf)
    for line in zip(a, b, strict=True):
        highest = np.maximum(highest, line[0] + line[1] * z)
    exact = np.trapezoid(highest * norm.pdf(z), z) - a.max()
    np.testing.assert_allclose(hull_gain(jnp.asarray(a), jnp.asarray(b)), exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("lower", [0.0, 0.1])
def test_parallel_lines_count_once(lower):
    """Of those with one slope the highest, wherever it stands."""
    exact = norm.pdf(0.0)
    lines = {"intercepts": [0.0, -lower, 0.0, -lower], "slopes": [0.0, 1.0, 1.0, 0.0]}
    for order in ([0, 1, 2, 3], [2, 3, 1, 0], [3, 2, 0, 1]):
        found = hull_gain(*(jnp.array(x)[jnp.array(order)] for x in lines.values()))
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_gain_of_lines_that_are_one():
    assert float(hull_gain(jnp.ones(4), jnp.full(4, 0.7))) == 0.0
    assert float(hull_gain(jnp.array([3.0]), jnp.array([2.0]))) == 0.0


class TestImprovement:
    def test_of_a_normal_law(self, law, moments, draws):
        mean, covariance = moments
        spread = np.sqrt(np.diag(covariance))
        for best in (None, 0.7):
            z = (mean - (mean.max() if best is None else best)) / spread
            exact = spread * (norm.pdf(z) + z * norm.cdf(z))
            np.testing.assert_allclose(designs.ExpectedImprovement(best)(law), exact, rtol=1e-4)
            found = designs.ExpectedImprovement(best)(draws)
            error = np.maximum(np.asarray(draws) - 0.7, 0).std(0).max() / 4000**0.5
            np.testing.assert_allclose(found, exact, atol=6 * error)

    def test_of_a_law_without_spread(self):
        law = dist.Normal(jnp.array([0.0, 2.0]), jnp.array([1e-30, 1e-30])).to_event(1)
        np.testing.assert_allclose(designs.ExpectedImprovement(1.0)(law), [0.0, 1.0], atol=1e-6)

    def test_with_pending(self):
        values = np.random.default_rng(0).normal(size=(6, 4))
        found = designs.ExpectedImprovement(0.3)(values, pending=[2, 0])
        exact = [np.mean([max(row[2], row[0], row[x], 0.3) - 0.3 for row in values]) for x in range(4)]
        np.testing.assert_allclose(found, exact, rtol=1e-5)

    def test_best_among_noise(self):
        values = np.random.default_rng(1).normal(size=(6, 4))
        found = designs.NoisyExpectedImprovement([1, 3])(values, pending=[0])
        exact = [
            np.mean(
                [
                    max(row.max() if x == 2 else max(row[[0, 1, 3]]), -9) - max(row[1], row[3])
                    for row in values
                ]
            )
            for x in range(4)
        ]
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)

    def test_of_nothing_measured_it_is_the_plain_one(self):
        values = np.random.default_rng(1).normal(size=(6, 4))
        none = np.zeros(0, int)
        np.testing.assert_allclose(
            designs.NoisyExpectedImprovement(none)(values), designs.ExpectedImprovement()(values), rtol=1e-6
        )


def gain_by_quadrature(mean, covariance, rows):
    """Knowledge gradient of measuring ``rows`` together, by a product of quadratures."""
    seen = covariance[np.ix_(rows, rows)] + NOISE**2 * np.eye(len(rows))
    moves = covariance[:, rows] @ np.linalg.inv(np.linalg.cholesky(seen)).T
    total = 0.0
    for k in itertools.product(range(len(NODES)), repeat=len(rows)):
        total += np.prod(WEIGHTS[list(k)]) * (mean + moves @ NODES[list(k)]).max()
    return total - mean.max()


class TestKnowledgeGradient:
    def test_of_a_normal_law(self, law, moments):
        exact = [gain_by_quadrature(*moments, [x]) for x in range(5)]
        np.testing.assert_allclose(designs.KnowledgeGradient(NOISE)(law), exact, rtol=0.02)

    def test_of_two_candidates_it_has_a_closed_form(self, moments):
        mean, covariance = moments[0][:2], moments[1][:2, :2]
        law = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance))
        apart = (covariance[0] - covariance[1]) / np.sqrt(np.diag(covariance) + NOISE**2)
        s, d = np.abs(apart), np.abs(mean[0] - mean[1])
        exact = s * (norm.pdf(d / s) - d / s * norm.cdf(-d / s))
        np.testing.assert_allclose(designs.KnowledgeGradient(NOISE)(law), exact, rtol=1e-4)

    def test_as_if_draws_were_normal(self, draws):
        values = np.asarray(draws, float)
        like = dist.MultivariateNormal(jnp.asarray(values.mean(0)), jnp.asarray(np.cov(values.T)))
        np.testing.assert_allclose(
            designs.KnowledgeGradient(NOISE, "gaussian")(draws),
            designs.KnowledgeGradient(NOISE)(like),
            rtol=1e-3,
        )

    @pytest.mark.parametrize("pending", [(), (1,)])
    def test_by_weights_of_draws(self, law, draws, pending):
        keys = jax.random.split(jax.random.key(3), 40)

        def gain(key):
            return designs.KnowledgeGradient(NOISE, num_fantasies=100, rng_key=key)(draws, list(pending))

        found = jax.lax.map(gain, keys)
        exact = designs.KnowledgeGradient(NOISE, rng_key=keys[0], num_fantasies=4000)(law, list(pending))
        error = np.asarray(found.std(0)) / 40**0.5
        # four thousand draws are not the law itself
        np.testing.assert_array_less(np.abs(np.asarray(found.mean(0)) - exact), 4.5 * error + 0.02)

    def test_of_three_draws_by_enumeration(self):
        values = np.array([[0.0, 1.0, 0.4], [0.9, 0.0, 0.1], [0.2, 0.3, 0.8]])
        keys = jax.random.split(jax.random.key(0), 200)
        exact = []
        for x in range(3):
            y = values[:, x, None] + NOISE * NODES  # (whose, node)
            logs = -0.5 * ((y[..., None] - values[:, x]) / NOISE) ** 2
            weights = np.exp(logs) / np.exp(logs).sum(-1, keepdims=True)
            exact.append(((weights @ values).max(-1) @ WEIGHTS).mean() - values.mean(0).max())
        found = jax.lax.map(
            lambda key: designs.KnowledgeGradient(NOISE, num_fantasies=99, rng_key=key)(values), keys
        )
        error = np.asarray(found.std(0)) / 200**0.5
        np.testing.assert_array_less(np.abs(np.asarray(found.mean(0)) - exact), 4.5 * error)

    def test_with_pending(self, law, moments):
        exact = [gain_by_quadrature(*moments, [3, x] if x != 3 else [3]) for x in (0, 4)]
        keys = jax.random.split(jax.random.key(5), 20)
        found = jax.lax.map(lambda key: designs.KnowledgeGradient(NOISE, rng_key=key)(law, [3]), keys)
        error = np.asarray(found.std(0)) / 20**0.5
        off = np.abs(np.asarray(found.mean(0))[[0, 4]] - exact)
        np.testing.assert_array_less(off, 4.5 * error[[0, 4]] + 0.003)  # that of the quadrature


class TestEntropy:
    def test_where_the_maximum_is_by_enumeration(self):
        values = np.array([[0.0, 1.0, 0.4], [0.9, 0.0, 0.1], [1.2, 0.3, 0.8]])
        top = np.eye(3)[values.argmax(1)]

        def entropy(p):
            return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)

        exact = []
        for x in range(3):
            y = values[:, x, None] + NOISE * NODES
            logs = -0.5 * ((y[..., None] - values[:, x]) / NOISE) ** 2
            weights = np.exp(logs) / np.exp(logs).sum(-1, keepdims=True)
            exact.append(entropy(top.mean(0)) - (entropy(weights @ top) @ WEIGHTS).mean())
        keys = jax.random.split(jax.random.key(0), 200)
        found = jax.lax.map(lambda key: designs.EntropySearch(NOISE, key, num_fantasies=99)(values), keys)
        error = np.asarray(found.std(0)) / 200**0.5
        np.testing.assert_array_less(np.abs(np.asarray(found.mean(0)) - exact), 4.5 * error)

    def test_with_pending_all_is_told(self):
        values = jnp.array([[9.0, 0.0, 5.0], [0.0, 9.0, 5.0]])
        told = designs.EntropySearch(0.1, jax.random.key(0))(values, [2])
        np.testing.assert_allclose(told, [np.log(2), np.log(2), 0.0], atol=1e-6)

    def test_of_a_normal_law_it_is_the_determinant(self, law, moments):
        covariance = moments[1]
        for pending in ([], [2], [2, 4]):
            exact = []
            for x in range(5):
                if x in pending:
                    continue
                rows = [*pending, x]
                exact.append(
                    0.5 * np.linalg.slogdet(covariance[np.ix_(rows, rows)] / NOISE**2 + np.eye(len(rows)))[1]
                )
            found = np.delete(np.asarray(designs.PredictiveEntropy(NOISE)(law, pending)), pending)
            np.testing.assert_allclose(found, exact, rtol=1e-4)

    def test_greedy_variance_on_a_process(self, law, moments):
        covariance, chosen = moments[1].copy(), []
        for _ in range(4):
            left = np.diag(covariance).copy()
            left[chosen] = -np.inf
            best = int(left.argmax())
            chosen.append(best)
            gain = covariance[best] / (covariance[best, best] + NOISE**2)
            covariance -= np.outer(gain, covariance[best])
        assert designs.next_measurements(designs.PredictiveEntropy(NOISE), law, 4).tolist() == chosen

    @pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
    def test_of_pairs_of_draws(self, shape):
        values = np.random.default_rng(0).normal(size=(5, 3, *shape))
        for pending in ([], [1]):
            exact = []
            for x in range(3):
                at = values[:, [*pending, x]].reshape(5, -1)
                squares = ((at[:, None] - at) ** 2).sum(-1)
                exact.append(-np.log(np.exp(-squares / (2 * NOISE**2)).mean(1)).mean())
            found = designs.PredictiveEntropy(NOISE)(values, pending)
            np.testing.assert_allclose(found, exact, rtol=1e-5)

    def test_two_modes_are_told_apart_first(self):
        """One coordinate differs between the modes, another varies within them, as much in all."""
        rng = np.random.default_rng(0)
        mode = rng.choice([-1.0, 1.0], 400)
        values = np.stack([0.1 * rng.normal(size=400), mode + 0.05 * rng.normal(size=400)], 1)
        values[:, 0] += 0.3 * rng.normal(size=400)
        assert designs.next_measurements(designs.PredictiveEntropy(0.3), values).tolist() == [1]
        after = designs.condition(values, 1, 1.0, 0.3, rng_key=jax.random.key(0))
        assert (after[:, 1] > 0).all()
        assert designs.next_measurements(designs.PredictiveEntropy(0.3), after).tolist() == [0]


class TestCondition:
    def test_a_normal_law(self, law, moments):
        mean, covariance = moments
        after = designs.condition(law, 3, 1.7, NOISE)
        precision = np.linalg.inv(covariance)
        precision[3, 3] += NOISE**-2
        exact = np.linalg.inv(precision)
        np.testing.assert_allclose(after.covariance_matrix, exact, atol=2e-3)
        there = exact @ (np.linalg.solve(covariance, mean) + np.eye(5)[3] * 1.7 / NOISE**2)
        np.testing.assert_allclose(after.mean, there, atol=2e-3)

    def test_draws_of_it(self, law, draws):
        exact = designs.condition(law, 3, 1.7, NOISE)
        values = np.asarray(designs.condition(draws, 3, 1.7, NOISE, rng_key=jax.random.key(0)))
        assert values.shape == draws.shape
        weights = np.exp(-0.5 * ((np.asarray(draws[:, 3]) - 1.7) / NOISE) ** 2)
        size = weights.sum() ** 2 / (weights**2).sum()
        error = np.sqrt(np.asarray(exact.variance) / size)
        np.testing.assert_array_less(np.abs(values.mean(0) - exact.mean), 4.5 * error)
        np.testing.assert_allclose(values.var(0), exact.variance, rtol=4.5 * (2 / size) ** 0.5)

    def test_draws_are_taken_by_their_weights(self):
        """Systematic: none is off its expected number by one or more."""
        values = jnp.array([[0.0], [1.0], [2.0], [3.0]])
        weights = np.exp(-0.5 * (np.arange(4) - 1.2) ** 2)
        expected = 4 * weights / weights.sum()
        counts = []
        for key in jax.random.split(jax.random.key(0), 400):
            taken = designs.condition(values, 0, 1.2, 1.0, rng_key=key)[:, 0]
            counts.append([(taken == k).sum() for k in range(4)])
        counts = np.array(counts)
        assert (np.abs(counts - expected) < 1).all()
        np.testing.assert_array_less(np.abs(counts.mean(0) - expected), 4.5 * counts.std(0) / 20 + 1e-6)


class TestManyAtOnce:
    def test_the_set_is_the_greedy_one(self):
        values = np.random.default_rng(2).normal(size=(8, 6))
        chosen: list[int] = []
        for _ in range(3):
            worth = [
                -np.inf if x in chosen else np.maximum(values[:, [*chosen, x]].max(1), 0.0).mean()
                for x in range(6)
            ]
            chosen.append(int(np.argmax(worth)))
        found = designs.next_measurements(designs.ExpectedImprovement(0.0), values, 3)
        assert found.tolist() == chosen

    def test_none_is_asked_for_twice(self, law):
        last = designs.next_measurements(designs.PredictiveEntropy(NOISE), law, 2, pending=[0, 4, 2])
        assert sorted(last.tolist()) == [1, 3]

    def test_where_most_are_worth_nothing_they_still_differ(self):
        """Of candidates that all are worth -inf, none is taken twice."""

        def feasible(functions, pending):
            return jnp.array([-jnp.inf, 2.0, -jnp.inf, -jnp.inf])

        found = designs.next_measurements(feasible, np.zeros((3, 4)), 3, pending=[0])
        assert found.tolist() == [1, 2, 3]

    def test_what_a_predictive_gave(self):
        def model(x):
            slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
            numpyro.deterministic("f", slope * x)

        gave = Predictive(model, num_samples=50)(jax.random.key(0), jnp.array([0.1, 2.0, 1.0]))
        gain = designs.KnowledgeGradient(0.1, "gaussian")
        assert designs.next_measurements(gain, gave["f"]).tolist() == [1]
        assert designs.next_measurements(gain, {"f": gave["f"]}).tolist() == [1]
        with pytest.raises(ArgumentError, match="one site, got those of .*'f'.*draws"):
            designs.next_measurements(gain, {"slope": gave["slope"], "f": gave["f"]})

    def test_under_jit(self, law, draws):
        @jax.jit
        def chosen(key, values, noise):
            after = designs.condition(values, 1, 0.5, noise, rng_key=key)
            kinds = (
                designs.ExpectedImprovement(),
                designs.KnowledgeGradient(noise, rng_key=key),
                designs.EntropySearch(noise, key),
                designs.PredictiveEntropy(noise),
            )
            return [designs.next_measurements(kind, after, 2) for kind in kinds]

        for found in chosen(jax.random.key(0), draws[:200], NOISE):
            assert len(set(found.tolist())) == 2


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "call, error, told",
    [
        (lambda v: designs.KnowledgeGradient(0.0), ArgumentError, "noise must be .* above zero, got 0"),
        (lambda v: designs.EntropySearch(-1.0, KEY), ArgumentError, "above zero, got -1"),
        (lambda v: designs.PredictiveEntropy(0), ArgumentError, "above zero, got 0"),
        (lambda v: designs.KnowledgeGradient(1.0, "exact"), ArgumentError, "'reweighted' or 'gaussian'"),
        (lambda v: designs.KnowledgeGradient(1.0, num_fantasies=0), ArgumentError, "num_fantasies"),
        (lambda v: designs.KnowledgeGradient(1.0)(v), ArgumentTypeError, "rng_key"),
        (lambda v: designs.ExpectedImprovement("mean"), ArgumentTypeError, "best"),
        (lambda v: designs.ExpectedImprovement()(v[0]), ArgumentError, r"\(draws, candidates\)"),
        (lambda v: designs.ExpectedImprovement()(v[None]), ArgumentError, "Flatten chains"),
        (lambda v: designs.ExpectedImprovement()(v[:1]), ArgumentError, "two draws or more"),
        (lambda v: designs.ExpectedImprovement()(v[:, :0]), ArgumentError, "one candidate or more"),
        (lambda v: designs.ExpectedImprovement()(v / (v - v[2, 1])), ArgumentError, "draw 2 at candidate 1"),
        (lambda v: designs.ExpectedImprovement()("f"), ArgumentTypeError, "functions"),
        (lambda v: designs.ExpectedImprovement()({}), ArgumentError, "one site, got those of none"),
        (lambda v: designs.ExpectedImprovement()(v, [4]), ArgumentError, "pending .* from 0 to 3, got"),
        (lambda v: designs.ExpectedImprovement()(v, [0.5]), ArgumentError, "pending must be numbers"),
        (lambda v: designs.NoisyExpectedImprovement([-1])(v), ArgumentError, "measured .* from 0 to 3"),
        (
            lambda v: designs.ExpectedImprovement()(dist.Gamma(jnp.ones(3), 1.0)),
            ArgumentTypeError,
            "one MultivariateNormal",
        ),
        (
            lambda v: designs.ExpectedImprovement()(dist.Normal(jnp.zeros(3), 1.0)),
            ArgumentTypeError,
            "one MultivariateNormal",
        ),
        (
            lambda v: designs.ExpectedImprovement()(dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(2)),
            ArgumentTypeError,
            "candidates alone",
        ),
        (
            lambda v: designs.EntropySearch(1.0, KEY)(dist.MultivariateNormal(v[0], jnp.eye(4))),
            ArgumentTypeError,
            "Draw from it",
        ),
        (
            lambda v: designs.ExpectedImprovement()(dist.MultivariateNormal(v[0], jnp.eye(4)), [1]),
            ArgumentTypeError,
            "with pending",
        ),
        (lambda v: designs.condition(v, 0, 1.0, 0.0, rng_key=KEY), ArgumentError, "noise"),
        (lambda v: designs.condition(v, 7, 1.0, 1.0, rng_key=KEY), ArgumentError, "candidate"),
        (lambda v: designs.condition(v, [0, 1], 1.0, 1.0, rng_key=KEY), ArgumentError, "one number"),
        (lambda v: designs.condition(v, 0, [1.0], 1.0, rng_key=KEY), ArgumentError, "value"),
        (lambda v: designs.condition(v, 0, np.nan, 1.0, rng_key=KEY), ArgumentError, "value must be finite"),
        (lambda v: designs.condition(NORMAL, 0, [1.0, 2.0, 3.0], 1.0), ArgumentError, r"one.*shape \(\)"),
        (lambda v: designs.condition(v, 0, 1.0, 1.0), ArgumentTypeError, "rng_key"),
        (
            lambda v: designs.condition(v, 0, 1e4, 1.0, rng_key=KEY),
            ArgumentError,
            "candidate 0 is more than a hundred standard deviations",
        ),
        (
            lambda v: designs.next_measurements(designs.ExpectedImprovement(), v, 5),
            ArgumentError,
            "asked for",
        ),
        (lambda v: designs.next_measurements("ei", v), ArgumentTypeError, "acquisition"),
        (lambda v: designs.next_measurements(lambda f, p: jnp.ones(3), v), ArgumentError, "shape"),
        (
            lambda v: designs.next_measurements(lambda f, p: jnp.array([1.0, jnp.nan, 2.0, 0.0]), v),
            ArgumentError,
            "NaN at candidate 1",
        ),
    ],
)
def test_bad_inputs_are_named(call, error, told):
    values = np.random.default_rng(0).normal(size=(5, 4))
    with np.errstate(all="ignore"), pytest.raises(error, match=told):
        call(values)
