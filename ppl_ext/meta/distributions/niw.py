"""The Normal-Inverse-Wishart family over the mean and covariance that a stream of episodes shares.

Closed forms only: expectations, divergences, the conjugate update and the predictive law (Gelman et al. 2013,
section 3.6; Kim and Hospedales 2024). A covariance is full, block-diagonal, or diagonal; a diagonal one is a
product of one-dimensional members, not the diagonal of a full one.
"""

import math
from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import block_diag, cho_solve, solve_triangular
from jax.scipy.special import digamma, gammaln, multigammaln

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.distributions.independent import Independent
from ppl_ext.meta.distributions.low_rank import LowRank
from ppl_ext.runtime.arguments import check_array, check_key, described


class NIW(eqx.Module):
    r"""Normal-Inverse-Wishart: a distribution over a mean μ and a covariance Σ in d dimensions.

    .. math:: \Sigma \sim \mathrm{IW}(V_0, n_0), \qquad \mu \mid \Sigma \sim N(m_0, \Sigma / l_0),
        \qquad p(\Sigma) \propto |\Sigma|^{-(n_0 + d + 1)/2} e^{-\frac12 \mathrm{tr}\, V_0 \Sigma^{-1}}

    A ``scale_matrix`` of shape (d,) makes Σ diagonal,
    :math:`\sigma_j^2 \sim \mathrm{InverseGamma}(n_0/2, v_j/2)`. With ``blocks`` Σ is block-diagonal, each
    block Inverse-Wishart with the same ``df``.

    :param loc: m₀, shape (d,).
    :param mean_precision: l₀ > 0, how many episodes the mean is worth.
    :param scale_matrix: V₀, positive definite of shape (d, d), or positive of shape (d,); in squared units of
        the parameters.
    :param df: n₀, more than the largest block's size less one (d − 1 if full, 0 if diagonal).
    :param blocks: sizes of the blocks of a block-diagonal Σ, which add up to d.
    :raises ArgumentError: for shapes or numbers that make no distribution.

    >>> import jax.numpy as jnp
    >>> niw = NIW(loc=jnp.zeros(2), mean_precision=1.0, scale_matrix=jnp.eye(2), df=4.0)
    >>> niw.structure, niw.expected_precision().tolist()
    ('full', [[4.0, 0.0], [0.0, 4.0]])
    """

    loc: jax.Array
    mean_precision: jax.Array
    scale_matrix: jax.Array
    df: jax.Array
    blocks: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, loc, mean_precision, scale_matrix, df, blocks: Sequence[int] | None = None):
        self.loc = _floats(loc, "loc")
        self.mean_precision = _floats(mean_precision, "mean_precision").astype(self.loc.dtype)
        self.scale_matrix = _floats(scale_matrix, "scale_matrix").astype(self.loc.dtype)
        self.df = _floats(df, "df").astype(self.loc.dtype)
        if self.loc.ndim != 1 or not self.loc.size:
            raise ArgumentError(f"NIW: loc must have shape (d,) with d at least 1, got {self.loc.shape}.")
        d = self.loc.shape[0]
        default = (1,) * d if self.scale_matrix.ndim == 1 else (d,)
        whole = (
            isinstance(blocks, Iterable)
            and not isinstance(blocks, str)
            and all(isinstance(b, int | np.integer) for b in blocks)
        )
        if blocks is not None and not whole:
            raise ArgumentTypeError(
                f"NIW: blocks must be whole numbers, the sizes of the blocks, got {described(blocks)}."
            )
        self.blocks = default if blocks is None else tuple(int(b) for b in blocks)

    def __check_init__(self):
        d = self.loc.shape[0]
        if self.scale_matrix.shape not in ((d,), (d, d)):
            raise ArgumentError(
                f"NIW: scale_matrix must have shape ({d}, {d}) or ({d},) like loc, got "
                f"{self.scale_matrix.shape}."
            )
        if self.mean_precision.shape or self.df.shape:
            raise ArgumentError(
                f"NIW: mean_precision and df are numbers, got shapes {self.mean_precision.shape} and "
                f"{self.df.shape}."
            )
        if min(self.blocks, default=1) < 1 or sum(self.blocks) != d:
            raise ArgumentError(f"NIW: blocks must be positive sizes that add up to {d}, got {self.blocks}.")
        if self.diagonal and set(self.blocks) - {1}:
            raise ArgumentError(f"NIW: a diagonal scale_matrix has blocks of size 1, got {self.blocks}.")
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self)):
            return
        if not float(self.df) > max(self.blocks, default=1) - 1:
            raise ArgumentError(
                f"NIW: df must exceed {max(self.blocks) - 1}, one less than the largest block of the "
                f"covariance; got {float(self.df):g}. Raise it, or take structure='diagonal', which needs "
                "only df > 0."
            )
        if not float(self.mean_precision) > 0:
            raise ArgumentError(f"NIW: mean_precision must be positive, got {float(self.mean_precision):g}.")
        for name in ("loc", "mean_precision", "df"):
            if not np.isfinite(np.asarray(getattr(self, name))).all():
                raise ArgumentError(f"NIW: {name} is not finite.")
        if not self.diagonal and not np.allclose(
            v := np.asarray(self.scale_matrix), v.T, rtol=1e-3, atol=1e-5 * float(abs(v).max())
        ):
            raise ArgumentError("NIW: scale_matrix is not symmetric.")
        if not all(np.isfinite(np.asarray(c)).all() for c in self._choleskys()):
            raise ArgumentError("NIW: scale_matrix is not positive definite.")

    @property
    def dim(self) -> int:
        """d."""
        return self.loc.shape[0]

    @property
    def diagonal(self) -> bool:
        return self.scale_matrix.ndim == 1

    @property
    def structure(self) -> str:
        """``"full"``, ``"diagonal"`` or ``"block"``."""
        return "diagonal" if self.diagonal else "full" if len(self.blocks) == 1 else "block"

    def split(self, x: jax.Array) -> list[jax.Array]:
        """The diagonal blocks of a (d, d) matrix, or the parts of a (d,) vector (a diagonal family has one
        part, the whole).
        """
        if self.diagonal:
            return [x]
        ends = np.cumsum(self.blocks)
        slices = [slice(e - b, e) for b, e in zip(self.blocks, ends, strict=True)]
        return [x[s, s] if x.ndim == 2 else x[s] for s in slices]

    def _choleskys(self) -> list[jax.Array]:
        if self.diagonal:
            return [jnp.sqrt(self.scale_matrix)]
        return [jnp.linalg.cholesky(v) for v in self.split(self.scale_matrix)]

    def _per_block(self, fn) -> jax.Array:
        """Sum of fn(block size) over the blocks."""
        return (
            sum((fn(b) for b in self.blocks), start=jnp.zeros((), self.loc.dtype))
            if not self.diagonal
            else self.dim * fn(1)
        )

    def expected_precision(self) -> jax.Array:
        r""":math:`\mathbb{E}\,\Sigma^{-1} = n_0 V_0^{-1}`, shape (d, d) or (d,)."""
        if self.diagonal:
            return self.df / self.scale_matrix
        inverses = [cho_solve((c, True), jnp.eye(c.shape[0], dtype=c.dtype)) for c in self._choleskys()]
        return self.df * block_diag(*inverses)

    def log_det_scale(self) -> jax.Array:
        r""":math:`\log |V_0|`."""
        if self.diagonal:
            return jnp.log(self.scale_matrix).sum()
        return sum(
            (2 * jnp.log(jnp.diagonal(c)).sum() for c in self._choleskys()),
            start=jnp.zeros((), self.loc.dtype),
        )

    def expected_log_det(self) -> jax.Array:
        r""":math:`\mathbb{E} \log |\Sigma| = \log|V_0| - d \log 2 - \psi_d(n_0/2)`, with
        :math:`\psi_d(a) = \sum_{j<d} \psi(a - j/2)`.
        """
        return (
            self.log_det_scale()
            - self.dim * math.log(2.0)
            - self._per_block(lambda b: _multidigamma(self.df / 2, b))
        )

    def expected_quadratic(self, x: jax.Array) -> jax.Array:
        r""":math:`\mathbb{E} (x - \mu)^\top \Sigma^{-1} (x - \mu) = n_0 (x - m_0)^\top V_0^{-1} (x - m_0) + d
        / l_0`.
        """
        return self.df * self._quadratic(x - self.loc) + self.dim / self.mean_precision

    def _quadratic(self, r: jax.Array) -> jax.Array:
        if self.diagonal:
            return jnp.sum(r**2 / self.scale_matrix)
        parts = zip(self._choleskys(), self.split(r), strict=True)
        return sum(
            (jnp.sum(solve_triangular(c, x, lower=True) ** 2) for c, x in parts),
            start=jnp.zeros((), self.loc.dtype),
        )

    def _trace_solve(self, matrix: jax.Array | LowRank) -> jax.Array:
        """tr(V₀⁻¹ matrix), matrix (d, d) or its diagonal (d,)."""
        if isinstance(matrix, LowRank):
            matrix = matrix.diagonal() if self.diagonal else matrix.dense()
        if self.diagonal:
            return jnp.sum((jnp.diagonal(matrix) if matrix.ndim == 2 else matrix) / self.scale_matrix)
        inverse = self.expected_precision() / self.df
        return jnp.sum(jnp.diagonal(inverse) * matrix) if matrix.ndim == 1 else jnp.sum(inverse * matrix)

    def expected_kl(self, mean: jax.Array, covariance: jax.Array | LowRank) -> jax.Array:
        r"""Expected divergence of one episode's Gaussian from the shared one (Kim and Hospedales 2024,
        appendix).

        .. math:: \mathbb{E}\,\mathrm{KL}(N(m, V) \,\|\, N(\mu, \Sigma)) = \tfrac12 \big[
            \mathbb{E}\log|\Sigma| - \log|V| - d
            + n_0 \mathrm{tr}(V_0^{-1} V) + n_0 (m - m_0)^\top V_0^{-1} (m - m_0) + d/l_0 \big]

        :param mean: m, shape (d,).
        :param covariance: V, shape (d, d), or (d,) if diagonal, or of low rank.
        """
        spread = self.df * self._trace_solve(covariance)
        return 0.5 * (
            self.expected_log_det() - _log_det(covariance) - self.dim + spread + self.expected_quadratic(mean)
        )

    def kl(self, other: "NIW") -> jax.Array:
        r""":math:`\mathrm{KL}(\text{self} \,\|\, \text{other})`; with other's parameters
        :math:`\mu_0, \lambda_0, \Sigma_0, \nu_0`

        .. math:: \tfrac12 \big[ d \tfrac{\lambda_0}{l_0} - d + d \log \tfrac{l_0}{\lambda_0}
            + \lambda_0 n_0 (m_0 - \mu_0)^\top V_0^{-1} (m_0 - \mu_0) + \nu_0 \log \tfrac{|V_0|}{|\Sigma_0|}
            + n_0 \mathrm{tr}(\Sigma_0 V_0^{-1}) - n_0 d + (n_0 - \nu_0) \psi_d(\tfrac{n_0}2) \big]
            + \log \tfrac{\Gamma_d(\nu_0/2)}{\Gamma_d(n_0/2)}

        :raises ArgumentError: if the two have different structures.
        """
        if not isinstance(other, NIW):
            raise ArgumentTypeError(f"NIW.kl: other must be a NIW, got {described(other)}.")
        if self.blocks != other.blocks or self.diagonal != other.diagonal:
            raise ArgumentError(
                f"NIW.kl: the structures differ, {self.structure} {self.blocks} and {other.structure} "
                f"{other.blocks}."
            )
        d, ratio = self.dim, other.mean_precision / self.mean_precision
        normal = d * (ratio - 1 - jnp.log(ratio)) + other.mean_precision * self.df * self._quadratic(
            self.loc - other.loc
        )
        wishart = other.df * (self.log_det_scale() - other.log_det_scale()) + self.df * (
            self._trace_solve(other.scale_matrix) - d
        )
        wishart += (self.df - other.df) * self._per_block(lambda b: _multidigamma(self.df / 2, b))
        gammas = self._per_block(lambda b: _multigammaln(other.df / 2, b) - _multigammaln(self.df / 2, b))
        return 0.5 * (normal + wishart) + gammas

    def posterior(
        self, means: jax.Array, covariances: jax.Array, num_episodes: float | jax.Array | None = None
    ) -> "NIW":
        r"""The member that minimises the episodes' expected divergences and that from ``self``, the prior
        (μ₀, λ₀, Σ₀, ν₀):
        :math:`\sum_i \mathbb{E}\,\mathrm{KL}(N(m_i, V_i) \| N(\mu, \Sigma)) + \mathrm{KL}(\cdot \|
        \text{self})`.

        .. math:: n = \nu_0 + N, \quad l = \lambda_0 + N, \quad m = \frac{\lambda_0 \mu_0 + \sum_i m_i}{l},
            \quad
            V = \Sigma_0 + \lambda_0 (\mu_0 - m)(\mu_0 - m)^\top + \sum_i \big[ V_i + (m_i - m)(m_i - m)^\top
            \big]

        Exact conjugacy for known θᵢ (Vᵢ = 0). What lies outside the blocks, or off the diagonal, is left out.

        :param means: mᵢ, shape (n, d).
        :param covariances: Vᵢ, shape (n, d, d) or (n, d).
        :param num_episodes: N, if the n episodes stand for more: sums are scaled by N/n.
        """
        check_array("NIW.posterior: means", means)
        check_array("NIW.posterior: covariances", covariances)
        d, n = self.dim, jnp.shape(means)[0] if jnp.ndim(means) else 0
        if jnp.shape(means) != (n, d) or jnp.shape(covariances) not in ((n, d), (n, d, d)):
            raise ArgumentError(
                f"NIW.posterior: means must have shape (n, {d}) and covariances (n, {d}, {d}) or (n, {d}), "
                f"got {jnp.shape(means)} and {jnp.shape(covariances)}."
            )
        total = jnp.asarray(n if num_episodes is None else num_episodes, self.loc.dtype)
        scale = total / max(n, 1)
        mean_precision = self.mean_precision + total
        loc = (self.mean_precision * self.loc + scale * means.sum(0)) / mean_precision
        r, r0 = means - loc, self.loc - loc
        if self.diagonal:
            spread = (
                jnp.diagonal(covariances, axis1=1, axis2=2) if covariances.ndim == 3 else covariances
            ) + r**2
            matrix = self.scale_matrix + self.mean_precision * r0**2 + scale * spread.sum(0)
        else:
            full = covariances if covariances.ndim == 3 else jax.vmap(jnp.diag)(covariances)
            spread = full.sum(0) + r.T @ r
            matrix = self.scale_matrix + self.mean_precision * jnp.outer(r0, r0) + scale * spread
            matrix = block_diag(*self.split(matrix))
        return NIW(loc, mean_precision, matrix, self.df + total, self.blocks)

    def towards(self, other: "NIW", rate: float | jax.Array) -> "NIW":
        r"""A natural-gradient step: natural parameters :math:`(l, lm, V + lmm^\top, n)` mixed, ``rate`` of
        them other's (Hoffman et al. 2013, eq. 22). Written so that nothing cancels:
        :math:`V = (1-\rho) V_a + \rho V_b + \tfrac{(1-\rho) l_a \rho l_b}{l} r r^\top` with r the difference
        of the means."""
        a, b = (1 - rate) * self.mean_precision, rate * other.mean_precision
        r = self.loc - other.loc
        matrix = (1 - rate) * self.scale_matrix + rate * other.scale_matrix
        between = a * b / (a + b) * (r**2 if self.diagonal else block_diag(*self.split(jnp.outer(r, r))))
        loc = (a * self.loc + b * other.loc) / (a + b)
        return NIW(loc, a + b, matrix + between, (1 - rate) * self.df + rate * other.df, self.blocks)

    def predictive(self) -> dist.Distribution:
        r"""The law of a new episode's θ, with event shape (d,): a Student-t (Gelman et al. 2013, section 3.6)
        with :math:`n_0 - d + 1` degrees of freedom, location m₀ and scale matrix
        :math:`\frac{l_0 + 1}{l_0 (n_0 - d + 1)} V_0`. Blocks are independent, d then their size."""
        factor = (self.mean_precision + 1) / self.mean_precision
        if self.diagonal:
            return dist.StudentT(self.df, self.loc, jnp.sqrt(factor * self.scale_matrix / self.df)).to_event(
                1
            )
        parts = []
        for b, loc, c in zip(self.blocks, self.split(self.loc), self._choleskys(), strict=True):
            df = self.df - b + 1
            parts.append(dist.MultivariateStudentT(df, loc, jnp.sqrt(factor / df) * c))
        return parts[0] if len(parts) == 1 else Independent(parts)

    def at_mode(self) -> dist.Distribution:
        r"""The law of a new θ at the mode of (μ, Σ): :math:`N(m_0, V_0 / (n_0 + d + 2))`, narrower than
        :meth:`predictive`.
        """
        if self.diagonal:
            return dist.Normal(self.loc, jnp.sqrt(self.scale_matrix / (self.df + 3))).to_event(1)
        parts = [
            dist.MultivariateNormal(loc, scale_tril=c / jnp.sqrt(self.df + b + 2))
            for b, loc, c in zip(self.blocks, self.split(self.loc), self._choleskys(), strict=True)
        ]
        return parts[0] if len(parts) == 1 else Independent(parts)

    def covariance_law(self) -> dist.Distribution | list[dist.Distribution]:
        """The law of Σ as NumPyro distributions: ``InverseGamma`` over (d,), or one ``InverseWishart`` a
        block.
        """
        if self.diagonal:
            return dist.InverseGamma(self.df / 2, self.scale_matrix / 2).to_event(1)
        return [dist.InverseWishart(self.df, scale_tril=c) for c in self._choleskys()]

    def sample(self, rng_key: jax.Array, sample_shape: tuple[int, ...] = ()) -> tuple[jax.Array, jax.Array]:
        """Draws of (μ, Σ), shapes ``sample_shape`` + (d,) and + (d, d) or (d,)."""
        check_key("NIW.sample: rng_key", rng_key)
        if not isinstance(sample_shape, tuple) or not all(
            isinstance(n, int | np.integer) and n >= 0 for n in sample_shape
        ):
            raise ArgumentTypeError(
                "NIW.sample: sample_shape must be a tuple of sizes, such as (100,), got "
                f"{described(sample_shape)}."
            )
        of_covariance, of_mean = jax.random.split(rng_key)
        laws, noise = (
            self.covariance_law(),
            jax.random.normal(of_mean, (*sample_shape, self.dim), self.loc.dtype),
        )
        if not isinstance(laws, list):
            covariance = laws.sample(of_covariance, sample_shape)
            return self.loc + jnp.sqrt(covariance / self.mean_precision) * noise, covariance
        keys = jax.random.split(of_covariance, len(laws))
        parts = [law.sample(key, sample_shape) for law, key in zip(laws, keys, strict=True)]
        covariance = parts[0]
        if len(parts) > 1:
            flat = [p.reshape(-1, *p.shape[-2:]) for p in parts]
            covariance = jax.vmap(block_diag)(*flat).reshape(*sample_shape, self.dim, self.dim)
        mean = self.loc + jnp.einsum("...ij,...j->...i", jnp.linalg.cholesky(covariance), noise) / jnp.sqrt(
            self.mean_precision
        )
        return mean, covariance


def _floats(x, name: str) -> jax.Array:
    try:
        array = jnp.asarray(None if isinstance(x, str) else x)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"NIW: {name} must be real numbers, got {described(x)}.") from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise ArgumentTypeError(f"NIW: {name} must be real numbers, got {described(x)}.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _log_det(covariance: jax.Array | LowRank) -> jax.Array:
    if isinstance(covariance, LowRank):
        return covariance.log_det()
    if covariance.ndim == 1:
        return jnp.log(covariance).sum()
    return 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(covariance))).sum()


def _multidigamma(a: jax.Array, b: int) -> jax.Array:
    return digamma(a) if b == 1 else digamma(a - jnp.arange(b, dtype=a.dtype) / 2).sum()


def _multigammaln(a: jax.Array, b: int) -> jax.Array:
    return gammaln(a) if b == 1 else multigammaln(a, b)
