"""PaRIS particle Gibbs: unbiased as its paths mix, with what the report needs."""

import jax
import numpy as np
import pytest

from ppl_ext.errors import ArgumentError
from ppl_ext.smoothing import ParisParticleGibbs, smooth
from tests.smoothing.problems import GAUSSIAN_Y, Gaussian, gaussian_exact, gaussian_smoother
from tests.smoothing.test_smooth import FUNCTIONALS, PARAMS, gaussian


@pytest.fixture(scope="module")
def run():
    ppg = ParisParticleGibbs(gaussian, FUNCTIONALS, num_particles=8, num_sweeps=60, burn_in=20)
    return ppg.run(jax.random.key(0), GAUSSIAN_Y, params=PARAMS, num_chains=100)


@pytest.mark.slow
def test_estimates_are_unbiased_after_the_burn_in(run):
    """By chain, which are independent: three means, so a false alarm for one key in 50,000."""
    for name, exact in gaussian_exact(Gaussian(), GAUSSIAN_Y).items():
        chains = np.asarray(run.estimates[name], np.float64).mean(1)
        assert abs(chains.mean() - exact) < 4.5 * chains.std(ddof=1) / np.sqrt(len(chains))
        np.testing.assert_allclose(chains.mean(), run.expectations[name], rtol=1e-4)


@pytest.mark.slow
def test_a_filter_of_as_few_particles_is_biased(run):
    smoother = smooth(gaussian, FUNCTIONALS, 8)
    found = jax.jit(jax.vmap(lambda key: smoother.run(key, GAUSSIAN_Y, params=PARAMS).expectations))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    worst = 0.0
    for name, exact in gaussian_exact(Gaussian(), GAUSSIAN_Y).items():
        worst = max(worst, abs(np.mean(found[name]) - exact) / (np.std(found[name]) / np.sqrt(20_000)))
    assert worst > 6.0


def test_paths_follow_the_smoothing_law(run):
    paths = np.concatenate([np.asarray(run.trajectories["x0"])[..., None], run.trajectories["x"]], -1)
    mean, cov = gaussian_smoother(Gaussian(), GAUSSIAN_Y)
    np.testing.assert_allclose(paths.mean((0, 1)), mean, atol=0.06)
    np.testing.assert_allclose(np.cov(paths.reshape(-1, 6).T), cov, atol=0.05)


def test_renewal_and_report(run):
    renewal = np.asarray(run.renewal)
    assert renewal.shape == (6,) and (renewal > 0.5).all() and (renewal < 1.0).all()
    report = run.to_arviz()
    assert dict(report.posterior["x"].sizes) == {"chain": 100, "draw": 40, "time": 5}
    np.testing.assert_allclose(report.sample_stats["renewed"].mean(("chain", "draw")), renewal[1:], rtol=1e-5)
    assert report.sample_stats["ess"].dims == ("chain", "draw", "time")


def test_what_cannot_work_is_refused():
    with pytest.raises(ArgumentError, match="at least 2"):
        ParisParticleGibbs(gaussian, num_particles=1)
    with pytest.raises(ArgumentError, match="burn_in"):
        ParisParticleGibbs(gaussian, num_sweeps=5, burn_in=5)
