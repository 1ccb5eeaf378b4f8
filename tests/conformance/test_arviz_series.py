"""Results of state-space models go to ArviZ, and what users reach for there runs on them: one row an
algorithm, by time.
"""

import arviz as az
import jax
import matplotlib
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS

import ppl_ext
from ppl_ext.infer import PMMH, ParticleGibbs
from ppl_ext.smoothing import ParisParticleGibbs, smooth
from tests.infer.test_particle_gibbs import T, Y, model

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY, PARAMS = jax.random.key(0), {"phi": 0.8, "scale": 0.7}


def mcmc(kernel):
    run = MCMC(
        kernel, num_warmup=30, num_samples=40, num_chains=2, chain_method="sequential", progress_bar=False
    )
    run.run(KEY, Y)
    return ppl_ext.to_arviz(run)


def particle_gibbs_smoothing():
    return (
        ParisParticleGibbs(model, num_particles=8, num_sweeps=42, burn_in=2)
        .run(KEY, Y, params=PARAMS, num_chains=2)
        .to_arviz()
    )


# By name: how to make the report, whether parameters are sampled, and the statistics by time.
ALGORITHMS = {
    "smooth": (
        lambda: smooth(model, num_particles=50).run(KEY, Y, params=PARAMS).to_arviz(num_samples=40),
        False,
        {"ess", "resampled"},
    ),
    "smooth, exact": (
        lambda: smooth(model, backward="exact").run(KEY, Y, params=PARAMS).to_arviz(num_samples=40),
        False,
        {"log_evidence_increment"},
    ),
    "NUTS": (lambda: mcmc(NUTS(model)), True, set()),
    "ParisParticleGibbs": (particle_gibbs_smoothing, False, {"ess", "renewed"}),
    "ParticleGibbs": (lambda: mcmc(ParticleGibbs(model, 5)), True, set()),
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.slow
def test_a_series_in_arviz(name):
    make, samples_parameters, by_time = ALGORITHMS[name]
    report = make()
    assert set(report.posterior.data_vars) == {"x0", "x"} | (
        {"phi", "scale"} if samples_parameters else set()
    )
    assert report.posterior["x"].dims == ("chain", "draw", "time") and report.posterior["x"].shape[1:] == (
        40,
        T,
    )
    assert report.posterior["x0"].dims == ("chain", "draw")
    assert report.observed_data["y"].dims == ("time",)
    np.testing.assert_array_equal(report.observed_data["y"], Y)
    assert by_time <= set(report.sample_stats.data_vars)
    assert all(report.sample_stats[stat].dims == ("chain", "draw", "time") for stat in by_time)
    assert report.attrs["inference_library"] == "ppl_ext" and np.isfinite(report.posterior["x"]).all()
    table = az.summary(report, kind="stats", round_to="none")
    assert (
        len(table) == 1 + T + 2 * samples_parameters
        and np.isfinite(table[["mean", "sd"]].to_numpy(float)).all()
    )
    # log p(y_t | x_t): one-step terms of a filter go to a group that leave-one-out does not see
    if samples_parameters:
        assert report["log_likelihood"]["y"].dims == ("chain", "draw", "time")
    else:
        assert not hasattr(report, "log_likelihood") and {
            f"param_{parameter}" for parameter in PARAMS
        } <= set(report.attrs)
    try:
        az.plot_forest(report, var_names=["x"])
    finally:
        plt.close("all")


@pytest.mark.slow
def test_draws_without_states():
    """PMMH sums the states out: its report has parameters and the estimated density they were accepted by,
    and no pointwise terms.
    """
    report = mcmc(PMMH(model, num_particles=20))
    assert set(report.posterior.data_vars) == {"phi", "scale"}
    assert {"lp", "accepted"} <= set(report.sample_stats.data_vars) and np.isfinite(
        report.sample_stats["lp"]
    ).all()
    assert not hasattr(report, "log_likelihood") and len(az.summary(report, kind="stats")) == 2
