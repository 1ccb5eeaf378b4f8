"""Designs, exactly: every tuple of few candidates is enumerated; draws of more against the kernel."""

import copy
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ppl_ext
from ppl_ext.designs import ProjectionDPP, VolumeRescaled, repeated, volume_rescaled
from ppl_ext.designs.projection_dpp import one_of
from ppl_ext.errors import ArgumentError, ArgumentTypeError

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(7, 3))
MEASURE = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 0.0, 1.0])


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def tuples(num, size):
    return jnp.array(list(itertools.product(range(num), repeat=size)))


def kernel(features, measure):
    """The projection on the span of the features, by the formula for it."""
    scaled = features * np.sqrt(measure / measure.sum())[:, None]
    return scaled @ np.linalg.solve(scaled.T @ scaled, scaled.T)


def fitted(design, rows, f):
    """Weighted least squares on rows, as values at all candidates."""
    scale = np.sqrt(np.asarray(design.weights(rows)))
    a, b = FEATURES[rows] * scale[..., None], f[rows] * scale
    return np.linalg.pinv(a) @ b[..., None]


def best_of(f, measure):
    mu = measure / measure.sum()
    scaled = FEATURES * np.sqrt(mu)[:, None]
    return np.linalg.lstsq(scaled, f * np.sqrt(mu), rcond=None)[0], mu


@pytest.mark.parametrize("num", [1, 2, 9, 11])
def test_one_of_several_masses(num):
    """Whole blocks without mass, and a last one that is not full."""
    masses = np.arange(num) % 4 * (np.arange(num) > 2) + 1e-3 * (np.arange(num) == 0)
    keys = jax.random.split(jax.random.key(num), 20_000)
    drawn = np.asarray(jax.vmap(lambda key: one_of(key, jnp.asarray(masses)))(keys))
    counts = np.bincount(drawn, minlength=num) / 20_000
    p = masses / masses.sum()
    assert len(counts) == num and (counts[p == 0] == 0).all()
    np.testing.assert_array_less(np.abs(counts - p), 4.5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9)


@pytest.mark.parametrize("measure", [np.ones(7), MEASURE])
def test_the_law_is_that_of_determinants_and_sums_to_one(measure, double):
    law, k = ProjectionDPP(FEATURES, measure), kernel(FEATURES, measure)
    every = tuples(7, 3)
    found = np.asarray(jnp.exp(law.log_prob(every)))
    right = [np.linalg.det(k[np.ix_(rows, rows)]) / 6 for rows in np.asarray(every)]
    np.testing.assert_allclose(found, right, atol=1e-12)
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(law.inclusion, np.diag(k), rtol=1e-12)
    assert np.isneginf(law.log_prob(jnp.array([2, 4, 2])))


def test_least_squares_there_are_unbiased_and_m_plus_one_times_the_best(double):
    f, law = RNG.normal(size=7), ProjectionDPP(FEATURES)
    every = tuples(7, 3)
    every = every[jnp.isfinite(law.log_prob(every))]
    p = np.asarray(jnp.exp(law.log_prob(every)))
    found = fitted(law, every, f)[..., 0]
    best, _ = best_of(f, np.ones(7))
    np.testing.assert_allclose(p @ found, best, atol=1e-9)
    squares = ((f - found @ FEATURES.T) ** 2).sum(1)
    np.testing.assert_allclose(p @ squares, 4 * ((f - FEATURES @ best) ** 2).sum(), rtol=1e-9)


@pytest.mark.parametrize("measure", [np.ones(7), MEASURE])
def test_volume_rescaled_sums_to_one_and_is_unbiased(measure, double):
    f = RNG.normal(size=7)
    law = volume_rescaled(ProjectionDPP(FEATURES, measure), 5)
    every = tuples(7, 5)
    p = np.asarray(jnp.exp(law.log_prob(every)))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-10)
    some = p > 1e-14
    every, p = np.asarray(every)[some], p[some]
    best, mu = best_of(f, measure)
    np.testing.assert_allclose(p @ fitted(law, every, f)[..., 0], best, atol=1e-8)
    np.testing.assert_allclose(p @ (np.asarray(law.weights(every)) * f[every]).mean(1), mu @ f, rtol=1e-8)


def test_with_as_many_points_as_features_volume_sampling_is_the_process(double):
    dpp = ProjectionDPP(FEATURES, MEASURE)
    every = jnp.array([[0, 1, 2], [4, 6, 3]])
    np.testing.assert_allclose(volume_rescaled(dpp, 3).log_prob(every), dpp.log_prob(every), rtol=1e-9)
    assert np.isneginf(volume_rescaled(dpp, 4).log_prob(jnp.array([0, 1, 2, 5])))  # 5 has no mass


def test_repeated_is_a_product(double):
    dpp = ProjectionDPP(FEATURES, MEASURE)
    rows = jnp.array([0, 1, 2, 4, 2, 3])
    law = repeated(dpp, 2)
    np.testing.assert_allclose(law.log_prob(rows), dpp.log_prob(rows[:3]) + dpp.log_prob(rows[3:]))
    np.testing.assert_array_equal(law.weights(rows), dpp.weights(rows))
    draws = law.sample(jax.random.key(0), (4, 5))
    assert draws.shape == (4, 5, 6) and np.isfinite(law.log_prob(draws)).all()
    assert (draws[..., :3] != draws[..., 3:]).any()


def test_marginals_and_pairs_of_draws_are_the_kernels_on_a_grid():
    """In single precision, of ten polynomials on forty points: and both directions in which order is none."""
    x, num = np.linspace(-1.0, 1.0, 40), 20_000
    features = np.polynomial.legendre.legvander(x, 9)
    law, k = ProjectionDPP(features), kernel(features, np.ones(40))
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (num,)))(jax.random.key(0)))
    assert all(len(set(rows)) == 10 for rows in draws[:500])
    there = np.zeros((num, 40))
    np.put_along_axis(there, draws, 1.0, 1)
    assert (there.sum(1) == 10).all()
    for found, right in (
        (there.mean(0), np.diag(k)),
        (there.T @ there / num, np.outer(np.diag(k), np.diag(k)) - k**2 + np.diag(np.diag(k))),
    ):
        error = np.sqrt(np.clip(right * (1 - right), 0, None) / num)
        assert (np.abs(found - right) <= 4.5 * error + 5 / num).all()
    for place in (0, 9):  # every place of a tuple has the same law
        share = np.bincount(draws[:, place], minlength=40) / num
        right = np.diag(k) / 10
        assert (np.abs(share - right) <= 4.5 * np.sqrt(right * (1 - right) / num)).all()


@pytest.mark.parametrize("size", [3, 4])
def test_draws_of_whole_tuples(size):
    features = FEATURES[:4, :2]
    law = volume_rescaled(ProjectionDPP(features, MEASURE[:4]), size)
    every = tuples(4, size)
    right = np.asarray(jnp.exp(law.log_prob(every)), np.float64)
    draws = np.asarray(law.sample(jax.random.key(1), (20_000,)))
    found = np.bincount(draws @ 4 ** np.arange(size)[::-1], minlength=len(every)) / 20_000
    assert (np.abs(found - right) <= 4.5 * np.sqrt(right / 20_000) + 1e-4).all()


def test_weights_are_those_of_means():
    law, f = ProjectionDPP(FEATURES, MEASURE), RNG.normal(size=7)
    rows = np.arange(7)[MEASURE > 0]
    expected = (np.asarray(law.inclusion)[rows] / 3 * np.asarray(law.weights(rows)) * f[rows]).sum()
    np.testing.assert_allclose(expected, MEASURE @ f / MEASURE.sum(), rtol=1e-5)


def test_features_count_by_their_span_alone():
    mixed = 1e3 * FEATURES @ RNG.normal(size=(3, 3)) * np.array([1.0, 1e-9, 1e9])
    np.testing.assert_allclose(ProjectionDPP(mixed).inclusion, ProjectionDPP(FEATURES).inclusion, rtol=1e-5)


def test_a_site_of_a_model():
    table = jnp.asarray(FEATURES)

    def model(y=None):
        rows = numpyro.sample("rows", ProjectionDPP(table))
        numpyro.sample("y", dist.Normal(table[rows, 0], 1.0).to_event(1), obs=y)

    draw = ppl_ext.simulate(model, rng_key=jax.random.key(0))
    rows, y = draw.values["rows"], draw.values["y"]
    right = ProjectionDPP(table).log_prob(rows) + dist.Normal(table[rows, 0], 1.0).log_prob(y).sum()
    np.testing.assert_allclose(draw.log_density.total, right, rtol=1e-5)
    laws = jax.vmap(ProjectionDPP)(jnp.stack([table, 2.0 * table]))  # as a tree, features unknown
    found = jax.vmap(lambda law: law.log_prob(rows))(laws)
    np.testing.assert_allclose(found, [ProjectionDPP(table).log_prob(rows)] * 2, rtol=1e-3)
    batch = ProjectionDPP(table).expand([4])
    assert batch.sample(jax.random.key(0), (2,)).shape == (2, 4, 3)
    assert batch.log_prob(batch.sample(jax.random.key(0))).shape == (4,)


def test_the_density_of_many_points_does_not_overflow():
    x = np.linspace(-1.0, 1.0, 2000)
    law = ProjectionDPP(np.polynomial.legendre.legvander(x, 29))
    rows = law.sample(jax.random.key(0))
    k = kernel(np.polynomial.legendre.legvander(x, 29), np.ones(2000))[np.ix_(rows, rows)]
    right = np.linalg.slogdet(k)[1] - math.lgamma(31)
    np.testing.assert_allclose(law.log_prob(rows), right, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": FEATURES[:, [0, 1, 0]]}, ArgumentError, "full rank, and of 3 only 2 are.*Leave out"),
        ({"features": np.zeros((7, 2))}, ArgumentError, "full rank, and of 2 only 0"),
        (
            {"features": FEATURES, "measure": np.eye(7)[0] + np.eye(7)[3]},
            ArgumentError,
            "full rank, and of 3 ",
        ),
        ({"features": FEATURES[:2]}, ArgumentError, "3 features ask for at least 3 candidates, got 2"),
        ({"features": FEATURES[0]}, ArgumentError, "features must be a matrix"),
        ({"features": np.full((3, 1), np.nan)}, ArgumentError, "finite; that of row 0, column 0"),
        ({"features": "legendre"}, ArgumentTypeError, "features must be an array of numbers"),
        ({"features": FEATURES, "measure": np.ones(6)}, ArgumentError, "one mass for each of the 7"),
        ({"features": FEATURES, "measure": -MEASURE}, ArgumentError, "not negative, and not all zero"),
        ({"features": FEATURES, "measure": "even"}, ArgumentTypeError, "measure must be an array of numbers"),
    ],
)
def test_what_is_no_design_is_refused_by_name(change, error, words):
    with pytest.raises(error, match=f"ProjectionDPP: .*{words}"):
        ProjectionDPP(**change)


def test_more_points_than_that_are_refused_by_name():
    dpp = ProjectionDPP(FEATURES)
    with pytest.raises(ArgumentError, match="volume_rescaled: size must be at least 3.*got 2"):
        volume_rescaled(dpp, 2)
    with pytest.raises(ArgumentError, match="volume_rescaled: size must be a positive integer"):
        volume_rescaled(dpp, 3.5)
    with pytest.raises(ArgumentTypeError, match="volume_rescaled: dpp must be a ProjectionDPP"):
        volume_rescaled(FEATURES, 4)
    with pytest.raises(ArgumentTypeError, match="repeated: dpp must be a ProjectionDPP.*VolumeRescaled"):
        repeated(VolumeRescaled(dpp, 4), 2)
    with pytest.raises(ArgumentError, match="repeated: times must be a positive integer, got 0"):
        repeated(dpp, 0)


@pytest.mark.parametrize("row", [7, -1])
def test_rows_that_are_not_there_have_no_weight(row):
    dpp = ProjectionDPP(FEATURES)
    with pytest.raises(ArgumentError, match=f"weights: there are the rows 0 to 6, got {row}"):
        dpp.weights([0, row])
    traced = jax.jit(dpp.weights)(jnp.array([0, row]))
    assert np.isfinite(traced[0]) and np.isnan(traced[1])


@pytest.mark.parametrize("rows", [[0, 1, 7], [0, 1, -1]])
def test_rows_that_are_not_there_have_no_mass(rows):
    for law in (ProjectionDPP(FEATURES), volume_rescaled(ProjectionDPP(FEATURES), 3)):
        unchecked = copy.copy(law)
        unchecked._validate_args = False
        assert np.isneginf(unchecked.log_prob(jnp.array(rows)))
        with pytest.warns(UserWarning, match="support"):
            assert np.isneginf(law.log_prob(jnp.array(rows)))
