"""Scores of rows against what they are defined as."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext.designs import ProjectionDPP, gradient_scores, leverage, lewis
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError

RNG = np.random.default_rng(0)
A = RNG.standard_t(3, size=(40, 3))
A[5] = 0.0  # a row that says nothing
Y = A @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=40)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_leverage_is_the_diagonal_of_the_hat_matrix():
    found = leverage(A)
    np.testing.assert_allclose(found, np.diag(A @ np.linalg.inv(A.T @ A) @ A.T), atol=1e-12)
    np.testing.assert_allclose(found, ProjectionDPP(A).inclusion, atol=1e-12)
    # the largest share in a sum of squares, at its x
    there = np.delete(A, 5, 0)
    along = A @ np.linalg.solve(A.T @ A, there.T)  # (rows, x)
    share = np.delete(along, 5, 0).diagonal() ** 2 / (along**2).sum(0)
    np.testing.assert_allclose(np.delete(found, 5), share, atol=1e-12)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
def test_lewis_weights_solve_their_equation(p):
    w = np.asarray(lewis(A, p))
    there = w > 0
    assert list(np.flatnonzero(~there)) == [5]
    rows = A[there]
    inverse = np.linalg.inv(rows.T @ (w[there][:, None] ** (1 - 2 / p) * rows))
    np.testing.assert_allclose(w[there], np.einsum("ij,jk,ik->i", rows, inverse, rows) ** (p / 2), rtol=1e-6)
    np.testing.assert_allclose(w.sum(), 3.0, rtol=1e-6)
    # they do not know in what coordinates the features are
    other = lewis(A @ np.array([[2.0, 1.0, 0.0], [0.0, 0.1, 3.0], [0.0, 0.0, 1.0]]), p)
    np.testing.assert_allclose(w, other, rtol=1e-5)


def test_lewis_weights_of_squares_are_leverage():
    np.testing.assert_allclose(lewis(A, 2.0), leverage(A), atol=1e-9)


def model(x, y, taken=None):
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=taken):
        here, seen = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(here @ b, noise), obs=seen)


def log_joint(u, x, y):
    """By hand; u is (b, log noise)."""
    b, noise = u[:3], jnp.exp(u[3])
    prior = dist.Normal(0.0, 2.0).log_prob(b).sum() + dist.Normal(0.0, 1.0).log_prob(u[3])
    return prior + dist.Normal(x @ b, noise).log_prob(y).sum()


def mode(x, y):
    b = np.linalg.lstsq(x, y)[0]
    u = jnp.array([*b, np.log(np.std(y - x @ b))])
    for _ in range(20):
        u = newton(u, x, y)
    return u


@jax.jit
def newton(u, x, y):
    return u - jnp.linalg.solve(jax.hessian(log_joint)(u, x, y), jax.grad(log_joint)(u, x, y))


@pytest.mark.parametrize("taken", [None, 7])
def test_gradient_scores_in_unconstrained_space(taken):
    u = mode(A, Y)
    found = gradient_scores(model, "rows", {"b": u[:3], "noise": jnp.exp(u[3])}, A, Y, taken)
    curvature = -jax.hessian(log_joint)(u, A, Y)

    def rows(u):
        return dist.Normal(A @ u[:3], jnp.exp(u[3])).log_prob(Y)

    slopes = jax.jacrev(rows)(u)
    right = jnp.einsum("ij,jk,ik->i", slopes, jnp.linalg.inv(curvature), slopes)
    np.testing.assert_allclose(found, right, rtol=1e-8)


def test_a_gradient_score_is_how_far_leaving_a_row_out_moves_the_mode():
    many = np.tile(A, (20, 1)), np.tile(Y, 20) + 0.5 * np.random.default_rng(1).normal(size=800)
    u = mode(*many)
    scores = gradient_scores(model, "rows", {"b": u[:3], "noise": jnp.exp(u[3])}, *many)
    curvature = -jax.hessian(log_joint)(u, *many)
    for i in (int(jnp.argmax(scores)), 0, 17):
        moved = mode(*(np.delete(x, i, 0) for x in many)) - u
        np.testing.assert_allclose(moved @ curvature @ moved, scores[i], rtol=0.1)


@pytest.mark.parametrize("of", [leverage, lambda x: lewis(x, 1.0)])
@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        (np.ones((5, 2)), ArgumentError, "full rank.*Leave out columns"),
        (np.ones((1, 2)), ArgumentError, "at least 2 candidates"),
        (np.array([[1.0], [np.nan]]), ArgumentError, "row 1, column 0"),
        (np.ones(3), ArgumentError, "matrix"),
        ("features", ArgumentTypeError, "features"),
    ],
)
def test_bad_features_are_named(of, features, error, words):
    with pytest.raises(error, match=words):
        of(features)


@pytest.mark.parametrize("p", [0.0, -1.0, np.inf])
def test_a_bad_power_is_named(p):
    with pytest.raises(ArgumentError, match="lewis: p"):
        lewis(A, p)


def test_weights_that_do_not_settle_are_named():
    with pytest.raises(ArgumentError, match="do not settle for p=1e"):
        lewis(A, 1e6)
    with pytest.raises(ArgumentError, match="traced"):
        jax.jit(lambda x: lewis(x, 1.0))(A)


def discrete(x, y):
    numpyro.sample("k", dist.Bernoulli(0.5))
    model(x, y)


def local(x, y):
    with numpyro.plate("rows", 40):
        numpyro.sample("w", dist.Normal())
    model(x, y)


def bare(x, y):
    with numpyro.plate("rows", 40):
        pass
    numpyro.sample("b", dist.Normal())


AT = {"b": np.zeros(3), "noise": 1.0}


@pytest.mark.parametrize(
    ("program", "plate", "at", "error", "words"),
    [
        (model, "lines", AT, ModelError, "'lines': the model has no such plate. There are: 'rows'"),
        (model, 3, AT, ArgumentTypeError, "name of a plate"),
        (model, "rows", {"b": np.zeros(3)}, ModelError, "'noise', 'b', and holds 'b'"),
        (model, "rows", {**AT, "c": 1.0}, ModelError, "and holds 'b', 'noise', 'c'"),
        (discrete, "rows", {**AT, "k": 1}, ModelError, "'k' is discrete"),
        (local, "rows", {**AT, "w": np.zeros(40)}, ModelError, "'w' lies in the plate"),
        (bare, "rows", {"b": 0.0}, ModelError, "no observed site lies in plate 'rows'"),
        (model, "rows", {"b": np.full(3, 50.0), "noise": 0.01}, ArgumentError, "no mode. Pass the mode"),
    ],
)
def test_what_gradient_scores_need_is_named(program, plate, at, error, words):
    with pytest.raises(error, match=words):
        gradient_scores(program, plate, at, A, Y)
