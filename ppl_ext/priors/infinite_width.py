r"""Posteriors of infinitely wide networks whose last layer has an unknown scale: Student-t processes, and
other scale mixtures.

A wide network with last-layer weights of variance :math:`\sigma^2 / \text{width}` tends to a Gaussian process
with covariance :math:`\sigma^2 k`; with a prior on :math:`\sigma^2` to a mixture of them (Lee, Yun, Yang,
Lee, "Scale mixtures of neural network Gaussian processes", ICLR 2022, theorem 3.1). Its mean given data is
that of the Gaussian process, but its spread follows the data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import gammaln

from ppl_ext.diagnostics.psis import psis
from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.runtime.arguments import (
    check_array,
    check_count,
    check_flag,
    check_function,
    check_key,
    check_number,
    described,
)
from ppl_ext.runtime.results import NUM_SAMPLES

Kernel = Callable[[Any, Any], jax.Array]


class StudentTPosterior(NamedTuple):
    """What :func:`student_t_posterior` returns. ``scale``: the law of the squared scale given the data.
    ``log_evidence``: log p(y), nats. ``root``: Cholesky factor of C; ``dual_weights``: C⁻¹ y."""

    kernel: Kernel
    x: jax.Array
    noise: float
    scale: dist.InverseGamma
    log_evidence: jax.Array
    root: jax.Array
    dual_weights: jax.Array

    def predict(self, x: Any, observed: bool = False) -> dist.MultivariateStudentT:
        r"""The function at inputs (m, ...), or with ``observed`` new data there: jointly Student-t, with 2a +
        n degrees of freedom.

        .. math:: \text{location } k_*^\top C^{-1} y, \qquad \text{scale matrix }
            \frac{b + \frac12 y^\top C^{-1} y}{a + \frac n2} \bigl(k_{**} - k_*^\top C^{-1} k_*\bigr), \qquad
            C = k(X, X) + \lambda I
        """
        loc, covariance, size = _conditioned(
            self.kernel, self.x, x, self.root, self.dual_weights, self.noise if observed else 0.0
        )
        shape, rate = self.scale.concentration, self.scale.rate
        return dist.MultivariateStudentT(
            2.0 * shape, loc, jnp.sqrt(rate / shape) * _cholesky(covariance, size)
        )


def student_t_posterior(
    kernel: Kernel, x: Any, y: Any, *, shape: float = 2.0, rate: float = 2.0, noise: float = 0.1
) -> StudentTPosterior:
    r"""The exact posterior of an infinitely wide network with an inverse-gamma last-layer scale.

    .. math:: \sigma^2 \sim \mathrm{InverseGamma}(a, b), \qquad y \mid \sigma^2 \sim \mathcal{N}\bigl(0,
        \sigma^2 C\bigr), \qquad
        C = k(X, X) + \lambda I

    The noise is measured in units of the scale, which is what keeps everything in closed form; for noise of a
    fixed size, and for other priors of the scale, see :func:`scale_mixture_posterior`.

    .. math:: \sigma^2 \mid y \sim \mathrm{InverseGamma}\bigl(a + \tfrac n2, b + \tfrac12 y^\top C^{-1}
        y\bigr)

    :param kernel: covariance of the network with last-layer scale 1: a function (x1, x2) -> (n, m), such as
        one that calls :func:`~ppl_ext.priors.nngp_kernel`, or a tinygp kernel.
    :param x: inputs, (n, ...).
    :param y: targets, (n,), of mean zero.
    :param shape, rate: a and b of the inverse-gamma prior.
    :param noise: λ, at least 0.
    :raises ArgumentError: if shapes do not fit, or a parameter is out of range.
    :raises NonFiniteError: if the covariance is not positive definite; more noise, or no repeated inputs,
        makes it so.

    Source: Lee, Yun, Yang, Lee, *Scale mixtures of neural network Gaussian processes*, ICLR 2022 (arXiv
    2107.01408); the formulas are those of a normal with an inverse-gamma variance.

    >>> from ppl_ext.priors import nngp_kernel
    >>> x, y = jnp.array([[-1.0], [0.0], [1.0]]), jnp.array([-0.8, 0.1, 0.9])
    >>> fit = student_t_posterior(lambda a, b: nngp_kernel(a, b, depth=2, activation="erf"), x, y)
    >>> law = fit.predict(jnp.array([[0.5], [2.0]]))
    >>> float(law.df), law.loc.shape
    (7.0, (2,))
    """
    here = "student_t_posterior"
    for name, value in (("shape", shape), ("rate", rate)):
        _check_positive(f"{here}: {name}", value)
    x, y, root, weights, quadratic = _set_up(here, kernel, x, y, noise)
    n = y.shape[0]
    a, b = shape + 0.5 * n, rate + 0.5 * quadratic
    # The prior's normalising constant over the posterior's.
    log_evidence = shape * np.log(rate) - gammaln(shape) + gammaln(a) - a * jnp.log(b)
    log_evidence -= 0.5 * n * np.log(2.0 * np.pi) + jnp.sum(jnp.log(jnp.diagonal(root)))
    return StudentTPosterior(kernel, x, float(noise), dist.InverseGamma(a, b), log_evidence, root, weights)


class ScaleMixturePosterior(NamedTuple):
    """What :func:`scale_mixture_posterior` returns: draws of the squared scale, each with a Gaussian process
    behind it.

    ``scales`` (S,); ``log_weights`` (S,), smoothed and normalised, float64; ``pareto_k`` and ``ess`` say how
    far to trust them (see :func:`ppl_ext.diagnostics.psis`); ``log_evidence``: the log of the mean raw
    weight, whose exponential is unbiased.
    """

    kernel: Kernel
    x: jax.Array
    y: jax.Array
    noise: float
    scaled_noise: bool
    scales: jax.Array
    log_weights: np.ndarray
    pareto_k: float
    ess: float
    log_evidence: float
    eigenvalues: jax.Array
    eigenvectors: jax.Array

    def predict(self, x: Any, observed: bool = False) -> tuple[jax.Array, jax.Array]:
        r"""Mean (m,) and covariance (m, m) of the function, or of new data, at inputs (m, ...).

        The mixture's: the mean covariance of the Gaussian processes plus the covariance of their means,
        weighted.
        """
        weights = jnp.asarray(np.exp(self.log_weights), self.y.dtype)
        means, covariances = jax.lax.map(lambda s: self._given(s, x, observed), self.scales, batch_size=64)
        mean = weights @ means
        away = means - mean
        return mean, jnp.tensordot(weights, covariances, 1) + jnp.einsum("s,si,sj->ij", weights, away, away)

    def sample(
        self, rng_key: jax.Array, x: Any, num_samples: int = NUM_SAMPLES, observed: bool = False
    ) -> jax.Array:
        """Draws of the function, or of new data, at inputs (m, ...): (num_samples, m)."""
        check_key("sample: rng_key", rng_key)
        check_count("sample: num_samples", num_samples)
        which_key, key = jax.random.split(rng_key)
        cumulative = jnp.asarray(np.cumsum(np.exp(self.log_weights)), self.y.dtype)
        which = jnp.searchsorted(cumulative, jax.random.uniform(which_key, (num_samples,)) * cumulative[-1])
        scales = self.scales[jnp.minimum(which, len(self.scales) - 1)]
        size = jnp.max(jnp.diagonal(self.kernel(jnp.asarray(x), jnp.asarray(x))))

        def draw(pair):
            scale, key = pair
            mean, covariance = self._given(scale, x, observed)
            return mean + _cholesky(covariance, scale * size) @ jax.random.normal(key, mean.shape, mean.dtype)

        return jax.lax.map(draw, (scales, jax.random.split(key, num_samples)), batch_size=64)

    def _given(self, scale: jax.Array, x: Any, observed: bool) -> tuple[jax.Array, jax.Array]:
        """Mean and covariance given the squared scale."""
        x = jnp.asarray(x)
        noise = self.noise * (scale if self.scaled_noise else 1.0)
        cross = scale * (self.eigenvectors.T @ self.kernel(self.x, x))  # (n, m), in the eigenvectors' basis
        inverse = 1.0 / (scale * self.eigenvalues + noise)
        covariance = scale * self.kernel(x, x) - cross.T @ (inverse[:, None] * cross)
        if observed:
            covariance += noise * jnp.eye(x.shape[0], dtype=covariance.dtype)
        return cross.T @ (inverse * (self.eigenvectors.T @ self.y)), covariance


def scale_mixture_posterior(
    rng_key: jax.Array,
    kernel: Kernel,
    x: Any,
    y: Any,
    scale_prior: dist.Distribution,
    *,
    noise: float = 0.1,
    scaled_noise: bool = False,
    proposal: dist.Distribution | None = None,
    num_samples: int = 2000,
) -> ScaleMixturePosterior:
    r"""The posterior of an infinitely wide network with any prior of its squared last-layer scale, by
    importance sampling.

    .. math:: \sigma^2_s \sim q, \qquad w_s = \frac{p(\sigma^2_s)}{q(\sigma^2_s)}\, \mathcal{N}(y \mid 0,
        \sigma^2_s k(X, X) + \lambda I)

    One eigendecomposition serves all draws. The only unknown is one number, so thousands of draws cover it;
    ``pareto_k`` says whether they do.

    :param scale_prior: law of :math:`\sigma^2`, a positive NumPyro distribution such as
        ``dist.HalfCauchy(1.0)`` or ``dist.LogNormal(0.0, 1.0)``.
    :param noise: λ, more than 0: the variance of the noise, or with ``scaled_noise`` that in units of the
        squared scale.
    :param proposal: q, by default the prior. Given many data, one closer to the posterior wastes fewer draws.
    :raises ArgumentError: if shapes do not fit, or a parameter is out of range.
    :raises NonFiniteError: if every weight is zero, or one is not a number.

    Source: Lee, Yun, Yang, Lee, ICLR 2022 (arXiv 2107.01408), who sample the scale by importance as well.

    >>> kernel = lambda a, b: jnp.exp(-0.5 * (a[:, None] - b[None, :]) ** 2)
    >>> x, y = jnp.array([-1.0, 0.0, 1.0]), jnp.array([-0.8, 0.1, 0.9])
    >>> fit = scale_mixture_posterior(jax.random.key(0), kernel, x, y, dist.LogNormal(0.0, 1.0))
    >>> mean, covariance = fit.predict(jnp.array([0.5, 2.0]))
    >>> mean.shape, covariance.shape, fit.pareto_k < 0.7
    ((2,), (2, 2), True)
    """
    here = "scale_mixture_posterior"
    check_key(f"{here}: rng_key", rng_key)
    check_count(f"{here}: num_samples", num_samples)
    _check_positive(f"{here}: noise", noise)
    check_flag(f"{here}: scaled_noise", scaled_noise)
    proposal = scale_prior if proposal is None else proposal
    for name, law in (("scale_prior", scale_prior), ("proposal", proposal)):
        if not isinstance(law, dist.Distribution):
            raise ArgumentTypeError(
                f"{here}: {name} must be a NumPyro distribution of one positive number, got {described(law)}."
            )
        if law.shape() != ():
            raise ArgumentError(
                f"{here}: {name} must be a distribution of one number, got one of shape {law.shape()}."
            )
    x, y, covariance = _covariance(here, kernel, x, y)
    values, vectors = jnp.linalg.eigh(covariance)
    values = jnp.maximum(values, 0.0)  # those of a covariance; float32 gives small negative ones
    scales = proposal.sample(rng_key, (num_samples,))
    if not bool((scales > 0.0).all()):
        raise ArgumentError(
            f"{here}: the squared scale must be positive, but {type(proposal).__name__} draws "
            f"{float(scales.min())}."
        )
    rotated = vectors.T @ y

    def log_likelihood(scale):
        spread = scale * values + noise * (scale if scaled_noise else 1.0)
        return -0.5 * jnp.sum(rotated**2 / spread + jnp.log(2.0 * jnp.pi * spread))

    raw = np.asarray(jax.vmap(log_likelihood)(scales), np.float64)
    if proposal is not scale_prior:
        raw = raw + np.asarray(scale_prior.log_prob(scales) - proposal.log_prob(scales), np.float64)
    if np.isnan(raw).any() or not np.isfinite(raw.max()):
        raise NonFiniteError(
            f"{here}: {np.isnan(raw).sum()} of {num_samples} log weights are NaN, and the largest is "
            f"{np.nanmax(raw)}."
        )
    smoothed = psis(raw)
    log_evidence = float(np.logaddexp.reduce(raw) - np.log(num_samples))
    return ScaleMixturePosterior(
        kernel,
        x,
        y,
        float(noise),
        bool(scaled_noise),
        scales,
        smoothed.log_weights,
        float(smoothed.pareto_k),
        float(smoothed.ess),
        log_evidence,
        values,
        vectors,
    )


def _set_up(
    here: str, kernel: Kernel, x: Any, y: Any, noise: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Inputs, targets, the Cholesky factor of C, C⁻¹ y and yᵀ C⁻¹ y."""
    check_number(f"{here}: noise", noise, at_least=0.0)
    x, y, covariance = _covariance(here, kernel, x, y)
    root = jnp.linalg.cholesky(covariance + noise * jnp.eye(y.shape[0], dtype=covariance.dtype))
    if not bool(jnp.isfinite(root).all()):
        raise NonFiniteError(
            f"{here}: the covariance of the {y.shape[0]} targets is not positive definite; use more noise "
            f"than {noise}."
        )
    weights = cho_solve((root, True), y)
    return x, y, root, weights, y @ weights


def _covariance(here: str, kernel: Kernel, x: Any, y: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    check_function(f"{here}: kernel", kernel)
    check_array(f"{here}: x", x, tables=True)
    check_array(f"{here}: y", y, tables=True)
    x, y = jnp.asarray(x), jnp.asarray(y)
    x, y = (
        v.astype(jnp.result_type(float)) if not jnp.issubdtype(v.dtype, jnp.floating) else v for v in (x, y)
    )
    if x.ndim == 0 or y.ndim != 1 or x.shape[0] != y.shape[0] or y.shape[0] == 0:
        raise ArgumentError(
            f"{here}: x must be (n, ...) and y (n,) with n at least 1, got shapes {x.shape} and {y.shape}."
        )
    for name, v in (("x", x), ("y", y)):
        if not bool(jnp.isfinite(v).all()):
            raise ArgumentError(
                f"{here}: {name} holds {int((~jnp.isfinite(v)).sum())} numbers that are not finite."
            )
    covariance = kernel(x, x)
    if jnp.shape(covariance) != (y.shape[0], y.shape[0]):
        raise ArgumentError(
            f"{here}: kernel(x, x) must be a matrix of shape {(y.shape[0], y.shape[0])}, the rows of x "
            f"along both axes; got {jnp.shape(covariance)}."
        )
    return x, y, covariance


def _conditioned(kernel, x, new, root, weights, noise) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and covariance at new inputs, and the largest variance there before the data."""
    new = jnp.asarray(new)
    cross, before = kernel(x, new), kernel(new, new)
    half = solve_triangular(root, cross, lower=True)
    covariance = before - half.T @ half + noise * jnp.eye(new.shape[0], dtype=root.dtype)
    return cross.T @ weights, covariance, jnp.max(jnp.diagonal(before))


def _cholesky(covariance: jax.Array, size: jax.Array) -> jax.Array:
    """The Cholesky factor of a covariance that is singular to the working precision where inputs are close
    together or the data say all.

    What rounding leaves is relative to ``size``, that of the numbers whose difference it is; the least
    multiple of it that makes the matrix definite goes on the diagonal.
    """
    eye = jnp.eye(covariance.shape[0], dtype=covariance.dtype)
    unit = jnp.finfo(covariance.dtype).eps * size

    def attempt(carry):
        times, _ = carry
        return 4.0 * times, jnp.linalg.cholesky(covariance + times * unit * eye)

    def go_on(carry):
        return ~jnp.isfinite(carry[1]).all() & (carry[0] < 1e6)

    return jax.lax.while_loop(go_on, attempt, attempt((jnp.asarray(1.0, covariance.dtype), None)))[1]


def _check_positive(where: str, value: Any) -> None:
    check_number(where, value)
    if not 0.0 < value < np.inf:
        raise ArgumentError(f"{where} must be a positive number, got {described(value)}.")
