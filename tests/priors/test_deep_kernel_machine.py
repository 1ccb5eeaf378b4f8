"""Machines of Gram matrices: against the NNGP, a closed form, and dense formulas, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.priors import DeepKernelMachine, Target, nngp_kernel

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(7, 3)), RNG.normal(size=(4, 3))
Y = np.sin(2.0 * X[:, :2])
SCALES = {"weight_scale": 1.3, "bias_scale": 0.4}
NOISE = 0.05


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def log_prob(k, y=Y):
    law = dist.MultivariateNormal(0.0, k + NOISE * np.eye(len(k)))
    return float(law.log_prob(y.T).sum())


@pytest.mark.parametrize(("depth", "activation"), [(1, "relu"), (2, "erf"), (3, "relu")])
def test_a_large_nu_is_the_nngp(depth, activation):
    def kernel(a, b):
        return np.asarray(nngp_kernel(a, b, depth=depth, activation=activation, **SCALES))

    machine = DeepKernelMachine(depth=depth, nu=1e6, activation=activation, **SCALES)
    found = machine.fit(X, Y, noise=NOISE, num_steps=10)
    np.testing.assert_allclose(found.objective[0], log_prob(kernel(X, X)), atol=1e-6)
    gain = np.linalg.solve(kernel(X, X) + NOISE * np.eye(7), kernel(X, NEW)).T
    np.testing.assert_allclose(found.mean(NEW), gain @ Y, atol=1e-3)
    covariance = kernel(NEW, NEW) - gain @ kernel(X, NEW)
    np.testing.assert_allclose(found.cov(NEW), np.kron(covariance, np.eye(2)), atol=1e-3)
    law = found.predict(NEW, observed=True)
    np.testing.assert_allclose(law.covariance_matrix[0], covariance + NOISE * np.eye(4), atol=1e-3)
    np.testing.assert_allclose(law.loc, (gain @ Y).T, atol=1e-3)


@pytest.mark.parametrize("nu", [2.5, 6.0])
def test_one_linear_layer_has_its_optimum_in_closed_form(nu):
    """With G = R Γ Rᵀ and no noise, ν Γ² + (P - ν) Γ = R⁻¹ Y Yᵀ R⁻ᵀ."""
    x, y = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 2))
    machine = DeepKernelMachine(depth=1, nu=nu, activation="linear", bias_scale=0.0)
    found = machine.fit(x, y, noise=1e-8, num_steps=400)
    root = np.linalg.cholesky(x @ x.T / 6)
    seen = np.linalg.solve(root, y)
    values, vectors = np.linalg.eigh(seen @ seen.T)
    moved = (nu - 2 + np.sqrt((nu - 2) ** 2 + 4 * nu * np.maximum(values, 0.0))) / (2 * nu)
    known = root @ (vectors * moved) @ vectors.T @ root.T
    gram = machine.covariances(found.factors, found.inducing, found.x)[0]
    np.testing.assert_allclose(gram, known, atol=1e-4 * np.abs(known).max())


def relu(a, b, cross):
    """Expected products of two layers' rows, by the angle between them."""
    size = np.sqrt(np.outer(a, b))
    angle = np.arccos(np.clip(cross / size, -1.0, 1.0))
    value = size * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return 1.3**2 * value + 0.4**2


def divergence(g, k):
    ratio = np.linalg.solve(k, g)
    return 0.5 * (np.trace(ratio) - len(g) - np.linalg.slogdet(ratio)[1])


X_WIDE = RNG.normal(size=(4, 6))
Y_WIDE = RNG.normal(size=(4, 1))


@pytest.fixture(scope="module")
def two_layers():
    with jax.enable_x64(True):
        machine = DeepKernelMachine(depth=2, nu=(3.0, 5.0), **SCALES)
        return machine.fit(X_WIDE, Y_WIDE[:, 0], noise=NOISE, num_steps=400)


def grams(found, new):
    """Covariances of training and new rows in both layers, by the conditionals; and the first priors."""

    def affine(a, b):
        return 1.3**2 * a @ b.T / 6 + 0.4**2

    weights = np.asarray(found.factors[0] @ found.factors[0].T)
    every = np.concatenate([X_WIDE, new])
    phi = np.concatenate([1.3 * every / 6**0.5, np.full((len(every), 1), 0.4)], 1)
    first = phi @ weights @ phi.T
    prior = relu(np.diag(first), np.diag(first), first)
    root = np.linalg.cholesky(prior[:4, :4])
    second = root @ np.asarray(found.factors[1] @ found.factors[1].T) @ root.T
    gain = np.linalg.solve(prior[:4, :4], prior[:4, 4:]).T
    cross = gain @ second
    rest = prior[4:, 4:] - gain @ prior[:4, 4:] + cross @ gain.T
    whole = np.block([[second, cross.T], [cross, rest]])
    return affine(X_WIDE, X_WIDE), first, prior, whole, relu(np.diag(whole), np.diag(whole), whole)


def test_the_objective_is_that_of_gram_matrices(two_layers):
    start, first, prior, second, output = grams(two_layers, np.zeros((0, 6)))
    known = log_prob(output, Y_WIDE) - 3.0 * divergence(first, start) - 5.0 * divergence(second, prior)
    np.testing.assert_allclose(two_layers.objective[-1], known, atol=1e-4)
    assert known > two_layers.objective[0] + 0.1


def test_new_rows_follow_by_the_conditionals(two_layers):
    new = RNG.normal(size=(3, 6))
    *_, output = grams(two_layers, new)
    gain = np.linalg.solve(output[:4, :4] + NOISE * np.eye(4), output[:4, 4:]).T
    np.testing.assert_allclose(two_layers.mean(new), gain @ Y_WIDE[:, 0], atol=1e-6)
    np.testing.assert_allclose(two_layers.cov(new), output[4:, 4:] - gain @ output[:4, 4:], atol=1e-6)


def test_inducing_rows_give_the_lower_bound_and_predictor_of_titsias():
    def kernel(a, b):
        return np.asarray(nngp_kernel(a, b, depth=2, activation="relu", **SCALES))

    z = X[:3] + 0.1
    machine = DeepKernelMachine(depth=2, nu=1e8, **SCALES)
    found = machine.fit(X, Y[:, 0], noise=NOISE, inducing=z, num_steps=3)
    uu, ux = kernel(z, z), kernel(z, X)
    low = ux.T @ np.linalg.solve(uu, ux)
    bound = log_prob(low, Y[:, :1]) - np.trace(kernel(X, X) - low) / (2 * NOISE)
    np.testing.assert_allclose(found.objective[0], bound, atol=1e-6)
    inner = np.linalg.inv(uu + ux @ ux.T / NOISE)
    np.testing.assert_allclose(found.mean(NEW), kernel(NEW, z) @ inner @ ux @ Y[:, 0] / NOISE, atol=1e-4)
    known = kernel(NEW, NEW) - kernel(NEW, z) @ (np.linalg.inv(uu) - inner) @ kernel(z, NEW)
    np.testing.assert_allclose(found.cov(NEW), known, atol=1e-4)


def test_layers_move_further_the_smaller_nu():
    found = [DeepKernelMachine(depth=2, nu=nu, **SCALES).fit(X, Y, noise=NOISE) for nu in (100.0, 10.0, 2.0)]
    last = [float(f.objective[-1]) for f in found]
    assert last == sorted(last) and last[0] > found[0].objective[0]
    moved = [max(float(jnp.abs(t - jnp.eye(len(t))).max()) for t in f.factors) for f in found]
    assert moved == sorted(moved)


def test_it_is_a_target(two_layers):
    assert isinstance(two_layers, Target)
    draws = np.asarray(two_layers.sample(jax.random.key(0), X_WIDE, 20_000))
    spread = np.sqrt(np.diag(two_layers.cov(X_WIDE)))
    assert (np.abs(draws.mean(0) - two_layers.mean(X_WIDE)) < 4.5 * spread / 20_000**0.5).all()
    several = DeepKernelMachine(depth=1, nu=2.0).fit(X, Y, noise=NOISE, num_steps=2)
    assert several.sample(jax.random.key(0), NEW, 5).shape == (5, 4, 2) and several.mean(NEW).shape == (4, 2)
    assert several.cov(NEW).shape == (8, 8)


def test_single_precision():
    with jax.enable_x64(False):
        found = DeepKernelMachine(depth=2, nu=1e6, **SCALES).fit(X, Y, noise=NOISE, num_steps=5)
        mean = found.mean(NEW)
    k = np.asarray(nngp_kernel(np.concatenate([X, NEW]), depth=2, activation="relu", **SCALES))
    known = k[7:, :7] @ np.linalg.solve(k[:7, :7] + NOISE * np.eye(7), Y)
    np.testing.assert_allclose(mean, known, atol=1e-3)


ONE = DeepKernelMachine(depth=1, nu=2.0)
MISTAKES = {
    "depth": (lambda: DeepKernelMachine(depth=0, nu=1.0), ArgumentError, "depth must be a positive integer"),
    "nu": (lambda: DeepKernelMachine(depth=1, nu=0.0), ArgumentError, "nu must be positive and finite"),
    "infinite": (lambda: DeepKernelMachine(depth=1, nu=np.inf), ArgumentError, "nu must be positive and fin"),
    "nus": (
        lambda: DeepKernelMachine(depth=2, nu=(1.0,)),
        ArgumentError,
        "nu must be one number or 2, one a",
    ),
    "activation": (
        lambda: DeepKernelMachine(depth=1, nu=1.0, activation="gelu"),
        ArgumentError,
        "activation",
    ),
    "noise": (lambda: ONE.fit(X, Y, noise=0.0), ArgumentError, "noise must be positive"),
    "rows": (lambda: ONE.fit(X, Y[:3], noise=0.1), ArgumentError, r"got shapes \(7, 3\), \(3, 2\)"),
    "inducing": (lambda: ONE.fit(X, Y, noise=0.1, inducing=X[:, :2]), ArgumentError, "inducing"),
    "words": (lambda: ONE.fit(X, "y", noise=0.1), ArgumentTypeError, "y must be an array"),
    "NaN": (lambda: ONE.fit(X * np.nan, Y, noise=0.1), ArgumentError, "x holds numbers that are not finite"),
    "empty": (lambda: ONE.fit(X[:0], Y[:0], noise=0.1), ArgumentError, "x is empty"),
    "columns": (
        lambda: ONE.fit(X, Y, noise=0.1, num_steps=1).predict(X[:, :2]),
        ArgumentError,
        "inputs must be rows of 3 columns",
    ),
    "overflow": (
        lambda: ONE.fit(1e200 * X, Y, noise=0.1, num_steps=2),
        NonFiniteError,
        "not finite at step 0",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    attempt, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words):
        attempt()
