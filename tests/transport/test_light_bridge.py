"""The light Schrödinger bridge against integrals on a grid, the closed form between normal laws, and paths of
its own diffusion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from scipy.linalg import sqrtm

import ppl_ext
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.transport import LightSB, light_sb

EPSILON = 0.7
X = jnp.array([0.4, -0.3])
SIDE = jnp.linspace(-7.0, 7.0, 281)
GRID = jnp.stack(jnp.meshgrid(SIDE, SIDE, indexing="ij"), -1)
CELL = float(SIDE[1] - SIDE[0]) ** 2


def no_guide(starts, ends):
    pass


@pytest.fixture(scope="module")
def bridge():
    roots = jnp.array([[[0.9, 0.0], [0.3, 0.7]], [[0.6, 0.0], [-0.2, 1.1]], [[1.0, 0.0], [0.0, 0.4]]])
    centers = jnp.array([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]])
    return LightSB(jnp.array([0.3, -0.5, 0.1]), centers, roots, EPSILON)


def log_v(bridge, y):
    """The potential, written out."""
    each = [
        bridge.log_weights[k]
        + dist.MultivariateNormal(bridge.centers[k], EPSILON * bridge.roots[k] @ bridge.roots[k].T).log_prob(
            y
        )
        for k in range(3)
    ]
    return logsumexp(jnp.stack(each), axis=0)


def log_end(bridge, x, t):
    """Of the end y, given x at time t, without its constant: Brownian motion, tilted by the potential."""
    moved = -((GRID - x) ** 2).sum(-1) / (2 * EPSILON * (1 - t))
    return moved + (GRID**2).sum(-1) / (2 * EPSILON) + log_v(bridge, GRID)


class TestLaw:
    def test_potential_and_its_normalizer(self, bridge):
        np.testing.assert_allclose(
            bridge.log_potential(GRID[::40, ::40]), log_v(bridge, GRID[::40, ::40]), rtol=1e-5
        )
        exact = logsumexp(GRID @ X / EPSILON + log_v(bridge, GRID)) + jnp.log(CELL)
        np.testing.assert_allclose(bridge.log_normalizer(X), exact, rtol=1e-4)

    @pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
    def test_end_given_the_way(self, bridge, t):
        logs = log_end(bridge, X, t)
        exact = logs - logsumexp(logs) - jnp.log(CELL)
        near = exact > -12.0
        found = bridge.given(X, t).log_prob(GRID)
        np.testing.assert_allclose(found[near], exact[near], atol=2e-3)

    @pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
    def test_drift_is_the_slope_of_the_potential_that_is_left(self, bridge, t):
        def left(x):
            return logsumexp(log_end(bridge, x, t))

        np.testing.assert_allclose(bridge.drift(X, t), EPSILON * jax.grad(left)(X), atol=2e-3)

    @pytest.mark.parametrize("t", [0.999, 0.99999])
    def test_single_precision_serves_near_the_end(self, bridge, t):
        """The mean is near x, and the drift not near zero."""
        with jax.enable_x64(True):
            exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float), bridge)
            there = exact.given(np.asarray(X, float), t)
            exact, shares = exact.drift(np.asarray(X, float), t), there.mixing_distribution.probs
        np.testing.assert_allclose(bridge.drift(X, t), exact, rtol=1e-4)
        np.testing.assert_allclose(bridge.given(X, t).mixing_distribution.probs, shares, rtol=1e-4)

    def test_many_points_at_once(self, bridge):
        points = jax.random.normal(jax.random.key(0), (4, 3, 2))
        there = bridge.given(points, 0.2)
        assert there.batch_shape == (4, 3) and there.event_shape == (2,)
        one = bridge.given(points[1, 2], 0.2)
        np.testing.assert_allclose(there.mean[1, 2], one.mean, rtol=1e-5)
        np.testing.assert_allclose(
            bridge.drift(points, 0.2)[1, 2], bridge.drift(points[1, 2], 0.2), rtol=1e-4
        )
        np.testing.assert_allclose(
            bridge.log_normalizer(points)[1, 2], bridge.log_normalizer(points[1, 2]), rtol=1e-5
        )


class TestPaths:
    TIMES = jnp.array([0.25, 0.6, 1.0])

    def test_moments(self, bridge):
        paths = np.asarray(bridge.bridge(jax.random.key(0), jnp.broadcast_to(X, (20_000, 2)), self.TIMES))
        assert paths.shape == (20_000, 3, 2)
        weights = np.exp(np.asarray(log_end(bridge, X, 0.0)))
        weights = weights / weights.sum()
        mean = np.einsum("ij,ijk->k", weights, GRID)
        spread = np.einsum("ij,ijk,ijl->kl", weights, GRID - mean, GRID - mean)
        apart = paths - paths.mean(0)
        for i, s in enumerate(self.TIMES):
            error = paths[:, i].std(0) / 20_000**0.5
            np.testing.assert_array_less(np.abs(paths[:, i].mean(0) - X - s * (mean - X)), 4.5 * error)
            for j, t in enumerate(self.TIMES[: i + 1]):
                exact = s * t * spread + EPSILON * (t - s * t) * np.eye(2)
                products = apart[:, i, :, None] * apart[:, j, None]
                error = products.std(0) / 20_000**0.5
                np.testing.assert_array_less(np.abs(products.mean(0) - exact), 4.5 * error)

    def test_they_are_those_of_the_drift(self, bridge):
        """Small steps of the diffusion from one place end as its law says."""

        def step(x, time_and_key):
            t, key = time_and_key
            noise = jnp.sqrt(EPSILON / 200) * jax.random.normal(key, x.shape)
            return x + bridge.drift(x, t) / 200 + noise, None

        start = jnp.broadcast_to(X, (5000, 2))
        keys = jax.random.split(jax.random.key(1), 200)
        ends = np.asarray(jax.lax.scan(step, start, (jnp.arange(200) / 200, keys))[0])
        there = bridge.given(X)
        error = ends.std(0) / 5000**0.5
        np.testing.assert_array_less(np.abs(ends.mean(0) - there.mean), 4.5 * error + 0.01)
        np.testing.assert_allclose(ends.var(0), there.variance, rtol=4.5 * (3 / 5000) ** 0.5 + 0.02)


def between_normals(a, b, epsilon):
    """Mean's slope and covariance of the end given the start, of the plan between N(0, a) and N(0, b)."""
    root = np.real(sqrtm(a))
    inverse = np.linalg.inv(root)
    middle = np.real(sqrtm(4 * root @ b @ root + epsilon**2 * np.eye(len(a))))
    across = 0.5 * root @ middle @ inverse - 0.5 * epsilon * np.eye(len(a))
    slope = across.T @ np.linalg.inv(a)
    return slope, b - slope @ across


A = np.array([[1.0, 0.4], [0.4, 0.7]])
B = np.array([[0.6, -0.2], [-0.2, 1.4]])


@pytest.fixture(scope="module")
def samples():
    """Of two normal laws, with moments that are exact."""
    rng = np.random.default_rng(0)
    out = []
    for covariance, mean in ((A, [0.0, 0.0]), (B, [1.0, -2.0])):
        x = rng.normal(size=(400, 2))
        x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T
        out.append(x @ np.linalg.cholesky(covariance).T + mean)
    return out


class TestFit:
    def exact(self, epsilon):
        slope, left = between_normals(A, B, epsilon)
        roots = np.linalg.cholesky(left / epsilon)
        return LightSB(jnp.zeros(1), jnp.array([[1.0, -2.0]]), jnp.asarray(roots)[None], epsilon), slope

    @pytest.mark.parametrize("epsilon", [0.1, 1.0])
    def test_between_normal_laws_the_loss_is_least_at_the_closed_form(self, samples, epsilon):
        """One component: the loss sees means and covariances of the samples alone, which are exact."""
        best, slope = self.exact(epsilon)
        np.testing.assert_allclose(best.given(X).mean, slope @ X + np.array([1.0, -2.0]), rtol=1e-3)
        model = light_sb(epsilon=epsilon, num_components=1)
        params = {name: getattr(best, name) for name in ("log_weights", "centers", "roots")}

        def loss(params):
            substituted = handlers.substitute(model, data=params)
            return -ppl_ext.log_density(substituted, {}, *map(jnp.asarray, samples)).total

        x, y = map(jnp.asarray, samples)
        formula = best.log_normalizer(x).mean() - best.log_potential(y).mean()
        np.testing.assert_allclose(loss(params), formula, rtol=1e-5)
        slopes = jax.grad(loss)(params)
        np.testing.assert_allclose(slopes["centers"], 0.0, atol=2e-3 / epsilon)
        np.testing.assert_allclose(np.tril(slopes["roots"]), 0.0, atol=2e-3 / epsilon)

    def test_it_is_found(self, samples):
        best, slope = self.exact(1.0)
        model = light_sb(epsilon=1.0, num_components=1)
        settings = {"progress_bar": False, "num_chains": 2}
        found = fit(jax.random.key(0), model, no_guide, ELBO(), optax.adam(0.03), 800, *samples, **settings)
        points = jnp.asarray(samples[0][:50])
        for chain in range(2):
            there = model.bridge(found.params, chain)
            np.testing.assert_array_equal(there.centers, found.params["centers"][chain])
            mean = points @ slope.T + jnp.array([1.0, -2.0])
            np.testing.assert_allclose(there.given(points).mean, mean, atol=0.02)
        with pytest.raises(ArgumentError, match="chain must be one of 2, from 0 to 1, got None"):
            model.bridge(found.params)
        with pytest.raises(ArgumentError, match="chain must be one of 2, from 0 to 1, got 2"):
            model.bridge(found.params, 2)

    def test_by_numpyro(self, samples):
        best, _ = self.exact(1.0)
        model = light_sb(epsilon=1.0, num_components=1, batch_size=200)
        svi = SVI(model, no_guide, optax.adam(0.03), Trace_ELBO())
        found = svi.run(jax.random.key(0), 600, *map(jnp.asarray, samples), progress_bar=False)
        there = model.bridge(found.params).given(X)
        np.testing.assert_allclose(there.mean, best.given(X).mean, atol=0.1)

    def test_batches_are_unbiased(self, samples):
        best, _ = self.exact(1.0)
        params = {name: getattr(best, name) for name in ("log_weights", "centers", "roots")}
        # in order, so that a part of the rows is unlike the whole
        data = [jnp.asarray(x[np.argsort(x[:, 1])]) for x in (samples[0], samples[1][:300])]

        def loss(key, batch_size):
            model = handlers.substitute(
                light_sb(epsilon=1.0, num_components=1, batch_size=batch_size), data=params
            )
            return ppl_ext.log_density(model, {}, *data, rng_key=key).total

        keys = jax.random.split(jax.random.key(0), 2000)
        found = jax.vmap(lambda key: loss(key, 5))(keys)
        error = found.std() / 2000**0.5
        assert abs(found.mean() - loss(keys[0], None)) < 4.5 * error
        # of independent draws with replacement
        of_one = (best.log_normalizer(data[0]).var() + best.log_potential(data[1]).var()) / 5
        np.testing.assert_allclose(found.var(), of_one, rtol=0.2)


Y = np.ones((6, 2)) * np.arange(6)[:, None]
GOOD = {"log_weights": np.zeros(1), "centers": np.zeros((1, 2)), "roots": np.eye(2)[None]}


@pytest.mark.parametrize(
    "call, error, told",
    [
        (lambda: light_sb(epsilon=0.0), ArgumentError, "epsilon"),
        (lambda: light_sb(epsilon=-1.0), ArgumentError, "epsilon"),
        (lambda: light_sb(epsilon="1"), ArgumentTypeError, "epsilon"),
        (lambda: light_sb(epsilon=1.0, num_components=0), ArgumentError, "num_components"),
        (lambda: light_sb(epsilon=1.0, batch_size=0), ArgumentError, "batch_size"),
        (lambda: light_sb(epsilon=1.0)(Y, Y), ArgumentError, "ends must have 10 rows or more"),
        (lambda: light_sb(epsilon=1.0)(Y[:, 0], Y), ArgumentError, r"starts must be a sample \(n, d\)"),
        (lambda: light_sb(epsilon=1.0)(Y[:0], Y), ArgumentError, "starts must be a sample"),
        (lambda: light_sb(epsilon=1.0)("x", Y), ArgumentTypeError, "starts"),
        (lambda: light_sb(epsilon=1.0)(Y, Y[:, :1]), ArgumentError, "one dimension, got 2 and 1"),
        (
            lambda: light_sb(epsilon=1.0)(Y, np.where(Y == 3, np.nan, Y)),
            ArgumentError,
            "ends .* row 3 is not",
        ),
        (lambda: light_sb(epsilon=1.0).bridge({}), ArgumentError, "'log_weights' of 1 axes"),
        (
            lambda: light_sb(epsilon=1.0).bridge(GOOD | {"roots": np.eye(2)}),
            ArgumentError,
            "'roots' of 3 axes, got",
        ),
        (
            lambda: light_sb(epsilon=1.0).bridge(GOOD).given(np.ones(3)),
            ArgumentError,
            "x must have 2 numbers",
        ),
        (lambda: light_sb(epsilon=1.0).bridge(GOOD).given(np.ones(2), 1.0), ArgumentError, "below 1, got 1"),
        (lambda: light_sb(epsilon=1.0).bridge(GOOD).drift(np.ones(2), -0.1), ArgumentError, "drift: t"),
        (
            lambda: light_sb(epsilon=1.0).bridge(GOOD).bridge(jax.random.key(0), np.ones(2), [0.5, 0.2]),
            ArgumentError,
            "times must increase",
        ),
        (
            lambda: light_sb(epsilon=1.0).bridge(GOOD).bridge(jax.random.key(0), np.ones(2), [0.5, 1.2]),
            ArgumentError,
            "times must increase within",
        ),
        (
            lambda: light_sb(epsilon=1.0).bridge(GOOD).bridge(0, np.ones(2), [0.5]),
            ArgumentTypeError,
            "rng_key",
        ),
    ],
)
def test_bad_inputs_are_named(call, error, told):
    with handlers.seed(rng_seed=0), pytest.raises(error, match=told):
        call()
