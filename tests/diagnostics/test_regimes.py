"""The regime of a sum of weights against random energies in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from ppl_ext.diagnostics import weight_regime
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

N = 20_000
GRID = (np.arange(N) + 0.5) / N
NORMAL = stats.norm.ppf(GRID)
NORMAL /= NORMAL.std()


@pytest.mark.parametrize("spread", [0.3, 2.0, 3.3, 6.0])
def test_log_normal_weights(spread):
    found = weight_regime(spread * NORMAL + 40.0)
    assert found.nats_mean == pytest.approx(spread**2 / 2, rel=1e-3)
    assert found.nats_variance == pytest.approx(2 * spread**2, rel=1e-3)
    assert found.nats_at_hand == pytest.approx(math.log(N))


@pytest.mark.parametrize(
    ("square", "regime"), [(0.45, "clt"), (0.55, "heavy_tail"), (1.9, "heavy_tail"), (2.1, "condensed")]
)
def test_thresholds_of_log_normal_weights(square, regime):
    """At t² = (log n)/2 and 2 log n."""
    assert weight_regime(math.sqrt(square * math.log(N)) * NORMAL).regime == regime


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_gamma_log_weights(sign):
    """sign · θ Gamma(k): K(λ) = −k log(1 − sign λθ)."""
    shape, scale = 12.0, 0.2
    found = weight_regime(sign * scale * stats.gamma(shape).ppf(GRID))
    for power, nats in ((1.0, found.nats_mean), (2.0, found.nats_variance)):
        s = sign * power * scale
        assert nats == pytest.approx(shape * (s / (1 - s) + math.log1p(-s)), rel=0.03)


def test_weights_without_a_mean_are_condensed():
    """Logs of an exponential law of mean two: weights of tail index one half."""
    found = weight_regime(2.0 * stats.expon.ppf(GRID))
    assert found.regime == "condensed" and found.nats_mean == math.inf


def test_the_regime_is_that_of_the_sum():
    """The relative error of a mean of n weights is as the central limit theorem says, or far off, or the mean
    is missed.
    """
    rng, n = np.random.default_rng(0), 1000
    reach = math.log(n)
    for square, regime in ((0.2, "clt"), (1.0, "heavy_tail"), (4.0, "condensed")):
        t = math.sqrt(square * reach)
        logs = t * rng.normal(size=(300, n))
        ratio = np.exp(logs - t**2 / 2).mean(1)
        found = [weight_regime(row).regime for row in logs]
        assert np.mean([r == regime for r in found]) > 0.9
        assert (np.median(ratio) > 0.6) == (regime != "condensed")
        assert (abs(stats.skew(ratio)) < 1.0) == (regime == "clt")


def test_weights_of_zero_are_far_away():
    logs = np.concatenate([0.5 * NORMAL, np.full(3 * N, -np.inf)])
    found = weight_regime(logs)
    assert found.nats_mean == pytest.approx(math.log(4) + 0.125, rel=1e-3)
    one = weight_regime(np.concatenate([[0.0], np.full(9, -np.inf)]))
    assert one.largest == 1.0 and one.nats_mean == pytest.approx(math.log(10))


def test_the_largest_weight_and_shifts():
    found = weight_regime(jnp.log(jnp.array([1.0, 3.0])) + 500.0)
    assert found.largest == pytest.approx(0.75, rel=1e-4)
    assert weight_regime([3.0]).regime == "clt" and weight_regime([3.0]).largest == 1.0


@pytest.mark.parametrize("bad", [[0.0, math.nan], [0.0, math.inf], [-math.inf] * 3])
def test_what_is_no_weight_is_unknown(bad):
    assert weight_regime(bad).regime == "unknown"


def test_a_report_of_a_fit_has_it_by_chain():
    """A guide that is the posterior, and one far too narrow for it in forty dimensions."""

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([40]).to_event(1))

    def report(scale):
        def guide():
            numpyro.sample("z", dist.Normal(numpyro.param("loc", jnp.zeros(40)), scale).to_event(1))

        key = jax.random.key(0)
        found = fit(key, model, guide, ELBO(), optax.sgd(0.0), 1, num_chains=2, progress_bar=False)
        return found.to_arviz(key, num_samples=200).attrs["weight_regime"]

    assert report(1.0) == "clt, clt"
    assert report(0.3) == "condensed, condensed"


def test_what_is_refused():
    with pytest.raises(ArgumentError, match=r"\(n,\), got \(2, 3\)"):
        weight_regime(np.zeros((2, 3)))
    with pytest.raises(ArgumentError, match=r"\(n,\)"):
        weight_regime([])
    with pytest.raises(ArgumentTypeError, match="concrete"):
        jax.jit(weight_regime)(jnp.zeros(3))
    with pytest.raises(ArgumentTypeError, match="log_weights"):
        weight_regime("weights")
