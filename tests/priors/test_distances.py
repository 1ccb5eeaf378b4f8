"""Distances against closed forms and quadrature; what is called unbiased has the right mean over replicates,
at few draws.
"""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace

import ppl_ext.priors.distances.sliced as sliced
from ppl_ext.errors import ArgumentError, ArgumentTypeError, MissingExtraError
from ppl_ext.priors import (
    MMD,
    CriticW1,
    Energy,
    Functions,
    Gaussian,
    GaussianKL,
    GaussianProcess,
    GaussianW2,
    ScaleMixture,
    Sinkhorn,
    SlicedWasserstein,
    lift_prior,
    match,
)
from ppl_ext.priors.matching.readout import find_readout, functions_with_moments
from tests.priors.models import LEVEL, SLOPE, X, line, linear_target, network

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

A, B = 0.5, 1.5  # standard deviations of the two laws where these have one value


def replicate(distance, draws, dim=1, count=3000, scales=(A, B)):
    """The estimate for fresh Gaussian draws each time."""

    @jax.jit
    @jax.vmap
    def one(key):
        of_f, of_g, of_distance = jax.random.split(key, 3)
        f, g = (s * jax.random.normal(k, (draws, dim)) for s, k in zip(scales, (of_f, of_g), strict=True))
        return distance(of_distance, (), Functions(f), Functions(g))

    return np.asarray(one(jax.random.split(jax.random.key(0), count)), np.float64)


def has_mean(sample, exact, tolerance=1e-6):
    return abs(sample.mean() - exact) < 4.5 * sample.std(ddof=1) / np.sqrt(len(sample)) + tolerance


# --- sliced


def on_the_circle(f, g):
    """The mean over all directions in the plane, by quadrature: sorted, halved or not."""
    angles = np.linspace(0.0, np.pi, 2000, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    p, q = np.sort(f @ directions, axis=0), np.sort(g @ directions, axis=0)
    return ((p - q) ** 2).mean()


@pytest.fixture(scope="module")
def draws():
    """Correlated draws in the plane of unequal means: both control variates have something to do."""
    rng = np.random.default_rng(1)
    f = rng.normal(size=(40, 2)) @ np.array([[1.0, 0.8], [0.0, 0.4]])
    return f, rng.normal(size=(40, 2)) * np.array([2.5, 0.3]) + np.array([0.5, 1.0])


def estimates(draws, **options):
    f, g = (Functions(jnp.asarray(x, jnp.float32)) for x in draws)
    distance = SlicedWasserstein(debias=False, **options)
    return np.asarray(
        jax.jit(jax.vmap(lambda k: distance(k, (), f, g)))(jax.random.split(jax.random.key(0), 2000)),
        np.float64,
    )


def test_control_variates_keep_the_mean_and_cut_the_spread(draws):
    exact = on_the_circle(*draws)
    plain, controlled = (estimates(draws, num_projections=16, control_variates=on) for on in (False, True))
    assert has_mean(plain, exact) and has_mean(controlled, exact)
    assert controlled.std() < 0.5 * plain.std()


def test_control_variates_with_a_wrong_mean_are_caught(draws, monkeypatch):
    right = sliced._control_variates
    monkeypatch.setattr(sliced, "_control_variates", lambda *args: (right(*args)[0], 1.05 * right(*args)[1]))
    assert not has_mean(estimates(draws, num_projections=16), on_the_circle(*draws))


@pytest.mark.slow
def test_halved_draws_have_no_bias_where_the_laws_are_equal():
    assert has_mean(replicate(SlicedWasserstein(num_projections=8), 8, scales=(1.0, 1.0)), 0.0)
    biased = SlicedWasserstein(num_projections=8, debias=False)
    assert not has_mean(replicate(biased, 8, scales=(1.0, 1.0)), 0.0, tolerance=0.05)


@pytest.mark.slow
def test_halved_draws_estimate_the_squared_difference_of_expected_order_statistics():
    order = np.sort(np.random.default_rng(0).normal(size=(200_000, 4)), axis=1).mean(0)
    exact = (B - A) ** 2 * (order**2).mean()
    assert has_mean(replicate(SlicedWasserstein(num_projections=8), 8), exact, tolerance=2e-3)


@pytest.mark.slow
def test_sliced_distances_see_the_mean_too():
    f = jax.random.normal(jax.random.key(0), (500, 4))
    shifted = SlicedWasserstein()(jax.random.key(1), (), Functions(f), Functions(f + 2.0))
    assert float(shifted) == pytest.approx(4.0, rel=0.1)  # |shift|^2 / D


# --- pairs


def test_energy_is_unbiased_with_two_draws():
    exact = np.sqrt(2 / np.pi) * (2 * np.hypot(A, B) - np.sqrt(2) * (A + B))
    sample = replicate(Energy(), 2)
    assert has_mean(sample, exact)
    # With each draw paired with itself too, the self-terms would be half of what they are.
    assert not has_mean(sample + 0.5 * np.sqrt(2 / np.pi) * np.sqrt(2) * (A + B), exact)


def test_mmd_is_unbiased_with_three_draws():
    z, h = np.linspace(-12, 12, 20001), 0.7

    def expected(sd):
        kernel = sum((1 + (sd * z) ** 2 / (2 * a * h**2)) ** -a for a in (0.2, 1.0, 5.0)) / 3
        return np.trapezoid(kernel * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), z)

    exact = expected(np.sqrt(2) * A) + expected(np.sqrt(2) * B) - 2 * expected(np.hypot(A, B))
    assert has_mean(replicate(MMD(bandwidth=h), 3), exact)
    assert not has_mean(replicate(MMD(bandwidth=3.0 * h), 3), exact)


def test_the_bandwidth_is_the_median_of_other_draws():
    target = Functions(jax.random.normal(jax.random.key(0), (400, 1)))
    state = MMD().prepare(jax.random.key(1), MMD().start(jax.random.key(0), 1), lambda key: (None, target))
    assert float(state) == pytest.approx(np.sqrt(2) * 0.6745, rel=0.1)


@pytest.mark.slow
def test_gradients_are_finite_where_draws_coincide():
    f = jnp.ones((4, 3))
    for distance in (Energy(), MMD(), SlicedWasserstein()):
        slope = jax.grad(lambda x, d=distance: d(jax.random.key(0), (), Functions(x), Functions(f)))(f)
        assert np.isfinite(slope).all()


# --- moments


def known(mean, cov):
    return Functions(jnp.zeros((4, len(mean))), jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))


def test_gaussian_distances_are_their_closed_forms():
    rng = np.random.default_rng(0)
    m1, m2 = rng.normal(size=(2, 3))
    c1, c2 = (x @ x.T + 0.3 * np.eye(3) for x in rng.normal(size=(2, 3, 3)))
    root = lambda c: (lambda w, v: v * np.sqrt(w) @ v.T)(*np.linalg.eigh(c))  # noqa: E731  a formula in one line
    w2 = (((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root(root(c2) @ c1 @ root(c2)))) / 3
    ours = GaussianW2()(jax.random.key(0), (), known(m1, c1), known(m2, c2))
    np.testing.assert_allclose(ours, w2, rtol=1e-4)
    nu = 0.01 * np.trace(c2) / 3 * np.eye(3)
    p, q = c1 + nu, c2 + nu
    d = m1 - m2
    kl = (
        0.5
        * (
            np.trace(np.linalg.solve(p, q))
            + d @ np.linalg.solve(p, d)
            - 3
            + np.linalg.slogdet(p)[1]
            - np.linalg.slogdet(q)[1]
        )
        / 3
    )
    np.testing.assert_allclose(
        GaussianKL()(jax.random.key(0), (), known(m1, c1), known(m2, c2)), kl, rtol=1e-4
    )


def test_gaussian_w2_has_finite_slopes_at_singular_covariances():
    u = jnp.arange(1.0, 5.0)
    target = known(np.zeros(4), 4.0 * np.outer(u, u))

    def distance(scale):
        return GaussianW2()(
            jax.random.key(0),
            (),
            Functions(jnp.zeros((4, 4)), jnp.zeros(4), scale**2 * jnp.outer(u, u)),
            target,
        )

    value, slope = jax.value_and_grad(distance)(jnp.array(1.5))
    np.testing.assert_allclose(value, 0.25 * 30 / 4, rtol=1e-2)
    np.testing.assert_allclose(slope, -2 * 0.5 * 30 / 4, rtol=1e-2)


# --- readouts


def bilinear(x):
    a, b = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    return a * b * x


def bent(x):
    return jnp.exp(numpyro.sample("a", dist.Normal(0.0, 1.0)) * x)


def chained(x):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    return (a + numpyro.sample("b", dist.Gamma(jnp.exp(a), 1.0))) * x


def heavy(x):
    return numpyro.sample("a", dist.StudentT(3.0)) * x


@pytest.mark.parametrize(
    ("model", "output", "sites"),
    [
        (line, "f", ("slope", "level")),
        (network, "f", ("w2",)),
        (network, "y", ("w2",)),
        (bilinear, None, ("b",)),
        (bent, None, ()),
        (chained, None, ()),
        (heavy, None, ()),
    ],
)
def test_readouts_are_found_from_the_data_flow(model, output, sites):
    assert set(find_readout(model, output, jax.random.key(0), X, (), {})) == set(sites)


@pytest.mark.slow
def test_moments_are_exact_over_the_readout():
    """One draw of the hidden layer: the covariance is that of its features, and the mean that of the
    readout.
    """
    lifted = lift_prior(network, {"w2": Gaussian(scale=1.7, learn_mean=True)})
    layout = lifted.layout(X)
    raw = layout.init()
    raw["w2"]["w2"]["mean"] = jnp.array(0.4)
    model = lifted.at(layout, raw)
    keys = jax.random.split(jax.random.key(0), 2)
    functions = functions_with_moments(model, ("w2",), "f", keys, X, (), {})
    features = []
    for key in keys:
        sites = trace(seed(model, key)).get_trace(X)
        features.append(np.asarray(jnp.tanh(X[:, None] @ sites["w1"]["value"].T + sites["b1"]["value"])))
    means = [0.4 * h.sum(1) for h in features]
    cov = np.mean([1.7**2 * h @ h.T for h in features], axis=0) + np.cov(np.stack(means).T)
    np.testing.assert_allclose(functions.mean, np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(functions.cov, cov, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        functions.values[0], trace(seed(model, keys[0])).get_trace(X)["f"]["value"], rtol=1e-4, atol=1e-5
    )


def test_a_readout_under_a_random_scale_is_integrated_given_that_scale():
    lifted = lift_prior(network, {"w2": ScaleMixture()})
    layout = lifted.layout(X)
    assert find_readout(lifted.at(layout, layout.init()), "f", jax.random.key(0), X, (), {}) == ("w2",)


# --- transport


def bowl(width, sharp=6.0):
    """A critic that is |x| but for a rounded bottom: two units of the first layer, passed on and added up."""
    first = (
        jnp.zeros((1, width)).at[0, :2].set(jnp.array([sharp, -sharp])),
        jnp.full(width, -20.0).at[:2].set(0.0),
    )
    second = jnp.zeros((width, width)).at[:2, :2].set(jnp.eye(2)), jnp.full(width, -20.0).at[:2].set(0.0)
    return [first, second, (jnp.zeros((width, 1)).at[:2, 0].set(1.0 / sharp), jnp.zeros(1))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "scales", "shift", "steps", "exact"),
    [(1, (A, B), 0.0, 1500, (B - A) * np.sqrt(2 / np.pi)), (3, (1.0, 1.0), 2.0 / np.sqrt(3), 400, 2.0)],
    ids=["scales at one input", "shift"],
)
def test_wasserstein_1_of_two_normals_by_the_critic(dim, scales, shift, steps, exact):
    """At one input it is |σ1 − σ2| √(2/π), of a critic |x|; for a shift its length. The penalty lets slopes
    of 1 + W/(2λ) through.
    """
    critic = CriticW1(num_steps=steps, width=32, tolerance=0.0)

    def draws(key, count):
        f, g = (
            s * jax.random.normal(k, (count, dim)) for s, k in zip(scales, jax.random.split(key), strict=True)
        )
        return Functions(f), Functions(g + shift)

    @jax.jit
    def estimate(key):
        state = bowl(32) if dim == 1 else critic.start(jax.random.key(1), dim)
        state = critic.prepare(key, state, lambda k: draws(k, 256))
        return critic(key, state, *draws(key, 20_000))

    assert float(estimate(jax.random.key(0))) == pytest.approx(
        exact * (1.0 + exact / (2.0 * critic.penalty)), rel=0.05
    )


@pytest.mark.slow
def test_the_critic_stops_early_and_as_published_sees_one_set_of_draws():
    seen = []

    def draw(key):
        seen.append(key)
        return Functions(jax.random.normal(key, (8, 2))), Functions(2.0 * jax.random.normal(key, (8, 2)))

    start = CriticW1(width=8).start(jax.random.key(0), 2)
    stopped = CriticW1(width=8, num_steps=10, tolerance=1e6).prepare(jax.random.key(0), start, draw)
    once = CriticW1(width=8, num_steps=1, tolerance=1e6).prepare(jax.random.key(0), start, draw)
    jax.tree.map(np.testing.assert_array_equal, stopped, once)  # the first gradient's norm is below τ
    count = len(seen)
    CriticW1(width=8, num_steps=2, fresh=False).prepare(jax.random.key(0), start, draw)
    assert len(seen) == count + 1


def test_sinkhorn_in_other_units_is_the_same_distance():
    """The penalty follows the size of the draws."""
    f, g = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    one, ten = (
        Sinkhorn(max_iterations=50)(jax.random.key(0), (), Functions(c * f), Functions(c * g))
        for c in (1.0, 10.0)
    )
    np.testing.assert_allclose(ten, 100.0 * one, rtol=1e-4)


def test_sinkhorn_halves_the_draws_and_its_penalty_is_over_the_mean_cost_between_those_of_the_target(
    monkeypatch,
):
    """With a transport that couples nothing, the limit of large penalties, its cost is the mean one."""
    f, g = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    penalties = []

    def cloud(x, y, epsilon):
        penalties.append(epsilon)
        return x, y

    def solve(pair, max_iterations):
        return SimpleNamespace(reg_ot_cost=jnp.mean(jnp.sum((pair[0][:, None] - pair[1]) ** 2, -1)))

    ott = SimpleNamespace(PointCloud=cloud), SimpleNamespace(solve=solve)
    monkeypatch.setattr("ppl_ext.priors.distances.sinkhorn._ott", lambda: ott)
    found = Sinkhorn(epsilon=0.5)(jax.random.key(0), (), Functions(f), Functions(g))

    def cost(x, y):
        return ((x[:, None] - y) ** 2).mean()

    np.testing.assert_allclose(penalties[0], 0.5 * cost(g, g), rtol=1e-5)
    apart, alike = cost(f[:4], g[:4]) + cost(f[4:], g[4:]), cost(f[:4], f[4:]) + cost(g[:4], g[4:])
    np.testing.assert_allclose(found, 0.5 * (apart - alike), rtol=1e-4)


@pytest.mark.slow
def test_sinkhorn_is_zero_on_average_where_the_laws_are_equal_and_grows():
    equal = replicate(Sinkhorn(max_iterations=50), 8, count=200, scales=(1.0, 1.0))
    assert has_mean(equal, 0.0)
    assert replicate(Sinkhorn(max_iterations=50), 8, count=50, scales=(1.0, 2.0)).mean() > 0.2


def test_sinkhorn_without_ott_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott.solvers", None)
    monkeypatch.setitem(sys.modules, "ott.geometry", None)
    with pytest.raises(MissingExtraError, match=r"ppl_ext\[priors\]"):
        Sinkhorn()


# --- all of them


ALL = [SlicedWasserstein(), Energy(), MMD(), GaussianW2(), GaussianKL(), Sinkhorn(), CriticW1(num_steps=20)]


@pytest.mark.slow
@pytest.mark.parametrize("distance", ALL, ids=lambda d: type(d).__name__)
def test_more_values_than_draws_equal_inputs_and_a_mean_stay_finite(distance):
    """Two outputs at 18 inputs, six of them twice, and 8 draws: sampled covariances have rank 7 of 36."""

    def bends(x):
        a, b = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        return jnp.stack([jnp.exp(0.5 * a * x), b + jnp.sin(a * x)], axis=1)

    lifted = lift_prior(bends, {"*": Gaussian(learn_mean=True)})
    target = GaussianProcess(lambda x1, x2: jnp.exp(-0.5 * (x1 - x2.T) ** 2), mean=3.0, num_outputs=2)
    inputs = jnp.concatenate([X, X[:6]])
    fit = match(
        jax.random.key(0),
        lifted,
        inputs=inputs,
        target=target,
        distance=distance,
        num_steps=5,
        num_draws=8,
        progress_bar=False,
    )
    assert np.isfinite(fit.losses).all() and len(fit.losses) == 5
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(fit.hyperparameters))
    assert np.isfinite([d for of in fit.report.distances.values() for d in of]).all()


@pytest.mark.slow
@pytest.mark.parametrize("distance", ALL, ids=lambda d: type(d).__name__)
def test_every_distance_recovers_the_scales_of_a_linear_kernel(distance):
    lifted = lift_prior(line, {"slope": Gaussian(), "level": Gaussian()})
    options = {
        "output": "f",
        "inputs": X,
        "target": linear_target(),
        "num_steps": 250,
        "num_draws": 256,
        "progress_bar": False,
    }
    fit = match(jax.random.key(3), lifted, distance=distance, **options)
    for name, exact in (("slope", SLOPE), ("level", LEVEL)):
        assert float(fit.hyperparameters[name][name]["scale"]) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SlicedWasserstein(num_projections=7), "num_projections must be even"),
        (lambda: SlicedWasserstein(num_projections=0), "num_projections"),
        (lambda: SlicedWasserstein(debias=1), "debias"),
        (lambda: MMD(bandwidth=0.0), "bandwidth"),
        (lambda: GaussianKL(noise=0.0), "noise"),
        (lambda: Sinkhorn(epsilon=-1.0), "epsilon"),
        (lambda: CriticW1(num_steps=0), "num_steps"),
        (lambda: CriticW1(fresh="yes"), "fresh"),
        (
            lambda: Energy()(jax.random.key(0), (), Functions(jnp.ones((1, 2))), Functions(jnp.ones((1, 2)))),
            "at least 2 draws",
        ),
        (
            lambda: Energy()(jax.random.key(0), (), Functions(jnp.ones((4, 2))), Functions(jnp.ones((4, 3)))),
            "as many values",
        ),
        (
            lambda: SlicedWasserstein()(
                jax.random.key(0), (), Functions(jnp.ones((5, 2))), Functions(jnp.ones((5, 2)))
            ),
            "even number",
        ),
    ],
)
def test_bad_options_are_named(build, words):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
        build()
