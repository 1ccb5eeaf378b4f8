"""Lengths of excursions: Rice's formula, published exponents, sums of a geometric number of lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinygp import kernels
from tinygp.kernels import quasisep

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors import GaussianProcess, excursion_times


def sech(a, b):
    return 1.0 / jnp.cosh((a - b.T) / 2.0)


@pytest.mark.parametrize(
    ("kernel", "moment", "exponent"),
    [
        (sech, 0.25, 0.18621),  # exactly 3/16 = .1875
        (kernels.ExpSquared(), 1.0, 0.4115),  # simulated .422
        (kernels.Matern32(), 3.0, None),
        (kernels.Matern52(scale=0.5), 20.0 / 3.0, None),
        (2.0 * quasisep.Matern32(scale=10.0), 0.03, None),
    ],
)
def test_the_mean_and_the_exponent(kernel, moment, exponent):
    found = excursion_times(kernel)
    np.testing.assert_allclose(found.mean, np.pi / np.sqrt(moment), rtol=1e-6)
    if exponent is not None:
        np.testing.assert_allclose(found.exponent, exponent, atol=6e-5)
    t = np.linspace(0.0, min(found.times[-1], 25 * found.mean), 4001)
    left = found.survival(t)
    np.testing.assert_allclose(np.trapezoid(left, t), found.mean, rtol=2e-3)
    # what is left falls at the rate of the pole
    a, b = 2400, 3200
    np.testing.assert_allclose(np.log(left[a] / left[b]) / (t[b] - t[a]), found.exponent, rtol=2e-3)


def test_the_law_is_that_of_a_sum_of_a_geometric_number_of_lengths():
    found, rng = excursion_times(kernels.ExpSquared()), np.random.default_rng(0)
    lengths = np.zeros(40_000)
    for i, num in enumerate(rng.geometric(0.5, size=len(lengths))):
        lengths[i] = np.interp(rng.uniform(size=num), found.clipped[::-1], found.times[::-1]).sum()
    t = np.array([0.5, 2.0, 5.0, 9.0])
    left = found.survival(t)
    error = np.sqrt(left * (1 - left) / len(lengths))
    assert (abs((lengths[:, None] > t).mean(0) - left) < 4.5 * error).all()


def test_the_expected_sign_after_a_crossing():
    """Of Slepian's model: slope Rayleigh, what is left normal; and of a process on a fine grid."""
    found = excursion_times(kernels.ExpSquared())
    t = np.arange(0.0, 3.0, 0.02)
    law = GaussianProcess(kernels.ExpSquared())
    draws = np.asarray(law.sample(jax.random.key(0), jnp.asarray(np.arange(-0.02, 3.0, 0.02)), 200_000))
    crossed = draws[(draws[:, 0] < 0) & (draws[:, 1] > 0)]
    expected = np.interp(t, found.times, found.clipped)
    sign = np.sign(crossed[:, 1:]).mean(0)
    at = [50, 100]
    assert len(crossed) > 500  # a step of 0.02 every 2π
    # the grid is half a step late
    np.testing.assert_array_less(abs(sign - expected)[at], 4.5 / np.sqrt(len(crossed)) + 0.02)


def test_a_target_will_do_and_other_units_change_nothing():
    a = excursion_times(GaussianProcess(kernels.ExpSquared()))
    b = excursion_times(7.0 * kernels.ExpSquared(scale=1e3))
    np.testing.assert_allclose([b.mean / 1e3, b.exponent * 1e3], [a.mean, a.exponent], rtol=1e-6)


def test_a_heavy_tail_has_no_exponent():
    found = excursion_times(kernels.RationalQuadratic(alpha=1.0))
    assert found.exponent == 0.0
    np.testing.assert_allclose(found.mean, np.pi, rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "error", "words"),
    [
        (kernels.Exp(), ArgumentError, "an Exp is of a process without derivative.*Matérn 3/2"),
        (quasisep.Exp(scale=2.0), ArgumentError, "an Exp is of a process without derivative"),
        (
            lambda a, b: jnp.exp(-(jnp.maximum(abs(a - b.T), 1e-12) ** 1.5)),
            ArgumentError,
            "process without derivative",
        ),
        (kernels.Cosine(), ArgumentError, "a Cosine has no monotonous E.*mean excursion is 0.5 "),
        (
            quasisep.SHO(omega=jnp.asarray(2.0), quality=jnp.asarray(3.0)),
            ArgumentError,
            "a SHO has no monotonous E",
        ),
        (kernels.Constant(2.0), ArgumentError, "a Constant has a covariance that .* does not fall"),
        (lambda a, b: sech(a, b) * jnp.exp(0.1 * a * b.T), ArgumentError, "is not stationary|does not fall"),
        (lambda a, b: sech(a, b) * (1 + 0.1 * jnp.sin(a + b.T)), ArgumentError, "is not stationary"),
        (3, ArgumentTypeError, "kernel"),
        (kernels.ExpSquared, ArgumentTypeError, "must be an instance"),
    ],
)
def test_what_has_no_excursions_is_refused_by_name(kernel, error, words):
    with pytest.raises(error, match=words):
        excursion_times(kernel)


@pytest.mark.parametrize("times", [[-0.1], [1e9], [np.nan]])
def test_times_that_are_none(times):
    with pytest.raises(ArgumentError, match="survival: times must be between 0 and"):
        excursion_times(kernels.ExpSquared()).survival(times)


def test_what_is_traced_is_refused():
    with pytest.raises(ArgumentError, match="has a traced parameter.*outside of jit"):
        jax.jit(lambda scale: excursion_times(kernels.ExpSquared(scale=scale)).mean)(1.0)
