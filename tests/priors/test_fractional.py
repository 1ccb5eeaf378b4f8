"""Fractional Brownian motion as a scan: against quadrature, and dense Gaussian algebra."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, special

import ppl_ext
from ppl_ext.algorithms import ExactFilter
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors import MarkovFBM
from ppl_ext.priors import fractional_weights as weights
from ppl_ext.smoothing import smooth
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(0)
TIMES = np.sort(np.concatenate([RNG.uniform(0.0, 2.0, 12), [0.0, 0.5, 0.5, 0.501]]))
HORIZON = 2.0


def quad(fn, a, b, **settings):
    return integrate.quad(fn, a, b, limit=500, **settings)[0]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# --- what is computed on the host


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_the_law_has_variance_one_at_time_one(hurst):
    """Both kinds are an integral of a power over white noise; the unit is that integral's variance."""
    a = hurst - 0.5

    def square(s):
        return ((1 + s) ** a - s**a) ** 2

    after = 1 / (2 * hurst)
    before = quad(square, 0, 1) + quad(square, 1, np.inf)
    scale = special.gamma(hurst + 0.5) ** 2
    np.testing.assert_allclose(weights.unit_variance(hurst, "I"), (before + after) / scale, rtol=1e-8)
    np.testing.assert_allclose(weights.unit_variance(hurst, "II"), after / scale, rtol=1e-12)
    if hurst != 0.5:
        as_published = special.gamma(1 - 2 * hurst) * np.cos(np.pi * hurst) / (np.pi * hurst)
        np.testing.assert_allclose(weights.unit_variance(hurst, "I"), as_published, rtol=1e-12)
    for kind in ("I", "II"):
        np.testing.assert_allclose(
            np.diag(MarkovFBM(hurst, 2.0, kind=kind).exact_covariance([1.0, 2.0])),
            [1.0, 2.0 ** (2 * hurst)],
            rtol=1e-12,
        )


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_the_exact_covariance_of_what_knows_nothing_before(hurst):
    s, t = 0.4, 1.3
    right = 2 * hurst * quad(lambda u: ((t - s + u) * u) ** (hurst - 0.5), 0, s)
    found = weights.exact_covariance(hurst, np.array([0.0, t, s]), "II")
    np.testing.assert_allclose(
        found, [[0, 0, 0], [0, t ** (2 * hurst), right], [0, right, s ** (2 * hurst)]], rtol=1e-7
    )


@pytest.mark.parametrize("kind", ["I", "II"])
@pytest.mark.parametrize("hurst", [0.2, 0.8])
def test_the_equations_of_the_weights(hurst, kind):
    """Against integrals over time of products of the kernels of Y and B."""
    rates, horizon, a = np.array([0.01, 0.4, 3.0, 900.0]), 1.5, hurst - 0.5
    left, right = weights.normal_equations(hurst, horizon, rates, kind)

    def product(i, j, t):
        sums = rates[i] + rates[j]
        if kind == "II":
            return -np.expm1(-sums * t) / sums
        return (-np.expm1(-rates[i] * t) - np.expm1(-rates[j] * t)) / sums

    expected = [[quad(partial(product, i, j), 0, horizon) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(left, expected, rtol=1e-7)

    def since(k):  # what both heard after 0, with the order of integration changed
        def kernel(r):
            return (horizon - r) * np.exp(-rates[k] * r)

        return (
            quad(kernel, 0, horizon, weight="alg", wvar=(a, 0))
            if rates[k] < 100
            else quad(lambda x: kernel(x ** (1 / (a + 1))) / (a + 1), 0, 0.1 ** (a + 1))
        )

    def before(k):
        def at(s):
            g = rates[k]
            return quad(lambda t: (np.exp(-g * t) - 1) * ((t + s) ** a - s**a), 0, horizon) * np.exp(-g * s)

        cut = min(1.0, 30.0 / rates[k])
        return quad(lambda x: at(x**4) * 4 * x**3, 0, cut**0.25) + quad(at, cut, 40.0 / rates[k] + cut)

    heard = np.array([since(k) + (before(k) if kind == "I" else 0.0) for k in range(4)])
    np.testing.assert_allclose(right, heard / special.gamma(a + 1), rtol=2e-5)


@pytest.mark.parametrize(
    ("kind", "hurst", "most"),
    [("I", 0.2, 0.01), ("I", 0.35, 1e-3), ("I", 0.65, 6e-3), ("I", 0.8, 0.06),
     ("II", 0.2, 6e-3), ("II", 0.35, 1e-3), ("II", 0.65, 1e-4), ("II", 0.8, 1e-4)],
)  # fmt: skip
def test_the_covariance_is_near_that_of_the_process(kind, hurst, most):
    t = np.linspace(0.01, 1.0, 25)
    noise, finer = (MarkovFBM(hurst, 1.0, num_terms=k, kind=kind) for k in (10, 5))
    error = abs(noise.covariance(t) - noise.exact_covariance(t)).max()
    assert error < most < abs(finer.covariance(t) - noise.exact_covariance(t)).max()
    # the best approximation and its error are orthogonal, so that variances subtract
    x, w = np.polynomial.legendre.leggauss(24)
    at = ((x + 1) / 2) ** 3
    whole = (1.5 * w * at ** (2 / 3)) @ np.diag(noise.covariance(at)) * (2 * hurst + 1)
    np.testing.assert_allclose(noise.missed(), 1 - whole, atol=1e-5)
    np.testing.assert_array_equal(
        weights.covariance(hurst, 1.0, t[::-1], np.array(noise.rates), kind), noise.covariance(t)[::-1, ::-1]
    )


def test_brownian_motion_is_among_them():
    t = np.linspace(0.05, 1.0, 20)
    for kind, most in (("I", 1e-3), ("II", 1e-5)):
        noise = MarkovFBM(0.5, 1.0, kind=kind)
        np.testing.assert_allclose(noise.covariance(t), np.minimum(t[:, None], t), atol=most)


@pytest.mark.filterwarnings("ignore:MarkovFBM")  # both miss the same
@pytest.mark.parametrize(("kind", "most"), [("I", 1e-6), ("II", 2e-5)])
def test_a_traced_index_is_as_good_as_a_number(kind, most, double):
    for hurst in (0.05, 0.1, 0.37, 0.5, 0.81, 0.95):
        known = MarkovFBM(hurst, 1.0, kind=kind)
        found = jax.jit(lambda h: MarkovFBM(h, 1.0, kind=kind).readout)(hurst)
        off = np.asarray(found - known.readout)
        rates, _ = weights.generator(np.array(known.rates))
        moved = weights.linalg.expm(rates)
        spread = 2 * np.eye(10) - moved - moved.T if kind == "I" else np.eye(10) - moved @ moved.T
        assert (off @ spread @ off) ** 0.5 < most  # deviation at the horizon, where B's is 1
    for hurst in (0.01, 0.99):
        assert np.isnan(jax.jit(lambda h: MarkovFBM(h, 1.0, kind=kind).readout)(hurst)).all()


# --- the scan


def model(t, y, kind, noise_scale=0.1, num_terms=6):
    hurst = numpyro.sample("hurst", dist.Uniform(0.0, 1.0))
    noise = MarkovFBM(hurst, HORIZON, kind=kind, num_terms=num_terms)

    def observe(b, y_t):
        numpyro.sample("y", dist.Normal(b, noise_scale), obs=y_t)

    return noise.path("b", t, observe, y)


def dense(hurst, y, kind, noise_scale=0.1, num_terms=6, times=TIMES):
    law = MarkovFBM(hurst, HORIZON, kind=kind, num_terms=num_terms).covariance(times)
    law = law + noise_scale**2 * np.eye(len(times))
    return -0.5 * (y @ np.linalg.solve(law, y) + np.linalg.slogdet(2 * np.pi * law)[1])


Y = np.sin(2 * TIMES) + 0.1 * RNG.normal(size=len(TIMES))
of_hurst = ppl_ext.marginal(model, ["hurst"], ExactFilter())


@pytest.mark.parametrize("kind", ["I", "II"])
def test_the_evidence_and_its_slope_are_those_of_the_dense_law(kind, double):
    def ours(hurst):
        return ppl_ext.log_density(of_hurst, {"hurst": hurst}, TIMES, Y, kind).total

    found, slope = jax.value_and_grad(ours)(0.7)
    np.testing.assert_allclose(found, dense(0.7, Y, kind), atol=1e-5)
    right = (dense(0.7001, Y, kind) - dense(0.6999, Y, kind)) / 2e-4
    np.testing.assert_allclose(slope, right, rtol=1e-4)


@pytest.mark.parametrize("kind", ["I", "II"])
@pytest.mark.parametrize("hurst", [0.3, 0.8])
def test_single_precision(hurst, kind):
    """Two hundred times, seen with a thousandth of B's scale as noise: increments are 0.01 and more."""
    t = np.arange(1, 201) / 100.0
    law = MarkovFBM(hurst, HORIZON, kind=kind).exact_covariance(t) + 1e-6 * np.eye(200)
    y = np.linalg.cholesky(law) @ np.random.default_rng(1).normal(size=200)

    @jax.jit
    def evidence(steps, y):
        return ppl_ext.log_density(of_hurst, {"hurst": hurst}, steps, y, kind, 1e-3, 10).total

    most = 0.03 if kind == "I" else 5e-3
    found = evidence(MarkovFBM(hurst, HORIZON, kind=kind).steps(t), y)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(float(found), dense(hurst, y, kind, 1e-3, 10, t), atol=most)


@pytest.mark.parametrize(("kind", "most_alike"), [("I", 2), ("II", 0)])
def test_coordinates_are_uncorrelated_at_the_horizon(kind, most_alike):
    """Or B would be a small difference of large ones, which single precision does not have.

    But for combinations of the slowest two of type I, whose variances are tiny: they count for nothing.
    """
    steps = MarkovFBM(0.8, HORIZON, kind=kind).steps(np.linspace(0.1, HORIZON, 20))
    covariance = np.zeros((10, 10))
    for slope, scale in zip(*map(np.float64, (steps.slope, steps.scale)), strict=True):
        covariance = slope @ covariance @ slope.T + np.diag(scale**2)
    variances = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(variances[most_alike:], 1.0, atol=0.02)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_the_posterior_given_all_data(kind, double):
    noise = MarkovFBM(0.7, HORIZON, kind=kind, num_terms=6)
    steps = noise.steps(TIMES)

    @jax.jit
    def smoothed(steps, y):
        return smooth_exactly(lower(model, (steps, y, kind), {}, {"hurst": jnp.asarray(0.7)}))

    found = smoothed(steps, Y)
    x = jnp.einsum("nij,nj->ni", steps.turn, found.mean[:, :6])
    if kind == "I":
        x += jnp.einsum("nij,nj->ni", steps.lost, found.mean[:, 6:])
    law = noise.covariance(TIMES)
    right = law @ np.linalg.solve(law + 0.01 * np.eye(len(TIMES)), Y)
    np.testing.assert_allclose(x @ noise.readout, right, atol=1e-5)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_the_law_of_draws(kind):
    t = np.array([0.01, 0.5, 0.5, 2.0])
    noise = MarkovFBM(0.7, HORIZON, kind=kind)
    steps = noise.steps(t)

    def draw(key):
        return numpyro.handlers.seed(lambda: noise.path("b", steps), key)()

    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 20_000)))
    law = noise.covariance(t)
    error = np.sqrt((law**2 + np.outer(np.diag(law), np.diag(law))) / 20_000)
    assert (abs(np.cov(draws.T) - law) < 4.5 * error).all()
    np.testing.assert_allclose(draws[:, 1], draws[:, 2], atol=1e-4)


def test_particles_agree_with_the_exact_evidence():
    t, y = np.array([0.2, 0.4, 1.0, 1.5]), np.array([0.3, -0.2, 0.5, 0.9])

    noise = MarkovFBM(0.3, HORIZON, num_terms=4)

    def known(steps, y):
        noise.path("b", steps, lambda b, y_t: numpyro.sample("y", dist.Normal(b, 0.4), obs=y_t), y)

    runs = [
        smooth(known, num_particles=4000, backward="path")
        .run(jax.random.key(k), noise.steps(t), y)
        .log_evidence
        for k in range(4)
    ]
    right = dense(0.3, y, "I", 0.4, 4, t)
    assert abs(np.mean(runs) - right) < 4.5 * np.std(runs, ddof=1) / 2 + 1e-3
    assert np.std(runs) < 0.1


def test_a_control_moves_the_noise_and_costs_half_its_square():
    noise = MarkovFBM(0.3, 1.0, kind="II")
    steps = noise.steps([0.1, 0.25])
    rate, gain = weights.generator(np.array(noise.rates))
    x, w = np.polynomial.legendre.leggauss(80)
    s = 0.15 * ((x + 1) / 2) ** 4
    # what dW + dt adds in a step: the integral of e^{F r} g
    moved = weights.linalg.expm(rate * s[:, None, None]) @ gain
    expected = (w * 0.3 * ((x + 1) / 2) ** 3) @ moved
    np.testing.assert_allclose(steps.turn[1] @ steps.pull[1], expected, atol=1e-6)
    nats = 0.5 * ((steps.pull / steps.scale) ** 2).sum(1)
    # the ends of the Y tell W's increment but for a little
    assert (nats <= 0.50001 * steps.length).all() and (nats > 0.49 * steps.length).all()

    def guide(u):
        state = noise.step("state", noise.start("start"), jax.tree.map(lambda x: x[0], steps), u)
        return state.value

    record = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0))
    law, plain = (record.get_trace(u)["state"]["fn"] for u in (2.0, 0.0))
    np.testing.assert_allclose(law.base_dist.loc - plain.base_dist.loc, 2.0 * steps.pull[0], rtol=1e-5)
    np.testing.assert_array_equal(law.base_dist.scale, plain.base_dist.scale)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hurst": 1.0}, ArgumentError, "hurst must be one number between 0 and 1, got 1.0"),
        ({"hurst": 0.0}, ArgumentError, "hurst must be one number between 0 and 1"),
        ({"hurst": np.nan}, ArgumentError, "hurst must be one number between 0 and 1"),
        ({"hurst": np.array([0.2, 0.3])}, ArgumentError, "hurst must be one number between 0 and 1"),
        ({"hurst": "rough"}, ArgumentTypeError, "hurst must be an array of numbers"),
        ({"horizon": -1.0}, ArgumentError, "horizon must be positive"),
        ({"finest": 0.0}, ArgumentError, "finest must be positive"),
        ({"finest": 2.0}, ArgumentError, "finest must be below the horizon 1"),
        ({"num_terms": 0}, ArgumentError, "num_terms must be a positive integer"),
        ({"num_terms": 1}, ArgumentError, "num_terms must be at least 2"),
        ({"num_terms": -3}, ArgumentError, "num_terms must be a positive integer"),
        ({"kind": "III"}, ArgumentError, "kind must be 'I' or 'II'"),
    ],
)
def test_what_is_no_noise_is_refused(change, error, words):
    with pytest.raises(error, match=words):
        MarkovFBM(**{"hurst": 0.3, "horizon": 1.0} | change)


@pytest.mark.parametrize(
    ("times", "data", "words"),
    [
        ([0.5, 0.2], None, "'b': times must not decrease.*at index 1"),
        ([0.2, np.nan], None, "'b': times must not decrease"),
        ([-0.1, 0.2], None, "'b': times must lie between 0.*from -0.1 to 0.2"),
        ([0.1, 1.2], None, "'b': times must lie between 0.*raise the horizon"),
        ([], None, "'b': times is empty"),
        (0.3, None, "'b': times must be a vector"),
        ([0.1, 0.2], np.zeros(3), "'b': data must have one entry for each of the 2 times"),
    ],
)
def test_what_is_no_path_is_refused_by_name(times, data, words):
    with pytest.raises(ArgumentError, match=words), numpyro.handlers.seed(rng_seed=0):
        MarkovFBM(0.3, 1.0).path("b", times, None, data)


@pytest.mark.parametrize(
    "change",
    [
        {"horizon": 2.0},
        {"kind": "I"},
        {"num_terms": 4},
        {"finest": 0.1},
        {"horizon": 0.01, "kind": "I"},  # of the same rates
    ],
    ids=str,
)
def test_steps_of_another_noise_are_refused(change):
    given = {"horizon": 1.0, "kind": "II", "finest": 0.005}
    steps = MarkovFBM(0.4, **given | change).steps([0.005, 0.01])
    noise = MarkovFBM(0.7, **given)
    with pytest.raises(ArgumentError, match="'b': the steps are those of a MarkovFBM of another"):
        numpyro.handlers.seed(lambda: noise.path("b", steps), 0)()
    row = jax.tree.map(lambda x: x[0], steps)
    with pytest.raises(ArgumentError, match="'b': the steps are those of a MarkovFBM of another"):
        numpyro.handlers.seed(lambda: noise.step("b", noise.start("b0"), row), 0)()
    own = MarkovFBM(0.4, **given).steps([0.5, 1.0])  # only the index differs
    assert numpyro.handlers.seed(lambda: noise.path("b", own), 0)().shape == (2,)


@pytest.mark.parametrize("which", ["covariance", "exact_covariance"])
@pytest.mark.parametrize("times", [[-0.1, 0.2], [0.1, np.nan], [0.1, 1.2], [[0.1]], []])
def test_a_covariance_is_of_times_of_the_process(which, times):
    with pytest.raises(ArgumentError, match=f"MarkovFBM.{which}: times (must|is)"):
        getattr(MarkovFBM(0.3, 1.0), which)(times)


def test_a_name_is_a_string():
    with pytest.raises(ArgumentTypeError, match="MarkovFBM.path: name must be a string, got 3"):
        numpyro.handlers.seed(lambda: MarkovFBM(0.3, 1.0).path(3, [0.5]), 0)()


def test_what_is_traced_is_refused_with_the_remedy():
    noise = MarkovFBM(0.3, 1.0, kind="II")
    with pytest.raises(ArgumentError, match=r"'b': times are traced.*noise.steps\(times\) outside"):
        jax.jit(lambda t: numpyro.handlers.seed(lambda: noise.path("b", t), 0)())(jnp.ones(2))
    with pytest.raises(ArgumentError, match="hurst is traced"):
        jax.jit(lambda h: MarkovFBM(h, 1.0).covariance([0.5]))(0.3)
    steps = noise.steps([0.5, 1.0])
    found = jax.jit(lambda s: numpyro.handlers.seed(lambda: noise.path("b", s), 0)())(steps)
    assert found.shape == (2,) and np.isfinite(found).all()


@pytest.mark.parametrize(("kind", "hurst", "remedy"), [("I", 0.1, "smaller finest"), ("I", 0.9, "kind='II'")])
def test_what_is_missed_is_told(kind, hurst, remedy):
    """The noise is smaller than that of the process, by a share that is known."""
    with pytest.warns(UserWarning, match=f"% of the variance is missed with hurst={hurst}.*{remedy}"):
        noise = MarkovFBM(hurst, horizon=1.0, kind=kind)
    t = np.linspace(0.0, 1.0, 401)[1:]
    share = 1 - np.diag(noise.covariance(t)).mean() / np.diag(noise.exact_covariance(t)).mean()
    np.testing.assert_allclose(share, noise.missed(), rtol=0.01)
    assert share > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MarkovFBM(0.8, horizon=1.0), MarkovFBM(0.98, horizon=1.0, kind="II")
        MarkovFBM(0.1, horizon=1.0, finest=5e-5, num_terms=20)
