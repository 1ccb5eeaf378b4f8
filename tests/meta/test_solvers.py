"""The local solvers behind one protocol: the exact answer where there is one, and the traps of the method for
each of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Trace_ELBO

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta import (
    NIW,
    EpisodeStream,
    ExactLinearGaussian,
    LangevinLocal,
    LaplaceGGN,
    VariationalLocal,
    lift,
)
from ppl_ext.meta.distributions.low_rank import Factored, LowRank
from ppl_ext.meta.solvers.laplace import curvature, in_function_space
from ppl_ext.meta.solvers.local import Gaussian, Quadratic, closed_form, expected
from ppl_ext.objectives import IWELBO
from tests.meta.test_lift import KEY, STREAM, episodes, line, quiet

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

FULL = {
    "GGN": (LaplaceGGN(num_steps=2), 1e-3),
    "low rank": (LaplaceGGN(num_steps=2, structure="low_rank"), 1e-3),
    "SGLD": (LangevinLocal(num_steps=2000), 0.15),
    "variational": (VariationalLocal(num_steps=400, step_size=0.05), 0.15),
}
DIAGONAL = {
    "GGN": LaplaceGGN(num_steps=2, structure="diagonal"),
    "low rank": LaplaceGGN(num_steps=2, structure="low_rank"),
    "SGLD": LangevinLocal(num_steps=50, structure="diagonal"),
    "variational": VariationalLocal(num_steps=50, structure="diagonal"),
}
PRIOR = NIW([0.5, 0.0], 3.0, np.array([[2.0, 0.3], [0.3, 1.0]]), 5.0)
MEMBER = 3  # an episode of eight rows


def laws(solver, niw, index, hierarchy):
    fits = hierarchy.fits(niw, hierarchy.form.initial_shared(), STREAM.batch(index), solver, KEY)
    return fits, jax.vmap(lambda f: closed_form(f, niw))(fits)


@pytest.fixture(scope="module")
def exact(fitted):
    return laws(ExactLinearGaussian(), PRIOR, [MEMBER], fitted.hierarchy)[1]


@pytest.mark.slow
def test_an_objective_that_is_no_elbo_shows_in_the_law(fitted, exact):
    """The importance-weighted bound's optimum has the right mean and is wider than the posterior: the
    identities are off, and say so.
    """
    solver = VariationalLocal(IWELBO(4), num_steps=400, step_size=0.05)
    _, q = laws(solver, PRIOR, [MEMBER], fitted.hierarchy)
    sd = np.sqrt(np.diagonal(exact.covariance[0]))
    assert np.abs((q.mean[0] - exact.mean[0]) / sd).max() < 0.4 and not solver.conjugate
    assert 1.02 < np.linalg.slogdet(q.covariance[0])[1] - np.linalg.slogdet(exact.covariance[0])[1] + 1 < 3.0


@pytest.mark.parametrize("name", FULL)
def test_a_linear_gaussian_episode_has_the_exact_law(name, fitted, exact):
    """Means in exact standard deviations, variances relatively; the noise of LangevinLocal and of stochastic
    gradients is what they may have.
    """
    solver, tolerance = FULL[name]
    _, q = laws(solver, PRIOR, [MEMBER], fitted.hierarchy)
    sd = np.sqrt(np.diagonal(exact.covariance[0]))
    assert np.abs((q.mean[0] - exact.mean[0]) / sd).max() < 2 * tolerance
    np.testing.assert_allclose(
        q.covariance[0] / np.outer(sd, sd), exact.covariance[0] / np.outer(sd, sd), atol=tolerance
    )


@pytest.mark.slow
def test_the_variance_of_langevin_iterates_is_corrected_for_their_step(fitted, exact):
    """Uncorrected, steps of 2 would double the variance."""
    _, q = laws(LangevinLocal(num_steps=2000, step_size=2.0), PRIOR, [MEMBER], fitted.hierarchy)
    ratio = np.diagonal(q.covariance[0]) / np.diagonal(exact.covariance[0])
    assert np.abs(ratio - 1).max() < 4.5 * np.sqrt(2 / 2000) + 0.02


def test_variational_laws_are_correlated_where_the_posterior_is():
    curved, pull = jnp.array([[5.0, 4.0], [4.0, 5.0]]), jnp.array([1.0, -2.0])
    solver = VariationalLocal(num_steps=400, step_size=0.05)
    fit = jax.jit(
        lambda key: solver(
            lambda theta: 0.5 * theta @ curved @ theta - pull @ theta, jnp.zeros(2), jnp.eye(2), key
        )
    )(KEY)
    covariance = np.linalg.inv(fit.precision + np.eye(2))
    # that of (A + I)⁻¹
    assert abs(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]) + 4 / 6) < 0.1


def test_an_episode_whose_laws_have_no_real_parameter_has_no_curvature():
    class Constant:
        def outputs(self, theta):
            return []

        def of_outputs(self, theta):
            return lambda outputs: jnp.zeros(())

    np.testing.assert_array_equal(curvature(Constant(), jnp.ones(2), "full"), np.zeros((2, 2)))
    np.testing.assert_array_equal(curvature(Constant(), jnp.ones(2), "diagonal"), np.zeros(2))
    assert in_function_space(Constant(), jnp.ones(2)).factor.shape == (0, 2)


def test_solvers_that_are_wide_say_whether_the_identities_hold():
    assert (
        VariationalLocal().conjugate
        and VariationalLocal(Trace_ELBO()).conjugate
        and not VariationalLocal(IWELBO(4)).conjugate
    )


# --- the traps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low rank", "SGLD", "variational"])
def test_with_any_solver_the_globals_land_where_the_episodes_put_them(name):
    """The first trap: with the globals' own divergence, df and mean precision end at their prior plus N,
    whatever the solver.
    """
    solver = {
        "SGLD": LangevinLocal(num_steps=30),
        "variational": VariationalLocal(num_steps=30),
        "low rank": FULL["low rank"][0],
    }[name]
    result = quiet(lift(line, ["w"]), local_solver=solver, num_steps=6)
    assert float(result.niw.df) == 9.0 and abs(float(result.niw.mean_precision) - 6.01) < 1e-4
    assert np.isfinite(result.losses).all() and float(result.terms.globals[-1]) > 0


def correlated(y):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(w.sum(), 0.1), obs=y)


@pytest.mark.parametrize("name", DIAGONAL)
@pytest.mark.slow
def test_coupled_coordinates_do_not_overshoot(name):
    """The second trap: every coordinate alone would go all the way, and the eight of them eight times too
    far. And the third: the law of a diagonal hierarchy is a product, for which df may lie below the
    dimension."""
    stream = EpisodeStream([np.full(20, 4.0, np.float32)])
    h = lift(correlated, ["w"], structure="diagonal").hierarchy(stream)
    niw, batch = NIW(jnp.zeros(8), 1.0, jnp.ones(8), 3.0), stream.batch([0])
    fits = h.fits(niw, h.form.initial_shared(), batch, DIAGONAL[name], KEY)
    q = closed_form(jax.tree.map(lambda x: x[0], fits), niw)
    assert 0.5 < float(q.mean.sum()) < 5.0  # stochastic gradients swing a little
    new = h.update(niw, jax.tree.map(lambda x: x[None], q), 1.0)
    assert new.diagonal and float(new.df) == 3.0  # one episode added to the hierarchy's own prior, of 2
    if name == "low rank":  # which keeps the correlations
        np.testing.assert_allclose(
            np.ones(8) @ q.covariance.dense() @ np.ones(8), 1 / (20 / 0.01 + 3 / 8), rtol=1e-2
        )


@pytest.mark.slow
def test_an_empty_episode_is_the_prior_for_a_noisy_solver():
    stream = EpisodeStream([*episodes(), (np.zeros(0, np.float32), np.zeros(0, np.float32))])
    h = lift(line, ["w"]).hierarchy(stream)
    fit = h.fits(h.prior, h.form.initial_shared(), stream.batch([0, 6]), LangevinLocal(num_steps=5), KEY)
    assert (
        np.asarray(fit.precision[0]).any()
        and not np.asarray(fit.precision[1]).any()
        and not np.asarray(fit.linear[1]).any()
    )


# --- low rank


@pytest.mark.slow
def test_low_rank_algebra_is_that_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        scales, factor = jnp.asarray(rng.gamma(2.0, size=6)), jnp.asarray(rng.normal(size=(3, 6)))
        low, dense = LowRank(scales, factor), np.linalg.inv(np.diag(1 / scales) + factor.T @ factor)
        np.testing.assert_allclose(low.dense(), dense, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(low.diagonal(), np.diag(dense), rtol=1e-10)
        np.testing.assert_allclose(low.log_det(), np.linalg.slogdet(dense)[1], rtol=1e-10)
        np.testing.assert_allclose(low.times(jnp.arange(6.0)), dense @ np.arange(6.0), rtol=1e-9)
        root = low.spread(jnp.eye(6)).T
        np.testing.assert_allclose(root @ root.T, dense, rtol=1e-9, atol=1e-12)
        niw = NIW(rng.normal(size=6), 2.0, rng.gamma(2.0, size=6), 3.0)
        np.testing.assert_allclose(
            niw.expected_kl(jnp.ones(6), low), niw.expected_kl(jnp.ones(6), dense), rtol=1e-10
        )
        quadratic = lambda t: t @ jnp.arange(36.0).reshape(6, 6) @ t  # noqa: E731  a formula in one line
        values = [expected(quadratic, Gaussian(jnp.ones(6), c)) for c in (low, dense)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-9)
        fits = [Quadratic(a, jnp.arange(6.0)) for a in (Factored(factor), factor.T @ factor)]
        np.testing.assert_allclose(closed_form(fits[0], niw).mean, closed_form(fits[1], niw).mean, rtol=1e-8)


@pytest.mark.slow
def test_low_rank_adapts_as_the_full_fit_does():
    """With the mode's Gaussian as the prior the two are the same; with Student-t coordinates the scales are
    at their variational optimum, close to the mixture over random ones."""
    result = quiet(
        lift(line, ["w"], structure="diagonal"),
        local_solver=LaplaceGGN(num_steps=3, structure="low_rank"),
        num_steps=20,
    )
    full = quiet(lift(line, ["w"], structure="diagonal"), local_solver=LaplaceGGN(num_steps=3), num_steps=20)
    np.testing.assert_allclose(result.niw.scale_matrix, full.niw.scale_matrix, rtol=1e-3)
    x, y = episodes()[3]
    for prior, tolerance in (("mode", 1e-3), ("student_t", 0.1)):
        a, b = (f.adapt(KEY, x[:2], y[:2], prior=prior, num_samples=2000) for f in (result, full))
        sd = np.sqrt(np.diagonal(b.covariance))
        assert np.abs((a.mean - b.mean) / sd).max() < tolerance
        np.testing.assert_allclose(np.sqrt(np.diagonal(a.covariance)) / sd, 1.0, atol=2 * tolerance)
        assert np.abs((a.theta.mean(0) - a.mean) / np.sqrt(np.diagonal(a.covariance))).max() < 4.5 / np.sqrt(
            2000
        )


@pytest.mark.slow
def test_independent_coordinates_are_mixtures_each_by_quadrature():
    """A diagonal law and a diagonal fit: each coordinate's posterior on a grid."""

    def levels(y):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)

    stream = EpisodeStream(
        [np.array([[0.1, 2.0], [0.3, 1.0]], np.float32), np.array([[0.5, 0.4]], np.float32)]
    )
    solver = LaplaceGGN(num_steps=2, structure="diagonal")
    result = quiet(
        lift(levels, ["w"], structure="diagonal", prior=NIW([0.0, 0.0], 1.0, [0.5, 0.2], 1.5)),
        stream,
        local_solver=solver,
    )
    y = jnp.array([[5.0, -3.0], [6.0, -4.0]])
    post = result.adapt(KEY, y, num_samples=4000)
    grid = np.linspace(-20.0, 20.0, 20_001)
    for j in range(2):
        factor = (float(result.niw.mean_precision) + 1) / float(result.niw.mean_precision * result.niw.df)
        law = dist.StudentT(result.niw.df, result.niw.loc[j], jnp.sqrt(factor * result.niw.scale_matrix[j]))
        weights = np.asarray(
            jax.nn.softmax(law.log_prob(grid) - 0.5 * ((np.asarray(y)[:, j] - grid[:, None]) ** 2).sum(1))
        )
        mean = weights @ grid
        np.testing.assert_allclose(post.mean[j], mean, rtol=5e-3)
        np.testing.assert_allclose(post.covariance[j], weights @ (grid - mean) ** 2, rtol=0.02)
        np.testing.assert_allclose(
            post.samples["w"][:, j].mean(), mean, atol=4.5 * np.sqrt(post.covariance[j] / 4000)
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LaplaceGGN(structure="banded"), ArgumentError, "'full', 'diagonal' or 'low_rank'"),
        (lambda: LangevinLocal(num_steps=1), ArgumentError, "at least 2"),
        (lambda: LangevinLocal(step_size=3.0), ArgumentError, r"in \(0, 2\]"),
        (lambda: LangevinLocal(step_size="a"), ArgumentTypeError, "real number"),
        (lambda: LangevinLocal(structure="low_rank"), ArgumentError, "'full' or 'diagonal'"),
        (lambda: VariationalLocal(IWELBO), ArgumentTypeError, "an instance such as"),
        (lambda: VariationalLocal(step_size=0.0), ArgumentError, "must be positive"),
        (lambda: VariationalLocal(num_steps=0), ArgumentError, "positive integer"),
        (lambda: VariationalLocal(structure="block"), ArgumentError, "'full' or 'diagonal'"),
    ],
)
def test_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
