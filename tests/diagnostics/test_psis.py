"""Importance weights: the shape of their tail and what they are worth."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_ext.diagnostics import importance_ess, pareto_k_threshold, psis
from ppl_ext.errors import ArgumentError, ArgumentTypeError

OLD_ARVIZ = az.__version__.startswith("0.")


def log_normal_weights(sd, num_draws=4000, seed=0):
    return np.random.default_rng(seed).normal(0.0, sd, num_draws)


@pytest.mark.skipif(not OLD_ARVIZ, reason="ArviZ 1.x has no psislw for plain arrays")
@pytest.mark.parametrize("num_draws", [100, 4000])
@pytest.mark.parametrize("sd", [0.1, 1.0, 5.0, 80.0])
def test_agrees_with_arviz_in_float64(sd, num_draws):
    log_weights = log_normal_weights(sd, num_draws)
    smoothed, k = az.psislw(log_weights.copy())
    ours = psis(log_weights)
    np.testing.assert_allclose(ours.pareto_k, k, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.exp(ours.log_weights), np.exp(smoothed), atol=1e-12)


def test_a_hopeless_tail_is_not_read_as_excellent():
    truth = psis(log_normal_weights(80.0))
    assert truth.pareto_k > 20.0

    def close(k):
        return abs(k - truth.pareto_k) < 0.3

    in_float32 = jnp.asarray(log_normal_weights(80.0), jnp.float32)
    assert close(psis(in_float32).pareto_k)
    if OLD_ARVIZ:  # the same check finds what float32 arithmetic does
        with np.errstate(all="ignore"):
            assert not close(float(az.psislw(np.array(in_float32))[1]))


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.9, 2.0])
def test_recovers_the_shape_of_a_generalised_pareto_tail(shape):
    rng = np.random.default_rng(1)
    # Weights 1 + x with x generalised Pareto: exceedances over any threshold have the same shape.
    survival = rng.uniform(size=(200, 4000))
    k = psis(np.log1p((survival**-shape - 1.0) / shape)).pareto_k
    # The prior draws k towards 0.5 by 10 draws in 190 + 10.
    expected = shape + (0.5 - shape) * 10 / 200
    # 200 replicates; the fit itself is biased by O(1/M), about 0.03 at M = 190. False alarms: below 1e-5.
    assert abs(k.mean() - expected) < 4.5 * k.std() / np.sqrt(200) + 0.03


def test_smoothed_weights_are_normalised_ordered_and_capped():
    log_weights = log_normal_weights(2.0)
    smoothed, k, ess = psis(log_weights)
    np.testing.assert_allclose(np.exp(smoothed).sum(), 1.0)
    order = np.argsort(log_weights)
    assert (np.diff(smoothed[order]) >= 0.0).all()
    # Only the 3 sqrt(S) largest change, and none beyond the largest raw one.
    ratios = smoothed - log_weights
    assert np.ptp(ratios[order[: -int(np.ceil(3 * np.sqrt(4000)))]]) < 1e-12
    assert (smoothed - ratios[order[0]]).max() <= log_weights.max() + 1e-12
    np.testing.assert_allclose(ess, importance_ess(smoothed))


def test_batches_are_rows():
    log_weights = log_normal_weights(1.0, 600).reshape(2, 3, 100)
    whole = psis(log_weights)
    assert whole.log_weights.shape == (2, 3, 100) and whole.pareto_k.shape == whole.ess.shape == (2, 3)
    for i in np.ndindex(2, 3):
        one = psis(log_weights[i])
        np.testing.assert_array_equal(whole.log_weights[i], one.log_weights)
        assert whole.pareto_k[i] == one.pareto_k and whole.ess[i] == one.ess
    empty = psis(np.zeros((0, 5)))
    assert empty.log_weights.shape == (0, 5) and empty.pareto_k.shape == (0,)


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
def test_a_constant_does_not_matter(offset):
    log_weights = log_normal_weights(1.0)
    np.testing.assert_allclose(psis(log_weights + offset).pareto_k, psis(log_weights).pareto_k, atol=1e-6)


INF = np.inf


@pytest.mark.parametrize(
    ("log_weights", "k", "ess"),
    [
        ([np.nan] + [0.0] * 99, np.nan, np.nan),
        ([INF] + [0.0] * 99, np.nan, np.nan),
        ([0.0] * 100, -INF, 100.0),
        ([0.0] * 50 + [-INF] * 50, -INF, 50.0),
        ([0.0] + [-INF] * 99, INF, 1.0),
        ([-INF] * 100, INF, 0.0),
        ([0.0], INF, 1.0),
        ([0.0, -1.0, -2.0], INF, None),
        ([0.0, -1e300, -1e301], INF, 1.0),
    ],
)
def test_edges(log_weights, k, ess):
    result = psis(log_weights)
    np.testing.assert_equal(float(result.pareto_k), k)
    if ess is not None:
        np.testing.assert_allclose(result.ess, ess)


def test_zero_weights_leave_the_others_alone():
    log_weights = log_normal_weights(1.0, 1000)
    # Half of twice as many draws have no weight: the tail is a sample of the same tail.
    with_zeros = psis(np.concatenate([log_weights, np.full(1000, -INF)]))
    assert np.isfinite(with_zeros.pareto_k) and abs(with_zeros.pareto_k - psis(log_weights).pareto_k) < 0.2
    assert (np.exp(with_zeros.log_weights[1000:]) == 0.0).all()


def test_ess_is_the_formula():
    w = np.array([[1.0, 2.0, 3.0], [5.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(importance_ess(np.log(w)), [36.0 / 14.0, 1.0])


def test_threshold_grows_with_draws_and_stops():
    assert pareto_k_threshold(1) == -INF
    assert pareto_k_threshold(100) == pytest.approx(0.5)
    assert pareto_k_threshold(10**6) == 0.7


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="at least one draw"):
        psis(0.0)
    with pytest.raises(ArgumentError, match="at least one draw"):
        psis(np.zeros((3, 0)))
    with pytest.raises(ArgumentTypeError, match="real numbers"):
        psis(["a", "b"])
    with pytest.raises(ArgumentTypeError, match="outside jit"):
        jax.jit(lambda x: psis(x).ess)(jnp.zeros(10))
