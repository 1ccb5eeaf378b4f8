"""The family's closed forms against quadrature, Monte Carlo, and the conditions that an optimum meets."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.stats import invgamma, norm
from scipy.stats import t as student_t

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta import NIW

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(0)
BLOCKS = {"full": None, "diagonal": None, "block": (2, 1)}


def spd(d, rng=RNG):
    a = rng.normal(size=(d, d + 2))
    return a @ a.T / d


def member(structure, d=3, df=6.5, mean_precision=1.7, seed=0):
    rng = np.random.default_rng(seed)
    scale = spd(d, rng)
    if structure == "diagonal":
        scale = np.diag(scale)
    if structure == "block":
        scale = scale * np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    return NIW(rng.normal(size=d), mean_precision, scale, df, BLOCKS[structure])


def draws_of(niw, n=20_000):
    mean, covariance = niw.sample(jax.random.key(1), (n,))
    return mean, jax.vmap(jnp.diag)(covariance) if niw.diagonal else covariance


def close_to_mean(value, samples):
    error = np.std(samples, ddof=1) / np.sqrt(len(samples))
    assert abs(float(value) - np.mean(samples)) < 4.5 * error + 1e-6, (value, np.mean(samples), error)


EVERY = pytest.mark.parametrize("structure", ["full", "diagonal", "block"])


@EVERY
@pytest.mark.slow
def test_expectations_are_those_of_draws(structure):
    niw = member(structure)
    mean, covariance = draws_of(niw)
    precision = jnp.linalg.inv(covariance)
    x = jnp.arange(3.0)
    r = x - mean
    close_to_mean(niw.expected_quadratic(x), jnp.einsum("ni,nij,nj->n", r, precision, r))
    close_to_mean(niw.expected_log_det(), jnp.linalg.slogdet(covariance)[1])
    expected = niw.expected_precision()
    expected = jnp.diag(expected) if niw.diagonal else expected
    for i in range(3):
        for j in range(3):
            close_to_mean(expected[i, j], precision[:, i, j])


@EVERY
@pytest.mark.slow
def test_expected_divergence_is_the_mean_over_draws(structure):
    niw = member(structure)
    mean, covariance = draws_of(niw)
    m, v = jnp.ones(3), jnp.asarray(spd(3), jnp.float32)
    q = dist.MultivariateNormal(m, v)
    divergences = jax.vmap(lambda a, b: dist.kl_divergence(q, dist.MultivariateNormal(a, b)))(
        mean, covariance
    )
    close_to_mean(niw.expected_kl(m, v), divergences)
    diagonal = jnp.diag(jnp.diag(v))
    np.testing.assert_allclose(niw.expected_kl(m, jnp.diag(v)), niw.expected_kl(m, diagonal), rtol=1e-5)


def niw_log_prob(niw, mean, covariance):
    laws = niw.covariance_law()
    if niw.diagonal:
        diagonal = jnp.diagonal(covariance, axis1=1, axis2=2)
        at_mean = dist.Normal(niw.loc, jnp.sqrt(diagonal / niw.mean_precision)).log_prob(mean).sum(-1)
        return at_mean + laws.log_prob(diagonal)
    ends = np.cumsum(niw.blocks)
    parts = [
        law.log_prob(covariance[:, e - b : e, e - b : e])
        for law, b, e in zip(laws, niw.blocks, ends, strict=True)
    ]
    return sum(parts) + dist.MultivariateNormal(niw.loc, covariance / niw.mean_precision).log_prob(mean)


@EVERY
@pytest.mark.slow
def test_divergence_between_members_is_the_mean_log_ratio(structure):
    p, q = member(structure, df=5.0, mean_precision=0.8, seed=1), member(structure)
    mean, covariance = draws_of(q)
    close_to_mean(q.kl(p), niw_log_prob(q, mean, covariance) - niw_log_prob(p, mean, covariance))
    assert abs(float(q.kl(q))) < 1e-5


def test_divergence_in_one_dimension_by_quadrature():
    q, p = NIW([0.3], 2.0, [[1.5]], 4.0), NIW([-0.5], 0.7, [[0.8]], 2.5)

    def log_density(niw, mu, s2):
        sd = np.sqrt(s2 / float(niw.mean_precision))
        law = invgamma(float(niw.df) / 2, scale=float(niw.scale_matrix[0, 0]) / 2)
        return norm(float(niw.loc[0]), sd).logpdf(mu) + law.logpdf(s2)

    nodes, weights = np.polynomial.hermite_e.hermegauss(40)

    def given(s2):
        mu = float(q.loc[0]) + np.sqrt(s2 / float(q.mean_precision)) * nodes
        law = invgamma(float(q.df) / 2, scale=float(q.scale_matrix[0, 0]) / 2)
        return law.pdf(s2) * np.sum(
            weights / weights.sum() * (log_density(q, mu, s2) - log_density(p, mu, s2))
        )

    assert abs(float(q.kl(p)) - (quad(given, 0, 1)[0] + quad(given, 1, np.inf, limit=200)[0])) < 1e-5


def test_full_in_one_dimension_is_normal_inverse_gamma():
    full, diagonal = NIW([0.4], 1.2, [[2.0]], 3.0), NIW([0.4], 1.2, [2.0], 3.0)
    m, v = jnp.array([0.1]), jnp.array([[0.5]])
    np.testing.assert_allclose(full.expected_kl(m, v), diagonal.expected_kl(m, v[0]), rtol=1e-6)
    np.testing.assert_allclose(full.predictive().log_prob(m), diagonal.predictive().log_prob(m), rtol=1e-6)
    np.testing.assert_allclose(full.at_mode().log_prob(m), diagonal.at_mode().log_prob(m), rtol=1e-6)
    other = NIW([0.0], 0.5, [[1.0]], 2.0), NIW([0.0], 0.5, [1.0], 2.0)
    np.testing.assert_allclose(full.kl(other[0]), diagonal.kl(other[1]), rtol=1e-5)
    scale = np.sqrt(2.2 / 1.2 * 2.0 / 3.0)
    np.testing.assert_allclose(
        full.predictive().log_prob(m), student_t(3.0, 0.4, scale).logpdf(0.1), rtol=1e-5
    )


@pytest.mark.slow
def test_diagonal_and_blocks_are_members_side_by_side():
    whole = member("diagonal")
    apart = [
        NIW(whole.loc[i : i + 1], whole.mean_precision, whole.scale_matrix[i : i + 1], whole.df)
        for i in range(3)
    ]
    m, v = jnp.ones(3), jnp.array([0.3, 0.5, 2.0])
    np.testing.assert_allclose(
        whole.expected_kl(m, v),
        sum(a.expected_kl(m[i : i + 1], v[i : i + 1]) for i, a in enumerate(apart)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        whole.predictive().log_prob(m),
        sum(a.predictive().log_prob(m[i : i + 1]) for i, a in enumerate(apart)),
        rtol=1e-5,
    )
    blocks = member("block")
    parts = [slice(0, 2), slice(2, 3)]
    apart = [NIW(blocks.loc[s], blocks.mean_precision, blocks.scale_matrix[s, s], blocks.df) for s in parts]
    other = member("block", seed=3)
    others = [NIW(other.loc[s], other.mean_precision, other.scale_matrix[s, s], other.df) for s in parts]
    np.testing.assert_allclose(
        blocks.kl(other), sum(a.kl(b) for a, b in zip(apart, others, strict=True)), rtol=1e-4
    )
    for name in ("predictive", "at_mode"):
        joint, split = getattr(blocks, name)(), [getattr(a, name)() for a in apart]
        np.testing.assert_allclose(
            joint.log_prob(m), sum(p.log_prob(m[s]) for p, s in zip(split, parts, strict=True)), rtol=1e-5
        )
        np.testing.assert_allclose(joint.mean, jnp.concatenate([p.mean for p in split]))
        np.testing.assert_allclose(joint.variance, jnp.concatenate([p.variance for p in split]), rtol=1e-5)
        assert joint.sample(jax.random.key(0), (5,)).shape == (5, 3)


@EVERY
def test_predictive_is_the_mixture_over_draws(structure):
    niw = member(structure)
    mean, covariance = draws_of(niw)
    x = niw.loc + 0.5
    densities = jnp.exp(dist.MultivariateNormal(mean, covariance).log_prob(x))
    close_to_mean(jnp.exp(niw.predictive().log_prob(x)), densities)


def objective(niw, prior, means, covariances, weight):
    return weight * jax.vmap(niw.expected_kl)(means, covariances).sum() + niw.kl(prior)


@EVERY
@pytest.mark.parametrize("num_episodes", [None, 40.0])
def test_the_update_is_the_minimum(structure, num_episodes):
    """At the update, the slope of the objective in every parameter is zero; away from it, it is not."""
    with jax.enable_x64(True):
        prior = member(structure, df=4.0, mean_precision=0.6, seed=2)
        rng = np.random.default_rng(5)
        means, covariances = (
            jnp.asarray(rng.normal(size=(4, 3))),
            jnp.asarray(np.stack([spd(3, rng) for _ in range(4)])),
        )
        best = prior.posterior(means, covariances, num_episodes)
        weight = 1.0 if num_episodes is None else num_episodes / 4
        slope = jax.grad(objective)(best, prior, means, covariances, weight)
        for leaf in jax.tree.leaves(slope):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-9)
        assert float(best.df) == 4.0 + (num_episodes or 4) and float(best.mean_precision) == 0.6 + (
            num_episodes or 4
        )
        wrong = NIW(best.loc, best.mean_precision, best.scale_matrix, best.df + 1, best.blocks)
        assert abs(float(jax.grad(objective)(wrong, prior, means, covariances, weight).df)) > 1e-3


def test_without_the_prior_there_is_no_optimum_at_finite_df():
    """Empirical Bayes sends df and mean precision to infinity: the slope of the episodes' terms alone never
    vanishes.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        means, covariances = (
            jnp.asarray(rng.normal(size=(4, 3))),
            jnp.asarray(np.stack([spd(3, rng) for _ in range(4)])),
        )
        scatter = (covariances + jax.vmap(jnp.outer)(means - means.mean(0), means - means.mean(0))).mean(0)
        for df in (5.0, 50.0, 500.0):
            niw = NIW(means.mean(0), df, df * scatter, df)
            slope = jax.grad(lambda n: jax.vmap(n.expected_kl)(means, covariances).sum())(niw)
            assert (
                float(slope.mean_precision) < 0
                and float(jnp.vdot(slope.scale_matrix, scatter)) + float(slope.df) < 0
            )


def test_no_episodes_return_the_prior():
    prior = member("full")
    same = prior.posterior(jnp.zeros((0, 3)), jnp.zeros((0, 3, 3)))
    for a, b in zip(jax.tree.leaves(prior), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_limits():
    """n₀ just above d − 1 works; n₀ and l₀ large give the Gaussian with known mean and covariance."""
    edge = NIW(jnp.zeros(3), 1.0, jnp.eye(3), 2.001)
    assert np.isfinite(float(edge.expected_kl(jnp.ones(3), jnp.eye(3))))
    v = jnp.asarray(spd(3), jnp.float32)
    with jax.enable_x64(True):
        sure = NIW(jnp.zeros(3), 1e9, 1e9 * np.asarray(v, float), 1e9)
        known = dist.MultivariateNormal(jnp.zeros(3), jnp.asarray(v, float))
        m = jnp.ones(3)
        q = dist.MultivariateNormal(m, jnp.eye(3))
        np.testing.assert_allclose(sure.expected_kl(m, jnp.eye(3)), dist.kl_divergence(q, known), rtol=1e-6)
        np.testing.assert_allclose(sure.predictive().log_prob(m), known.log_prob(m), rtol=1e-5)


@pytest.mark.slow
def test_single_precision_at_fifty_dimensions():
    rng = np.random.default_rng(0)
    scale, m, v = spd(50, rng), rng.normal(size=50), spd(50, rng)
    with jax.enable_x64(True):
        exact = float(NIW(np.zeros(50), 2.0, scale, 60.0).expected_kl(jnp.asarray(m), jnp.asarray(v)))
    single = NIW(np.zeros(50, np.float32), 2.0, scale, 60.0).expected_kl(
        jnp.asarray(m, jnp.float32), jnp.asarray(v, jnp.float32)
    )
    np.testing.assert_allclose(single, exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(df=1.0), r"df must exceed 1, .*structure='diagonal'"),
        (dict(mean_precision=0.0), "mean_precision must be positive"),
        (dict(scale_matrix=-np.eye(2)), "not positive definite"),
        (dict(scale_matrix=np.array([1.0, -1.0])), "not positive definite"),
        (dict(scale_matrix=np.eye(3)), r"must have shape \(2, 2\) or \(2,\)"),
        (dict(loc=np.zeros((2, 1))), r"loc must have shape \(d,\)"),
        (dict(loc=np.array([np.nan, 0.0])), "loc is not finite"),
        (dict(df=np.ones(2) * 3), "are numbers"),
        (dict(blocks=(1, 2)), "add up to 2"),
        (dict(scale_matrix=np.ones(2), blocks=(2,)), "blocks of size 1"),
    ],
)
def test_what_makes_no_distribution(arguments, message):
    good = dict(loc=np.zeros(2), mean_precision=1.0, scale_matrix=np.eye(2), df=4.0)
    with pytest.raises(ArgumentError, match=message):
        NIW(**{**good, **arguments})


def test_other_mistakes():
    with pytest.raises(ArgumentTypeError, match="real numbers"):
        NIW(np.zeros(2, complex), 1.0, np.eye(2), 4.0)
    with pytest.raises(ArgumentError, match="structures differ, full .* and diagonal"):
        member("full").kl(member("diagonal"))
