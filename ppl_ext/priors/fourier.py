"""A Gaussian process on a regular grid of times, by the coefficients of its Fourier series."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.times import check_name
from ppl_ext.runtime.arguments import check_array, check_count, check_positive, described

LEAST = 1e-8
"""Frequencies whose variance is below this share of the largest are left out."""
PADDING = 4.0
"""Length scales by which the circle is longer than the series."""


def fourier_gp(
    name: str,
    num_times: int,
    length_scale: Any,
    variance: Any = 1.0,
    *,
    step: float = 1.0,
    shortest: float | None = None,
    longest: float | None = None,
) -> jax.Array:
    r"""A Gaussian process with a squared-exponential kernel at T regular times, in O(T log T).

    .. math:: f_t = \sqrt{\tfrac{s_0}{P}}\, z_0 + \sum_{k=1}^K \sqrt{\tfrac{2 s_k}{P}}
        \left(z_k \cos \omega_k t + z_{K+k} \sin \omega_k t\right), \qquad z \sim \mathcal{N}(0, I)

    .. math:: s_k = \sqrt{2\pi}\, \rho\, \ell\, e^{-\omega_k^2 \ell^2 / 2}, \qquad
        \omega_k = \tfrac{2\pi k}{P}, \qquad P = T + 4 \ell

    That is a process on a circle of P steps, of which the series is an arc. So lags that differ by P are one,
    and the covariance at lag τ is

    .. math:: \sum_{m} \rho\, e^{-(\tau + m P)^2 / 2 \ell^2}
        = \rho\, e^{-\tau^2 / 2 \ell^2} + \text{at most } 7 \times 10^{-4} \rho

    The error is felt between the ends of the series: in the midst of a long one there is none. Frequencies
    with :math:`s_k \le 10^{-8} s_0` are left out, at 2e-8 ρ. Smooth paths need few of the others: with
    T = 100 and ℓ = 10 there are 27 coefficients, and the covariance errs by 2e-4.

    The length scale may be a site of the model, or traced. Then say between which bounds it lies: P is that
    of the longest, the number of coefficients that of the shortest, and what a longer one leaves out is
    masked: its coefficients stay in the site and do not move the path. So shapes are fixed, and a guide of
    the coefficients means the same whatever the length scale. Outside of the bounds a traced length scale
    gives NaN and a known one an error: give its site a law on them, as ``Uniform(shortest, longest)``.

    Call it within a model. The coefficients z are the site ``<name>_coefficients``, (..., 1 + 2K), one event
    of independent normals; the path is the deterministic site ``name``. Plates around it, and length scales
    or variances of shape (...), make independent processes. For kernels that are rougher and for times that
    are not regular take :func:`~ppl_ext.priors.markov`.

    :param num_times: T, at least 2.
    :param length_scale: ℓ, a number or (...).
    :param variance: ρ, a number or (...).
    :param step: between two times, in the unit of the length scale.
    :param shortest: the smallest length scale there can be; by default the smallest given. The number of
        coefficients is about 1.93 P / shortest, so that one below two steps makes more than times.
    :param longest: the largest; by default the largest given.
    :return: f, (..., T).
    :raises ArgumentTypeError: for a name that is no string, or what is no number.
    :raises ArgumentError: for fewer than two times; for a length scale that is not positive, is outside of
        its bounds, or is a JAX array, as sites are, without bounds. The message names the site.

    >>> import jax, numpy as np
    >>> def model(y):
    ...     length = numpyro.sample("length", dist.Uniform(5.0, 20.0))
    ...     f = fourier_gp("f", len(y), length, shortest=5.0, longest=20.0)
    ...     numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as sites:
    ...     model(np.zeros(100))
    >>> sites["f"]["value"].shape, sites["f_coefficients"]["value"].shape
    ((100,), (69,))

    Source: Gondur, Sikandar, Schaffer, Aoi, Keeley 2024, "Multi-modal Gaussian Process Variational
    Autoencoders for Neural and Behavioral Data", for latents in the Fourier domain; the covariance is
    Poisson's summation formula.
    """
    check_name("fourier_gp", name)
    where = f"fourier_gp '{name}'"
    check_count(f"{where}: num_times", num_times)
    if num_times < 2:
        raise ArgumentError(f"{where}: num_times must be at least 2, got {num_times}: one time has no lag.")
    check_positive(f"{where}: step", step)
    _check_all_positive(f"{where}: variance", variance)
    shortest, longest = _bounds(where, length_scale, shortest, longest)
    around = math.ceil(num_times + PADDING * longest / step)  # steps on the circle
    circle = around * step
    top = math.sqrt(-2.0 * math.log(LEAST))  # the largest ωℓ
    num = math.ceil(top * circle / (2.0 * math.pi * shortest)) - 1
    try:
        jnp.broadcast_shapes(jnp.shape(length_scale), jnp.shape(variance))
    except ValueError:
        raise ArgumentError(
            f"{where}: length_scale and variance have shapes {jnp.shape(length_scale)} and "
            f"{jnp.shape(variance)}, which do not broadcast: give one of each for a process, or one for all."
        ) from None
    length = jnp.asarray(length_scale, float)[..., None]
    amplitudes = _amplitudes(length, jnp.asarray(variance, float)[..., None], circle, num, top)
    # a bound itself may be off by its rounding
    inside = (length >= shortest * (1.0 - 1e-6)) & (length <= longest * (1.0 + 1e-6))
    batch = amplitudes.shape[:-1]
    z = numpyro.sample(
        f"{name}_coefficients", dist.Normal(0.0, 1.0).expand((*batch, 1 + 2 * num)).to_event(1)
    )
    constant, cosines, sines = jnp.split(z, [1, 1 + num], -1)
    series = amplitudes * jnp.concatenate([constant + 0j, (cosines - 1j * sines) * 0.5**0.5], -1)
    # more frequencies than the circle has steps need a finer circle, of which every fine-th point is taken
    fine = -(-(2 * num + 1) // around)
    path = jnp.fft.irfft(series, fine * around, norm="forward")[..., : fine * num_times : fine]
    return numpyro.deterministic(name, jnp.where(inside, path, jnp.nan))


def _amplitudes(length: jax.Array, variance: jax.Array, circle: float, num: int, top: float) -> jax.Array:
    """The square roots of s_k / P, (..., 1 + num), 0 where the frequency is left out."""
    angle = (2.0 * math.pi / circle) * jnp.arange(1 + num) * length
    height = jnp.sqrt(math.sqrt(2.0 * math.pi) / circle * variance * length)
    return jnp.where(angle < top, height * jnp.exp(-0.25 * angle**2), 0.0)


def _bounds(where: str, given: Any, shortest: Any, longest: Any) -> tuple[float, float]:
    _check_all_positive(f"{where}: length_scale", given)
    for which, bound in (("shortest", shortest), ("longest", longest)):
        if bound is not None:
            check_positive(f"{where}: {which}", bound)
        elif isinstance(given, jax.Array):
            raise ArgumentError(
                f"{where}: length_scale is {described(given)}, which a site may give, and the number of "
                f"coefficients must not depend on it: state {which}=..., the {which} it can be, or give a "
                "number of Python or NumPy."
            )
    if isinstance(given, jax.core.Tracer):
        known = np.array([shortest, longest], float)
    else:  # in NumPy, as JAX would make a tracer of a known array too, where a jit is around the model
        known = np.asarray(given, float)
    shortest = float(known.min()) if shortest is None else float(shortest)
    longest = float(known.max()) if longest is None else float(longest)
    if not shortest <= longest:
        raise ArgumentError(f"{where}: shortest={shortest:g} is above longest={longest:g}: exchange them.")
    least, most = float(known.min()), float(known.max())
    if least < shortest * (1.0 - 1e-6) or most > longest * (1.0 + 1e-6):
        raise ArgumentError(
            f"{where}: length_scale must lie between shortest={shortest:g} and longest={longest:g}, got "
            f"{least if least < shortest else most:g}. Widen them, or give its site a law on them."
        )
    return shortest, longest


def _check_all_positive(where: str, value: Any) -> None:
    """Whether a number, or every entry of an array, is positive and finite; a tracer passes."""
    check_array(where, value)
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value, float)
    if not known.size or not (np.isfinite(known) & (known > 0.0)).all():
        wrong = known.ravel()[~(np.isfinite(known) & (known > 0.0)).ravel()]
        raise ArgumentError(
            f"{where} must be positive and finite, got {wrong[0] if wrong.size else 'an empty array'}."
        )
