"""A lifted model against what is known exactly: coordinate ascent, quadrature, invariances, and what it must
refuse.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import Predictive
from scipy.optimize import minimize

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.meta import NIW, EpisodeStream, ExactLinearGaussian, LaplaceGGN, SimulatedStream, lift
from ppl_ext.meta.solvers.local import Gaussian, Quadratic, closed_form, expected

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
NOISE = 0.5


def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(w[0] + w[1] * x, NOISE), obs=y)


def episodes(sizes=(3, 5, 1, 8, 4, 6), seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for n in sizes:
        x, w = rng.normal(size=n), np.array([1.0, -1.0]) + rng.normal(size=2) * [0.5, 1.0]
        out.append((x.astype(np.float32), (w[0] + w[1] * x + NOISE * rng.normal(size=n)).astype(np.float32)))
    return out


STREAM = EpisodeStream(episodes())


def quiet(lifted, stream=STREAM, **options):
    return lifted.fit(
        KEY,
        stream,
        **{"local_solver": ExactLinearGaussian(), "num_steps": 60, "progress_bar": False, **options},
    )


def test_the_prior_by_default_is_the_documented_one():
    for structure, df in (("full", 3.0), ("diagonal", 2.0)):
        prior = lift(line, ["w"], structure=structure).hierarchy(STREAM).prior
        np.testing.assert_array_equal(prior.loc, np.zeros(2))
        np.testing.assert_array_equal(prior.scale_matrix, np.eye(2) if structure == "full" else np.ones(2))
        np.testing.assert_allclose((prior.mean_precision, prior.df), (0.01, df), rtol=1e-6)


# --- the optimum


def by_hand(prior, data, num_steps=300):
    """Closed-form coordinate ascent in NumPy, straight from the update equations."""
    m0, l0, v0, n0 = (
        np.asarray(v, float) for v in (prior.loc, prior.mean_precision, prior.scale_matrix, prior.df)
    )
    mu0, lam0, s0, nu0 = m0, l0, v0, n0
    stats = []
    for x, y in data:
        f = np.stack([np.ones(len(x)), np.asarray(x, float)], 1)
        stats.append((f.T @ f / NOISE**2, f.T @ np.asarray(y, float) / NOISE**2))
    for _ in range(num_steps):
        p = n0 * np.linalg.inv(v0)
        cov = [np.linalg.inv(a + p) for a, _ in stats]
        mean = [v @ (b + p @ m0) for v, (_, b) in zip(cov, stats, strict=True)]
        n0, l0 = nu0 + len(data), lam0 + len(data)
        m0 = (lam0 * mu0 + sum(mean)) / l0
        v0 = (
            s0
            + lam0 * np.outer(mu0 - m0, mu0 - m0)
            + sum(v + np.outer(m - m0, m - m0) for v, m in zip(cov, mean, strict=True))
        )
    return m0, l0, v0, n0


def to_vector(niw):
    return np.concatenate(
        [
            niw.loc,
            [np.log(niw.mean_precision)],
            np.linalg.cholesky(niw.scale_matrix)[np.tril_indices(2)],
            [np.log(niw.df - 1)],
        ]
    )


def from_vector(v):
    root = jnp.zeros((2, 2)).at[jnp.tril_indices(2)].set(v[3:6])
    return NIW(v[:2], jnp.exp(v[2]), root @ root.T, 1 + jnp.exp(v[6]))


def test_training_is_coordinate_ascent_and_minimises_the_bound():
    """Three independent answers: training, the update equations in NumPy, and a general optimiser on the
    episodic bound, to 1e-6.
    """
    with jax.enable_x64(True):
        data = [(np.asarray(x, float), np.asarray(y, float)) for x, y in episodes()]
        stream, lifted = EpisodeStream(data), lift(line, ["w"])
        ours = quiet(lifted, stream, num_steps=300).niw
        exact = by_hand(lifted.hierarchy(stream).prior, data)
        for a, b in zip((ours.loc, ours.mean_precision, ours.scale_matrix, ours.df), exact, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        h, batch = lifted.hierarchy(stream), stream.batch(range(len(stream)))
        shared = h.form.initial_shared()

        @jax.jit
        def bound(v):
            def value(v):
                niw = from_vector(v)
                return h.terms(
                    niw, shared, batch, h.fits(niw, shared, batch, ExactLinearGaussian(), KEY)
                ).total

            return jax.value_and_grad(value)(v)

        found = minimize(
            lambda v: [np.asarray(x) for x in bound(v)],
            to_vector(h.prior),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 2000},
        )
        best = from_vector(found.x)
        for a, b in zip(
            (best.loc, best.mean_precision, best.df), (exact[0], exact[1], exact[3]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(best.scale_matrix, exact[2], rtol=1e-5, atol=1e-5)
        assert float(bound(to_vector(ours))[0]) <= found.fun + 1e-9


@pytest.mark.slow
def test_without_the_globals_cost_the_bound_has_no_optimum():
    """The paper's objective less its last term: more df is always better."""
    h, batch = lift(line, ["w"]).hierarchy(STREAM), STREAM.batch(range(len(STREAM)))
    shared = h.form.initial_shared()
    fits = h.fits(h.prior, shared, batch, ExactLinearGaussian(), KEY)
    values = []
    for n in (10.0, 100.0, 1000.0):
        terms = h.terms(NIW([1.3, -1.7], n, n * np.diag([0.25, 1.2]), n), shared, batch, fits)
        values.append((float(terms.loss + terms.divergence), float(terms.total)))
    assert values[0][0] > values[1][0] > values[2][0] and values[1][1] < values[2][1]


@pytest.mark.slow
def test_infinitely_many_episodes_make_the_shared_law_a_point():
    result = quiet(lift(line, ["w"], num_episodes=math.inf))
    assert float(result.niw.df) > 1e5 and float(result.terms.globals[-1]) == 0.0
    finite = quiet(lift(line, ["w"], num_episodes=1e5))
    np.testing.assert_allclose(result.niw.loc, finite.niw.loc, rtol=1e-3)


@pytest.mark.slow
def test_a_single_episode():
    result = quiet(lift(line, ["w"]), EpisodeStream(episodes((4,))))
    assert float(result.niw.df) == 4.0 and np.isfinite(result.losses).all()


# --- local fits


@pytest.mark.slow
def test_solvers_agree_where_one_is_exact(fitted):
    h, batch = fitted.hierarchy, STREAM.batch(range(len(STREAM)))
    exact, ggn = (
        h.fits(fitted.niw, fitted.state.shared, batch, s, KEY) for s in (ExactLinearGaussian(), LaplaceGGN())
    )
    np.testing.assert_allclose(ggn.precision, exact.precision, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ggn.linear, exact.linear, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_a_local_posterior_is_that_of_bayesian_regression(fitted):
    x, y = episodes()[3]
    prior = NIW([0.5, 0.0], 3.0, np.array([[2.0, 0.3], [0.3, 1.0]]), 5.0)
    h = fitted.hierarchy
    fit = h.fits(prior, fitted.state.shared, STREAM.batch([3]), ExactLinearGaussian(), KEY)
    q = closed_form(Quadratic(*(v[0] for v in fit)), prior)
    f, p = np.stack([np.ones(len(x)), x], 1), 5.0 * np.linalg.inv([[2.0, 0.3], [0.3, 1.0]])
    covariance = np.linalg.inv(f.T @ f / NOISE**2 + p)
    np.testing.assert_allclose(q.covariance, covariance, rtol=1e-4)
    np.testing.assert_allclose(q.mean, covariance @ (f.T @ y / NOISE**2 + p @ [0.5, 0.0]), rtol=1e-4)


@pytest.mark.slow
def test_an_unconverged_diagonal_fit_does_not_overshoot():
    """One step from m₀ with correlated coordinates: the closed form's mean is the iterate, not a whole Newton
    step in each coordinate.
    """

    def correlated(y):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(w.sum(), 0.1), obs=y)

    stream = EpisodeStream([np.full(20, 4.0, np.float32)])
    h = lift(correlated, ["w"], structure="diagonal").hierarchy(stream)
    niw, batch = NIW(jnp.zeros(8), 1.0, jnp.ones(8), 3.0), stream.batch([0])
    fit = h.fits(niw, h.form.initial_shared(), batch, LaplaceGGN(num_steps=1, structure="diagonal"), KEY)
    q = closed_form(Quadratic(*(v[0] for v in fit)), niw)
    assert q.covariance.shape == (8,) and 0.0 < float(q.mean.sum()) <= 4.01
    # each coordinate alone would go all the way
    naive = 1 / (fit.precision[0] + 3.0) * (fit.precision[0] * 4.0)
    assert float(naive.sum()) > 30


@pytest.mark.slow
def test_gradients_flow_through_the_closed_form_only(fitted):
    """By finite differences with the fits held fixed; a solver that moves with m₀ adds nothing."""
    with jax.enable_x64(True):
        data = [(np.asarray(x, float), np.asarray(y, float)) for x, y in episodes()]
        stream = EpisodeStream(data)
        h, batch = lift(line, ["w"]).hierarchy(stream), stream.batch(range(len(stream)))
        niw, shared, solver = (
            NIW([0.3, 0.1], 2.0, np.array([[1.0, 0.2], [0.2, 0.7]]), 4.0),
            h.form.initial_shared(),
            LaplaceGGN(num_steps=1, structure="diagonal"),
        )
        fits = h.fits(niw, shared, batch, solver, KEY)
        flat, unravel = ravel_pytree(niw)
        free = jax.jit(
            lambda v: h.terms(unravel(v), shared, batch, h.fits(unravel(v), shared, batch, solver, KEY)).total
        )
        held = jax.jit(lambda v: h.terms(unravel(v), shared, batch, fits).total)
        slope = jax.grad(free)(flat)
        steps = 1e-5 * np.eye(len(flat))
        numeric = np.array([(held(flat + s) - held(flat - s)) / 2e-5 for s in steps])
        np.testing.assert_allclose(slope, numeric, rtol=1e-5, atol=1e-6)
        through_the_fit = np.array([(free(flat + s) - free(flat - s)) / 2e-5 for s in steps])
        assert np.abs(through_the_fit - numeric).max() > 1e-3  # the two differ here, so the test can tell


@pytest.mark.parametrize("diagonal", [False, True])
def test_expected_loss_is_exact_for_cubics(diagonal):
    rng = np.random.default_rng(0)
    root = np.tril(rng.normal(size=(3, 3))).astype(np.float32)
    q = Gaussian(
        jnp.asarray([0.5, -1.0, 2.0]), jnp.diag(root @ root.T) if diagonal else jnp.asarray(root @ root.T)
    )
    covariance = np.diag(q.covariance) if diagonal else np.asarray(q.covariance)
    value = expected(lambda t: t @ jnp.arange(9.0).reshape(3, 3) @ t + t[0] ** 3 + t[1], q)
    m, b = np.asarray(q.mean), np.arange(9.0).reshape(3, 3)
    exact = m @ b @ m + np.trace(b @ covariance) + m[0] ** 3 + 3 * m[0] * covariance[0, 0] + m[1]
    np.testing.assert_allclose(value, exact, rtol=1e-4)
    sampled = expected(lambda t: t @ t, q, jax.random.normal(KEY, (20_000, 3)))
    np.testing.assert_allclose(sampled, m @ m + np.trace(covariance), rtol=0.05)


@pytest.mark.slow
def test_curvature_that_breaks_down_is_left_out():
    """An episode whose curvature is NaN, indefinite or flat gives a prior-like law, and training goes on."""

    def odd(kind, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        bad = jnp.where(kind == 1, jnp.sqrt(-jnp.abs(w) - 1.0), 0.0)  # NaN
        bent = jnp.where(kind == 2, -3.0 * w**2, 0.0)  # concave: an improper likelihood
        with numpyro.plate("rows", 1):
            numpyro.sample("y", dist.Normal(jnp.where(kind == 3, 0.0, w), 1.0), obs=y + bad)
        numpyro.factor("bent", -bent * 0.0)

    y = np.zeros((4, 1), np.float32)
    stream = EpisodeStream([(np.asarray(k), y[k]) for k in (0, 2, 3)])
    h = lift(odd, ["w"]).hierarchy(stream)
    fit = h.fits(h.prior, h.form.initial_shared(), stream.batch(range(3)), LaplaceGGN(), KEY)
    assert np.isfinite(fit.precision).all() and float(fit.precision[2, 0, 0]) == 0.0
    stream = EpisodeStream([(np.asarray(1), y[0]), (np.asarray(0), y[0])])
    h = lift(odd, ["w"]).hierarchy(stream)
    fit = h.fits(h.prior, h.form.initial_shared(), stream.batch(range(2)), LaplaceGGN(), KEY)
    assert np.isfinite(fit.precision).all() and np.isfinite(fit.linear).all()


# --- episodes


@pytest.mark.slow
def test_padding_and_order_change_nothing(fitted):
    order = [4, 0, 5, 2, 1, 3]
    turned = quiet(lift(line, ["w"]), EpisodeStream([episodes()[i] for i in order]))
    for a, b in zip(jax.tree.leaves(fitted.niw), jax.tree.leaves(turned.niw), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    h = fitted.hierarchy
    for pad_to in (8, 20):
        batch = STREAM.batch([1], pad_to=pad_to)
        fit = h.fits(fitted.niw, fitted.state.shared, batch, ExactLinearGaussian(), KEY)
        terms = h.terms(fitted.niw, fitted.state.shared, batch, fit)
        alone = EpisodeStream([episodes()[1]])
        g = lift(line, ["w"]).hierarchy(alone)
        assert g.row_plates == () and h.row_plates == ("rows",)
        other = g.terms(
            fitted.niw,
            fitted.state.shared,
            alone.batch([0]),
            g.fits(fitted.niw, fitted.state.shared, alone.batch([0]), ExactLinearGaussian(), KEY),
        )
        np.testing.assert_allclose(terms.loss, other.loss, rtol=1e-4)


@pytest.mark.slow
def test_an_empty_episode_is_the_prior(fitted):
    with_empty = EpisodeStream([*episodes(), (np.zeros(0, np.float32), np.zeros(0, np.float32))])
    h = lift(line, ["w"]).hierarchy(with_empty)
    batch = with_empty.batch([6])
    fit = h.fits(fitted.niw, fitted.state.shared, batch, ExactLinearGaussian(), KEY)
    assert not np.asarray(fit.precision).any() and not np.asarray(fit.linear).any()
    assert float(h.terms(fitted.niw, fitted.state.shared, batch, fit).loss) == 0.0
    empty = fitted.adapt(KEY, jnp.zeros(0), jnp.zeros(0))
    df = float(fitted.niw.df) - 1
    predictive = fitted.niw.predictive()
    np.testing.assert_allclose(empty.mean, predictive.loc, rtol=1e-4)
    scale = np.asarray(predictive.scale_tril @ predictive.scale_tril.T)
    np.testing.assert_allclose(empty.covariance, scale * df / (df - 2), rtol=1e-3)


@pytest.mark.slow
def test_batches_reach_the_same_law(fitted):
    result = quiet(lift(line, ["w"]), batch_size=2, num_steps=400)
    np.testing.assert_allclose(result.niw.loc, fitted.niw.loc, atol=0.15)
    np.testing.assert_allclose(result.niw.df, fitted.niw.df, rtol=1e-4)
    again = quiet(lift(line, ["w"]), batch_size=2, num_steps=5)
    once = quiet(lift(line, ["w"]), batch_size=2, num_steps=3)
    resumed = quiet(lift(line, ["w"]), batch_size=2, num_steps=2, init=once)
    for a, b in zip(jax.tree.leaves(again.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_groups_of_a_table():
    stream = EpisodeStream.from_groups(np.array([2, 1, 2, 1, 1]), np.arange(5.0), np.arange(5.0) * 10)
    assert (
        len(stream) == 2 and stream[0][0].tolist() == [1.0, 3.0, 4.0] and stream[1][1].tolist() == [0.0, 20.0]
    )


@pytest.mark.slow
def test_a_simulator_as_stream():
    def simulate(key):
        a, b = jax.random.split(key)
        x = jax.random.normal(a, (4,))
        return x, 1.0 + 0.5 * jax.random.normal(b, ()) - x

    result = quiet(
        lift(line, ["w"], num_episodes=1000), SimulatedStream(simulate), batch_size=20, num_steps=100
    )
    np.testing.assert_allclose(result.niw.loc, [1.0, -1.0], atol=0.15)
    with pytest.raises(ArgumentError, match="num_episodes"):
        quiet(lift(line, ["w"]), SimulatedStream(simulate), batch_size=20)


# --- sites


def curve(x, y=None):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    share = numpyro.sample("share", dist.Beta(2.0, 2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    offset = numpyro.param("offset", 0.2 * jnp.ones(2), constraint=dist.constraints.positive)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(offset.sum() + share * jnp.exp(-rate * x), noise), obs=y)


@pytest.mark.slow
def test_constrained_local_sites_and_shared_ones():
    rng = np.random.default_rng(1)
    x = np.linspace(0, 2, 12, dtype=np.float32)
    data = [
        (x, (0.5 + 0.7 * np.exp(-r * x) + 0.05 * rng.normal(size=12)).astype(np.float32))
        for r in rng.gamma(9.0, 0.2, 10)
    ]
    stream = EpisodeStream(data)
    lifted = lift(curve, ["rate", "share"])
    result = quiet(lifted, stream, local_solver=LaplaceGGN(), optim=optax.adam(0.03), num_steps=400)
    assert set(result.shared) == {"noise", "offset"} and abs(float(result.shared["noise"]) - 0.05) < 0.03
    np.testing.assert_allclose(
        result.hierarchy.form.params_of(result.hierarchy.form.initial_shared())["offset"], 0.2, rtol=1e-5
    )
    assert (result.shared["offset"] > 0).all()
    assert result.losses[-1] < result.losses[0]
    post = result.adapt(KEY, *data[0], num_samples=500)
    assert post.samples["rate"].shape == (500,) and (post.samples["rate"] > 0).all()
    assert ((post.samples["share"] > 0) & (post.samples["share"] < 1)).all()
    params = {k: v for k, v in result.shared.items()}
    drawn = Predictive(numpyro.handlers.substitute(curve, params), posterior_samples=post.samples)(KEY, x)[
        "y"
    ]
    assert np.abs(drawn.mean(0) - data[0][1]).max() < 0.3


@pytest.mark.slow
def test_the_hierarchy_as_one_model_has_the_same_density():
    """log p of the NumPyro model at a point, against the same written out by hand, Jacobians and padding
    included.
    """
    lifted = lift(curve, ["rate", "share"])
    x = np.linspace(0, 2, 5, dtype=np.float32)
    stream = EpisodeStream([(x, x), (x[:3], -x[:3])])
    h = lifted.hierarchy(stream)
    theta = jnp.array([[0.2, -0.3], [0.5, 0.1]])
    covariance, mean = jnp.array([[1.0, 0.1], [0.1, 0.5]]), jnp.array([0.3, -0.2])
    raw = jnp.array([-0.7])
    values = {"covariance": covariance, "mean": mean, "theta": theta, "_noise": raw}
    model = numpyro.handlers.substitute(lifted.as_model(stream), data={"offset": jnp.array([0.1, 0.2])})
    ours, sites = numpyro.infer.util.log_density(model, (), {}, values)
    noise = jnp.exp(raw[0])
    total = dist.InverseWishart(h.prior.df, h.prior.scale_matrix).log_prob(covariance)
    total += dist.MultivariateNormal(h.prior.loc, covariance / h.prior.mean_precision).log_prob(mean)
    total += dist.HalfNormal(1.0).log_prob(noise) + raw[0]
    for t, (at, y) in zip(theta, [(x, x), (x[:3], -x[:3])], strict=True):
        rate, share = jnp.exp(t[0]), jax.nn.sigmoid(t[1])
        total += dist.MultivariateNormal(mean, covariance).log_prob(t)
        total += dist.Normal(0.3 + share * jnp.exp(-rate * at), noise).log_prob(y).sum()
    np.testing.assert_allclose(ours, total, rtol=1e-4)
    np.testing.assert_allclose(sites["rate"]["value"], jnp.exp(theta[:, 0]), rtol=1e-5)


@pytest.mark.slow
def test_own_priors_are_replaced_or_kept():
    theta, (x, y) = jnp.array([0.4, 0.2]), episodes()[0]
    plain, kept = (
        lift(line, ["w"], keep_prior=k).hierarchy(EpisodeStream([(x, y)])).form for k in (False, True)
    )
    shared = plain.initial_shared()
    difference = kept.log_likelihood(theta, shared, (x, y), {}) - plain.log_likelihood(
        theta, shared, (x, y), {}
    )
    np.testing.assert_allclose(difference, dist.Normal(0.0, 1.0).log_prob(theta).sum(), rtol=1e-4)
    x = np.linspace(0, 2, 5, dtype=np.float32)
    plain, kept = (
        lift(curve, ["rate", "share"], keep_prior=k).hierarchy(EpisodeStream([(x, x)])).form
        for k in (False, True)
    )
    shared = plain.initial_shared()
    difference = kept.log_likelihood(theta, shared, (x, x), {}) - plain.log_likelihood(
        theta, shared, (x, x), {}
    )
    rate, share = jnp.exp(theta[0]), jax.nn.sigmoid(theta[1])
    own = (
        dist.Gamma(2.0, 1.0).log_prob(rate)
        + theta[0]
        + dist.Beta(2.0, 2.0).log_prob(share)
        + jnp.log(share * (1 - share))
    )
    np.testing.assert_allclose(difference, own, rtol=1e-3)


@pytest.mark.slow
def test_adaptation_in_one_dimension_by_quadrature():
    """The Student-t prior times a Gaussian likelihood, on a grid."""

    def level(y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(w, 1.0), obs=y)

    stream = EpisodeStream([np.array([0.1, 0.3, -0.2], np.float32), np.array([0.5, 0.4, 0.0], np.float32)])
    result = quiet(lift(level, ["w"], prior=NIW([0.0], 1.0, [[0.5]], 1.5)), stream)
    y = jnp.array([5.0, 6.0])  # far out, where the tails matter
    grid = jnp.linspace(-20.0, 30.0, 20_001)
    log_p = result.niw.predictive().log_prob(grid[:, None]) - 0.5 * ((y - grid[:, None]) ** 2).sum(1)
    weights = jax.nn.softmax(log_p)
    mean = float(weights @ grid)
    post = result.adapt(KEY, y, num_samples=4000)
    np.testing.assert_allclose(post.mean[0], mean, rtol=5e-3)
    np.testing.assert_allclose(post.covariance[0, 0], weights @ (grid - mean) ** 2, rtol=0.02)
    np.testing.assert_allclose(post.samples["w"].mean(), mean, atol=0.1)
    narrow = result.adapt(KEY, y, prior="mode")
    assert float(narrow.mean[0]) < mean - 0.5  # the mode's Gaussian does not believe in such an episode


@pytest.mark.parametrize("structure", ["diagonal", "block"])
@pytest.mark.slow
def test_structures_train_and_adapt(structure):
    prior = (
        None if structure == "diagonal" else NIW(np.zeros(2, np.float32), 0.01, np.eye(2), 2.0, blocks=(1, 1))
    )
    result = quiet(lift(line, ["w"], structure=structure, prior=prior))
    full = result.niw.scale_matrix if structure == "block" else jnp.diag(result.niw.scale_matrix)
    assert float(full[0, 1]) == 0.0 and np.isfinite(result.losses).all()
    post = result.adapt(KEY, *episodes()[3])
    exact = np.linalg.lstsq(np.stack([np.ones(8), episodes()[3][0]], 1), episodes()[3][1], rcond=None)[0]
    np.testing.assert_allclose(post.mean, exact, atol=0.3)


# --- what is refused


def discrete(y):
    numpyro.sample("k", dist.Bernoulli(0.5))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def unplated(y):
    numpyro.sample(
        "y",
        dist.Normal(numpyro.sample("w", dist.Normal(0.0, 1.0)) * jnp.ones(len(y)), 1.0).to_event(1),
        obs=y,
    )


def subsampled(y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y), subsample_size=1) as i:
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y[i])


ONE = EpisodeStream([np.zeros(3, np.float32), np.ones(3, np.float32)])
RAGGED = EpisodeStream([np.zeros(3, np.float32), np.ones(2, np.float32)])


@pytest.mark.parametrize(
    ("model", "options", "stream", "message"),
    [
        (discrete, dict(local=["k"], shared=["w"]), ONE, "'k' is discrete"),
        (discrete, dict(local=["w"]), ONE, "'k' is discrete"),
        (discrete, dict(local=["w"], shared=[]), ONE, "'k' is neither local nor shared"),
        (unplated, dict(local=["y"]), ONE, "'y' is observed, not a latent"),
        (unplated, dict(local=["v"]), ONE, "no site 'v' to be local. It has 'w'"),
        (unplated, dict(local=["w"], shared=["v"]), ONE, "no latent or param site 'v'"),
        (unplated, dict(local=["w"]), RAGGED, r"site 'y' has a row for each row.*numpyro.plate"),
        (subsampled, dict(local=["w"]), ONE, "plate 'rows' is subsampled"),
    ],
)
def test_models_that_do_not_fit(model, options, stream, message):
    with pytest.raises(ModelError, match=message):
        lift(model, **options).hierarchy(stream)


def test_a_model_that_is_not_quadratic_has_no_exact_solver():
    x = np.linspace(0, 2, 5, dtype=np.float32)
    with pytest.raises(ModelError, match="not. Use LaplaceGGN"):
        quiet(lift(curve, ["rate", "share"]), EpisodeStream([(x, x)]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lift(line, "w"), ArgumentError, "local must be a list"),
        (lambda: lift(line, []).hierarchy(STREAM), ArgumentError, "at least one local site; .* has 'w'"),
        (lambda: lift(line, ["w"], structure="banded"), ArgumentError, "structure is 'full'"),
        (lambda: lift(line, ["w"], structure="block"), ArgumentError, "needs prior"),
        (lambda: lift(line, ["w"], num_episodes=0), ArgumentError, "at least 1"),
        (lambda: lift(line, ["w"], prior=3.0), ArgumentError, "must be a ppl_ext.meta.NIW"),
        (
            lambda: lift(line, ["w"], prior=NIW(np.zeros(3), 1.0, np.eye(3), 4.0)).hierarchy(STREAM),
            ArgumentError,
            "3 dimensions",
        ),
        (
            lambda: lift(line, ["w"], prior=NIW(np.zeros(2), 1.0, np.ones(2), 4.0)).hierarchy(STREAM),
            ArgumentError,
            "prior is diagonal",
        ),
        (lambda: lift(line, ["w"]).hierarchy(3), ArgumentTypeError, "must be a list of tuples"),
        (lambda: EpisodeStream([]), ArgumentError, "no episode"),
        (lambda: EpisodeStream(3), ArgumentTypeError, "sequence of tuples"),
        (lambda: EpisodeStream([(1.0, 2.0), (1.0,)]), ArgumentError, "differ in structure"),
        (
            lambda: EpisodeStream([(np.zeros((2, 2)),), (np.zeros((3, 1)),)]),
            ArgumentError,
            "beyond its first axis",
        ),
        (lambda: EpisodeStream([(np.zeros(2), np.zeros(3)), (np.zeros(3), np.zeros(3))]) and None, None, ""),
        (
            lambda: EpisodeStream([(np.zeros(2), np.zeros(3)), (np.zeros(3), np.zeros(4))]),
            ArgumentError,
            "different numbers of rows",
        ),
        (lambda: EpisodeStream.from_groups([1, 2], [1.0]), ArgumentError, "column 0 has"),
        (
            lambda: quiet(lift(line, ["w"]), local_solver=ExactLinearGaussian),
            ArgumentTypeError,
            "local_solver must be an instance",
        ),
        (lambda: quiet(lift(line, ["w"]), rate=2.0), ArgumentError, r"rate must lie in \(0, 1\]"),
        (lambda: quiet(lift(line, ["w"]), optim=0.1), ArgumentTypeError, "optimiser of optax"),
        (lambda: LaplaceGGN(structure="banded"), ArgumentError, "'full', 'diagonal'"),
    ],
)
def test_arguments(call, error, message):
    if error is None:
        call()
        return
    with pytest.raises(error, match=message):
        call()


def test_a_bound_that_breaks_down_keeps_the_last_good_state():
    data = episodes()
    data[2][1][:] = np.nan
    with pytest.raises(NonFiniteError, match="at step 0") as caught:
        quiet(lift(line, ["w"]), EpisodeStream(data), local_solver=LaplaceGGN(), num_steps=3)
    assert np.isfinite(caught.value.result.niw.loc).all()


def test_adapt_checks_its_prior(fitted):
    with pytest.raises(ArgumentError, match="'student_t' or 'mode'"):
        fitted.adapt(KEY, *episodes()[0], prior="normal")
