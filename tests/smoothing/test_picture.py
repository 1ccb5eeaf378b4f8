"""The picture of a smoothed series: what its panels hold."""

import jax
import matplotlib
import numpy as np
import pytest

from ppl_ext.diagnostics import plot_smoothing
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.smoothing import ParisParticleGibbs, smooth
from tests.smoothing.problems import GAUSSIAN_Y, Gaussian, gaussian_smoother
from tests.smoothing.test_smooth import PARAMS, gaussian

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen

KEY, LENGTH = jax.random.key(0), len(GAUSSIAN_Y)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.slow
def test_bands_of_particles():
    run = smooth(gaussian, None, 500, "path").run(KEY, GAUSSIAN_Y, params=PARAMS)
    axes = plot_smoothing(run, observed=GAUSSIAN_Y, level=0.8, num_samples=2000)
    assert [ax.get_ylabel() for ax in axes] == ["x", "effective sample size"] and axes[
        1
    ].get_xlabel() == "time"
    mean, cov = gaussian_smoother(Gaussian(), GAUSSIAN_Y)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), mean[1:], atol=0.15)
    band = axes[0].collections[0].get_paths()[0].vertices
    width = [np.ptp(band[band[:, 0] == t, 1]) for t in range(LENGTH)]
    np.testing.assert_allclose(width, 2 * 1.2816 * np.sqrt(np.diag(cov)[1:]), rtol=0.15)
    low, high = (line.get_ydata() for line in axes[0].lines[1:3])
    assert (high - low)[0] > width[0] * 1.05 and (high - low)[-1] == pytest.approx(width[-1], rel=0.15)
    with pytest.raises(ArgumentError, match="no site 'z'"):
        plot_smoothing(run, "z")
    with pytest.raises(ArgumentError, match="axes must be 2"):
        plot_smoothing(run, axes=plt.subplots(1, 1)[1])
    with pytest.raises(ArgumentError, match="observed must"):
        plot_smoothing(run, observed=[1.0])
    with pytest.raises(ArgumentError, match="time must"):
        plot_smoothing(run, time=[1.0])
    with pytest.raises(ArgumentError, match="level"):
        plot_smoothing(run, level=90)
    with pytest.raises(ArgumentTypeError, match="got dict"):
        plot_smoothing({"x": 1})


@pytest.mark.slow
def test_renewal_of_particle_gibbs_on_axes_given():
    ppg = ParisParticleGibbs(gaussian, None, num_particles=4, backward="path", num_sweeps=3, burn_in=1)
    run = ppg.run(KEY, GAUSSIAN_Y, params=PARAMS)
    given = plt.subplots(3, 1)[1]
    axes = plot_smoothing(run, axes=given, time=np.arange(10, 10 + LENGTH))
    assert axes[2] is given[2]
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), run.renewal[1:])
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), np.arange(10, 10 + LENGTH))
