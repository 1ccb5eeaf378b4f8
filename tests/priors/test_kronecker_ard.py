"""Sparse arrays by type-II maximum likelihood: against dense normals, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.priors import KroneckerARD, type2_em

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 2)
H = [RNG.normal(size=(m, n)) for m, n in zip((2, 3, 2), SHAPE, strict=True)]
DENSE = np.kron(np.kron(H[0], H[1]), H[2])
X = np.zeros(SHAPE)
X[np.ix_([1], [0, 3], [0])] = [[[1.5], [-1.0]]]
NOISE = 0.01
Y = np.einsum("ai,bj,ck,ijk->abc", *H, X) + NOISE**0.5 * RNG.normal(size=(2, 3, 2))
PRIOR = KroneckerARD(SHAPE)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def outer(factors):
    return np.einsum("i,j,k->ijk", *map(np.asarray, factors))


def dense(factors, noise, y=Y):
    """Evidence, mean and covariance, with matrices of all numbers."""
    gamma = np.diag(outer(factors).ravel())
    c = DENSE @ gamma @ DENSE.T + noise * np.eye(len(DENSE))
    gain = np.linalg.solve(c, DENSE @ gamma).T
    evidence = dist.MultivariateNormal(0.0, c).log_prob(y.ravel())
    return float(evidence), (gain @ y.ravel()), gamma - gain @ DENSE @ gamma


@pytest.mark.parametrize("noise", [NOISE, None])
def test_the_posterior_and_the_evidence_are_those_of_dense_matrices(noise):
    found = type2_em(PRIOR, Y.ravel(), H, noise, num_steps=7)
    evidence, mean, covariance = dense(found.factors, found.noise)
    np.testing.assert_allclose(found.log_evidence[-1], evidence, atol=1e-8)
    np.testing.assert_allclose(found.mean.ravel(), mean, atol=1e-8)
    np.testing.assert_allclose(found.variance.ravel(), np.diag(covariance), atol=1e-8)


def test_one_step_is_that_of_dense_matrices():
    """From the start, all factors even: two sweeps more leave the maximum of the third as it is."""
    first = type2_em(PRIOR, Y, H, num_steps=1)
    size = np.mean(Y**2) / np.prod([np.mean((h**2).sum(1)) for h in H])
    start = [np.full(3, size), np.ones(4), np.ones(2)]
    _, mean, covariance = dense(start, 0.1 * np.mean(Y**2))
    d = (mean**2 + np.diag(covariance)).reshape(SHAPE)
    factors = start
    for _ in range(3):
        factors[0] = (d / outer([np.ones(3), *factors[1:]])).mean((1, 2))
        factors[1] = (d / outer([factors[0], np.ones(4), factors[2]])).mean((0, 2))
        factors[2] = (d / outer([*factors[:2], np.ones(2)])).mean((0, 1))
    np.testing.assert_allclose(outer(first.factors), outer(factors), rtol=1e-8)
    residual = ((Y.ravel() - DENSE @ mean) ** 2).mean() + np.trace(DENSE @ covariance @ DENSE.T) / Y.size
    np.testing.assert_allclose(first.noise, residual, rtol=1e-8)
    assert all(float(f.max()) == 1.0 for f in first.factors[1:])


def test_the_rank_one_step_takes_the_leading_singular_vectors():
    first = type2_em(KroneckerARD((3, 4)), Y[:, :, 0], H[:2], NOISE, num_steps=1, m_step="rank_one")
    size = np.mean(Y[:, :, 0] ** 2) / np.prod([np.mean((h**2).sum(1)) for h in H[:2]])
    h = np.kron(H[0], H[1])
    c = size * h @ h.T + NOISE * np.eye(6)
    mean = size * h.T @ np.linalg.solve(c, Y[:, :, 0].ravel())
    variance = size - size**2 * np.diag(h.T @ np.linalg.solve(c, h))
    u, s, v = np.linalg.svd((mean**2 + variance).reshape(3, 4))
    expected = s[0] * np.outer(u[:, 0], v[0])
    np.testing.assert_allclose(np.outer(*first.factors), expected, rtol=1e-8)


@pytest.mark.parametrize("noise", [NOISE, None])
@pytest.mark.parametrize("accelerated", [True, False])
def test_the_evidence_never_falls(noise, accelerated):
    trace = type2_em(PRIOR, Y, H, noise, accelerated=accelerated).log_evidence
    assert trace.shape == (250,) and np.diff(trace).min() > -1e-9 and trace[-1] > trace[0] + 1.0


def test_acceleration_reaches_the_same_peak_sooner():
    fast = type2_em(PRIOR, Y, H, NOISE, num_steps=1000)
    slow = type2_em(PRIOR, Y, H, NOISE, num_steps=20_000, accelerated=False)
    # the peak lies where factors are zero, which a step comes nearer to by its inverse
    assert -1e-6 < fast.log_evidence[-1] - slow.log_evidence[-1] < 0.01
    assert slow.log_evidence[249] < fast.log_evidence[249]


def test_the_slope_is_zero_where_a_factor_is_not():
    found = type2_em(PRIOR, Y, H, NOISE, num_steps=3000)

    def evidence(logs):
        gamma = jnp.einsum("i,j,k->ijk", *map(jnp.exp, logs))
        c = (DENSE * gamma.ravel()) @ DENSE.T + NOISE * jnp.eye(len(DENSE))
        return dist.MultivariateNormal(0.0, c).log_prob(Y.ravel())

    for slope, factor in zip(
        jax.grad(evidence)([jnp.log(f) for f in found.factors]), found.factors, strict=True
    ):
        assert (np.abs(slope) < 1e-3).all() or (np.abs(slope)[factor > 1e-6 * factor.max()] < 1e-3).all()
    kept = [np.flatnonzero(f > 1e-3 * f.max()).tolist() for f in found.factors]
    assert kept == [[1], [0, 3], [0]]


def test_draws_have_the_posteriors_moments():
    found = type2_em(PRIOR, Y, H, NOISE, num_steps=3)
    draws = np.asarray(found.sample(jax.random.key(0), 20_000)).reshape(20_000, -1)
    _, mean, covariance = dense(found.factors, NOISE)
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean(0) - mean) < 4.5 * spread / 20_000**0.5).all()
    error = np.sqrt((covariance**2 + np.outer(spread**2, spread**2)) / 20_000)
    assert (np.abs(np.cov(draws.T) - covariance) < 4.5 * error).all()


def test_the_law_is_a_site_of_any_model():
    factors = [jnp.array([1.0, 2.0, 0.5]), jnp.array([1.0, 0.1, 0.2, 0.3]), jnp.array([1.0, 0.7])]

    def model():
        x = numpyro.sample("x", PRIOR.law(factors))
        numpyro.sample(
            "y", dist.Normal(jnp.asarray(DENSE) @ x.ravel(), NOISE**0.5).to_event(1), obs=Y.ravel()
        )

    density, _ = numpyro.infer.util.log_density(model, (), {}, {"x": X})
    right = dist.Normal(0.0, np.sqrt(outer(factors))).log_prob(X).sum()
    right += dist.Normal(DENSE @ X.ravel(), NOISE**0.5).log_prob(Y.ravel()).sum()
    np.testing.assert_allclose(density, right)


def test_single_precision_and_one_axis():
    with jax.enable_x64(False):
        found = type2_em(KroneckerARD((24,)), Y.ravel(), [DENSE], NOISE)
    gamma = np.asarray(found.factors[0], float)
    c = (DENSE * gamma) @ DENSE.T + NOISE * np.eye(12)
    mean = gamma * (DENSE.T @ np.linalg.solve(c, Y.ravel()))
    np.testing.assert_allclose(found.mean, mean, atol=1e-3)


MISTAKES = {
    "no axes": (lambda: KroneckerARD(()), ArgumentError, "at least one axis"),
    "empty": (lambda: KroneckerARD((3, 0)), ArgumentError, r"each size of shape \(3, 0\)"),
    "factors": (lambda: PRIOR.law([jnp.ones(3)]), ArgumentError, "factors must have shapes"),
    "negative": (
        lambda: PRIOR.law([jnp.ones(3), jnp.array([1.0, 0.0, -0.1, 2.0]), jnp.ones(2)]),
        ArgumentError,
        "factor of axis 1 has a variance below zero or NaN at place 2",
    ),
    "prior": (lambda: type2_em(SHAPE, Y, H), ArgumentTypeError, "prior must be a KroneckerARD"),
    "m_step": (lambda: type2_em(PRIOR, Y, H, m_step="svd"), ArgumentError, "m_step must be one of"),
    "noise": (lambda: type2_em(PRIOR, Y, H, 0.0), ArgumentError, "noise must be a positive variance"),
    "y": (lambda: type2_em(PRIOR, Y[:1], H), ArgumentError, r"y must have shape \(2, 3, 2\), or be flat"),
    "words": (lambda: type2_em(PRIOR, "y", H), ArgumentTypeError, "y must be an array"),
    "matrices": (lambda: type2_em(PRIOR, Y, H[:2]), ArgumentError, "matrices must be 3, one an axis"),
    "a matrix": (
        lambda: type2_em(PRIOR, Y, [H[0], H[0], H[2]]),
        ArgumentError,
        r"matrices\[1\] must have shape",
    ),
    "no list": (lambda: type2_em(PRIOR, Y, 3), ArgumentTypeError, "matrices must be a list"),
    "no data": (lambda: type2_em(PRIOR, Y[:0], [H[0][:0], *H[1:]]), ArgumentError, "y is empty"),
    "zero": (lambda: type2_em(PRIOR, 0 * Y, H), ArgumentError, "y is all zero"),
    "NaN": (lambda: type2_em(PRIOR, np.nan * Y, H), ArgumentError, "y holds numbers that are not finite"),
    "steps": (lambda: type2_em(PRIOR, Y, H, num_steps=0), ArgumentError, "num_steps must be a positive"),
    "overflow": (lambda: type2_em(PRIOR, 1e200 * Y, H, 1e-300), NonFiniteError, "not finite after step 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    attempt, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words):
        attempt()
