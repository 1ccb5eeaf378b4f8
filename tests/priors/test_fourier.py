"""A Gaussian process by its Fourier coefficients: against the kernel on a circle, and the dense process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoMultivariateNormal

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.priors import fourier_gp

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

NOISE = 0.3


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def sites_of(model, *args, **kwargs):
    with numpyro.handlers.seed(rng_seed=0):
        return numpyro.handlers.trace(model).get_trace(*args, **kwargs)


def columns(num_times, length_scale, variance=1.0, **kwargs):
    """What each coefficient adds to the path, (T, num): the path is linear in them."""
    law = sites_of(fourier_gp, "f", num_times, length_scale, variance, **kwargs)["f_coefficients"]["fn"]

    def path(z):
        with numpyro.handlers.substitute(data={"f_coefficients": z}):
            return fourier_gp("f", num_times, length_scale, variance, **kwargs)

    return jax.jacobian(path)(jnp.zeros(law.event_shape))


def dense(num_times, length_scale, variance=1.0, step=1.0, circle=None):
    """The kernel, or its sum over all turns around a circle."""
    lag = step * jnp.subtract.outer(jnp.arange(num_times), jnp.arange(num_times))
    turns = range(-6, 7) if circle else (0,)
    return sum(variance * jnp.exp(-((lag + m * (circle or 0.0)) ** 2) / (2 * length_scale**2)) for m in turns)


CASES = {  # times, length scale, variance, step, circle, coefficients
    "the published": (100, 10.0, 1.0, 1.0, 140.0, 27),
    "another unit": (50, 0.3, 2.5, 0.1, 6.2, 39),
    "a circle of whole steps": (30, 3.3, 1.0, 1.0, 44.0, 25),
    "two times": (2, 50.0, 1.0, 1.0, 202.0, 7),
    "more frequencies than times": (20, 0.4, 0.7, 1.0, 22.0, 107),
}


@pytest.mark.parametrize("case", CASES)
def test_the_covariance_is_the_kernel_summed_around_the_circle(case, double):
    num_times, length, variance, step, circle, num = CASES[case]
    basis = columns(num_times, length, variance, step=step)
    assert basis.shape == (num_times, num)
    np.testing.assert_allclose(
        basis @ basis.T, dense(num_times, length, variance, step, circle), atol=2e-8 * variance
    )
    off = np.abs(basis @ basis.T - dense(num_times, length, variance, step)).max()
    assert off < 7e-4 * variance


def test_coefficients_are_those_of_the_constant_then_cosines_then_sines(double):
    phase = 2 * np.pi / 14.0 * np.outer(np.arange(6), np.arange(1, 7))
    heights = np.sqrt(np.sqrt(2 * np.pi) * 2.0 / 14.0) * np.exp(
        -((np.pi / 7.0 * np.arange(7) * 2.0) ** 2) / 4
    )
    harmonics = np.sqrt(2.0) * heights[1:]
    right = [np.full((6, 1), heights[0]), harmonics * np.cos(phase), harmonics * np.sin(phase)]
    np.testing.assert_allclose(columns(6, 2.0), np.concatenate(right, 1), atol=1e-12)


def test_the_published_figure(double):
    """27 coefficients, and an error of 2e-4: that of the ends of the series, which are 41 steps apart."""
    basis = columns(100, 10.0)
    off = np.abs(basis @ basis.T - dense(100, 10.0))
    assert basis.shape[1] == 27
    np.testing.assert_allclose(off.max(), np.exp(-(41.0**2) / 200.0), rtol=1e-4)  # 2.24e-4
    assert off[50].max() < 2e-8  # none in the midst
    least, *_, most = np.sort((basis**2).sum(0)[:14])
    assert least / most > 1e-9


def test_the_least_frequency_kept_and_the_first_left_out(double):
    """Variances are read off the time 0, where sines are 0: s_k is twice as large for k > 0 as for 0."""
    kept = columns(60, 6.0, shortest=3.0, longest=9.0)[0] ** 2
    num = (len(kept) - 1) // 2
    share = np.append(kept[0], kept[1 : 1 + num] / 2) / kept[0]
    right = np.exp(-((2 * np.pi / 96.0 * np.arange(1 + num) * 6.0) ** 2) / 2)
    assert (right[share > 0] > 1e-8).all() and (right[share == 0] <= 1e-8).all() and (share == 0).any()
    np.testing.assert_allclose(share[share > 0], right[share > 0], rtol=1e-9)
    # the number of coefficients is the least that serves the shortest: its last is kept, the next is not
    at_shortest = np.exp(-((2 * np.pi / 96.0 * np.array([num, num + 1]) * 3.0) ** 2) / 2)
    assert at_shortest[0] > 1e-8 >= at_shortest[1]


def test_a_traced_length_scale_changes_values_and_no_shape(double):
    bounds = {"shortest": 4.0, "longest": 12.0}

    @jax.jit
    def covariance(length):
        basis = columns(40, length, **bounds)
        return basis @ basis.T

    for length in (4.0, 7.0, 12.0):
        np.testing.assert_allclose(covariance(length), dense(40, length, circle=88.0), atol=2e-8)
        slope = jax.jacobian(covariance)(length)
        right = jax.jacobian(lambda s: dense(40, s, circle=88.0))(length)
        np.testing.assert_allclose(slope, right, atol=2e-6)
    path = jax.jit(lambda s: numpyro.handlers.seed(fourier_gp, 0)("f", 40, s, **bounds))
    assert np.isfinite(path(4.0)).all() and np.isfinite(path(12.0)).all()
    for outside in (3.9, 12.1, -5.0, 0.0, np.nan):
        assert np.isnan(path(outside)).all()
    [shape] = {columns(40, s, **bounds).shape for s in (4.0, 7.0, 12.0, jnp.array(7.0))}
    moves = [int((np.abs(columns(40, s, **bounds)).sum(0) > 0).sum()) for s in (4.0, 7.0, 12.0)]
    assert moves[0] == shape[1] > moves[1] > moves[2]


def test_the_law_of_draws():
    expected = np.asarray(dense(12, 3.0, 2.0))
    draws = jax.vmap(lambda key: numpyro.handlers.seed(fourier_gp, key)("f", 12, 3.0, 2.0))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / 20_000)
    assert (np.abs(np.cov(draws.T) - expected) < 4.5 * error + 7e-4 * 2.0).all()
    assert (np.abs(draws.mean(0)) < 4.5 * np.sqrt(2.0 / 20_000)).all()


def test_single_precision():
    basis = columns(100, 10.0)
    assert basis.dtype == jnp.float32 and basis.shape == (100, 27)
    with jax.enable_x64(True):
        right = dense(100, 10.0, circle=140.0)
    np.testing.assert_allclose(basis @ basis.T, right, atol=3e-6)


def test_plates_and_length_scales_make_independent_processes():
    lengths, variances = np.array([2.0, 5.0, 9.0]), np.array([1.0, 4.0, 1.0])

    def model():
        with numpyro.plate("trials", 2, dim=-2), numpyro.plate("latents", 3, dim=-1):
            return fourier_gp("f", 20, lengths, variances)

    sites = sites_of(model)
    z, f = sites["f_coefficients"]["value"], sites["f"]["value"]
    assert sites["f_coefficients"]["fn"].batch_shape == (2, 3) and f.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            basis = columns(20, lengths[j], variances[j], shortest=2.0, longest=9.0)
            np.testing.assert_allclose(f[i, j], basis @ z[i, j], atol=1e-5)


def regression(y):
    numpyro.sample("y", dist.Normal(fourier_gp("f", len(y), 5.0), NOISE).to_event(1), obs=y)


@functools.cache
def series():
    t, rng = np.arange(25), np.random.default_rng(0)
    return np.sin(t / 4.0) + NOISE * rng.normal(size=len(t))


def test_a_fit_finds_the_evidence_and_the_posterior_of_the_dense_process():
    y, covariance = series(), np.asarray(dense(25, 5.0))
    guide = AutoMultivariateNormal(regression)
    optim = optax.adam(optax.cosine_decay_schedule(0.05, 2000))
    run = fit(jax.random.key(0), regression, guide, ELBO(8), optim, 2000, y, progress_bar=False)
    draws = run.sample(num_samples=4000)
    law = dist.MultivariateNormal(0.0, jnp.asarray(covariance + NOISE**2 * np.eye(25)))
    evidence = np.log(np.mean(np.exp(draws.log_weights)))
    np.testing.assert_allclose(evidence, law.log_prob(y), atol=0.05)  # 7e-4 of the prior moves it by 0.01
    gain = covariance @ np.linalg.inv(covariance + NOISE**2 * np.eye(25))
    right = gain @ y
    deviation = np.sqrt(np.diag(covariance - gain @ covariance))
    f = np.asarray(draws.values["f"])[0]
    assert (np.abs(f.mean(0) - right) < 0.15 * deviation).all()
    np.testing.assert_allclose(f.std(0), deviation, rtol=0.1)


def unknown_length(y):
    length = numpyro.sample("length", dist.Uniform(2.0, 12.0))
    f = fourier_gp("f", len(y), length, shortest=2.0, longest=12.0)
    numpyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)


def test_the_posterior_of_the_length_scale():
    """Against the dense process by quadrature."""
    y, grid = series(), np.linspace(2.0, 12.0, 201)
    with jax.enable_x64(True):

        def evidence(s):
            return dist.MultivariateNormal(0.0, dense(25, s) + NOISE**2 * jnp.eye(25)).log_prob(y)

        log_p = np.asarray(jax.vmap(evidence)(jnp.asarray(grid)))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = (p * grid).sum()
    deviation = np.sqrt((p * (grid - mean) ** 2).sum())
    chain = MCMC(NUTS(unknown_length), num_warmup=400, num_samples=1000, progress_bar=False)
    chain.run(jax.random.key(0), jnp.asarray(y))
    draws = np.asarray(chain.get_samples()["length"])
    num = numpyro.diagnostics.effective_sample_size(draws[None])
    assert num > 100
    assert abs(draws.mean() - mean) < 4.0 * deviation / np.sqrt(num)
    np.testing.assert_allclose(draws.std(), deviation, rtol=0.25)


BOUNDS = {"shortest": 1.0, "longest": 9.0}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"name": 3}, ArgumentTypeError, "fourier_gp: name must be a string, got 3"),
        (
            {"length_scale": np.full(3, 2.0), "variance": np.ones(2)},
            ArgumentError,
            r"'f': length_scale and variance have shapes \(3,\) and \(2,\)",
        ),
        ({"num_times": 1}, ArgumentError, "'f': num_times must be at least 2"),
        ({"num_times": 2.5}, ArgumentError, "'f': num_times must be a positive integer"),
        ({"length_scale": 0.0}, ArgumentError, "'f': length_scale must be positive and finite, got 0.0"),
        ({"length_scale": np.array([3.0, -1.0])}, ArgumentError, "'f': length_scale must be .*, got -1.0"),
        ({"length_scale": np.inf}, ArgumentError, "'f': length_scale must be positive and finite"),
        ({"length_scale": np.zeros(0)}, ArgumentError, "'f': length_scale must be .*an empty array"),
        ({"length_scale": "long"}, ArgumentTypeError, "'f': length_scale must be an array of numbers"),
        ({"length_scale": 0.5, **BOUNDS}, ArgumentError, "between shortest=1 and longest=9, got 0.5"),
        ({"length_scale": jnp.array([2.0, 9.5]), **BOUNDS}, ArgumentError, "longest=9, got 9.5. Widen"),
        ({"length_scale": jnp.array(5.0)}, ArgumentError, "'f': length_scale is .* state shortest="),
        ({"length_scale": jnp.array(5.0), "shortest": 1.0}, ArgumentError, "state longest="),
        ({"shortest": 9.0, "longest": 1.0}, ArgumentError, "'f': shortest=9 is above longest=1"),
        ({"shortest": 0.0}, ArgumentError, "'f': shortest must be positive"),
        ({"longest": np.inf}, ArgumentError, "'f': longest must be positive and finite"),
        ({"variance": -1.0}, ArgumentError, "'f': variance must be positive and finite, got -1.0"),
        ({"step": 0.0}, ArgumentError, "'f': step must be positive"),
    ],
)
def test_what_is_no_process_is_refused_by_name(change, error, words):
    given = {"name": "f", "num_times": 10, "length_scale": 5.0} | change
    with pytest.raises(error, match=words), numpyro.handlers.seed(rng_seed=0):
        fourier_gp(**given)


def test_bounds_are_asked_for_under_a_jit_and_constants_are_known_there():
    def path(length):
        return numpyro.handlers.seed(fourier_gp, 0)("f", 10, length)

    with pytest.raises(ArgumentError, match="'f': length_scale is .* state shortest="):
        jax.jit(path)(5.0)
    constant = jnp.array(5.0)

    @jax.jit
    def beside(_):
        return numpyro.handlers.seed(fourier_gp, 0)("f", 10, constant, shortest=5.0, longest=5.0)

    np.testing.assert_allclose(beside(0.0), path(5.0), atol=1e-5)
    with pytest.raises(ArgumentError, match="between shortest=6 and longest=7, got 5"):
        jax.jit(lambda _: fourier_gp("f", 10, constant, shortest=6.0, longest=7.0))(0.0)
