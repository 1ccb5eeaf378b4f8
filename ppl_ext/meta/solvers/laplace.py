"""Local solvers: an exact one for linear-Gaussian episodes, and Laplace's approximation by generalised
Gauss-Newton steps.
"""

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.meta.distributions.low_rank import Factored, LowRank
from ppl_ext.meta.solvers.local import LocalSolver, Quadratic, through
from ppl_ext.runtime.arguments import check_count, described


class ExactLinearGaussian(LocalSolver):
    r"""For a negative log likelihood that is quadratic in θ (linear-Gaussian rows): one gradient and one
    Hessian are the whole of it.

    .. math:: A = \nabla^2 \ell(m_0), \qquad b = A m_0 - \nabla \ell(m_0)

    No iterates, no approximation; A may be rank-deficient. ``fit`` checks that the model is quadratic, and
    refuses it otherwise.

    :return: of a call, :class:`Quadratic` with A (d, d) and b (d,).
    :raises ModelError: by ``fit``, if the model is not quadratic.

    >>> fit = ExactLinearGaussian()(lambda theta: jnp.sum((theta - 3.0) ** 2), jnp.zeros(1), jnp.eye(1), None)
    >>> fit.precision.tolist(), fit.linear.tolist()
    ([[2.0]], [6.0])
    """

    def __call__(self, neg_log_lik, mean, precision, rng_key):
        hessian = jax.hessian(neg_log_lik)(mean)
        return Quadratic(hessian, hessian @ mean - jax.grad(neg_log_lik)(mean))


class LaplaceGGN(LocalSolver):
    r"""Laplace's approximation at the local mode, found by damped generalised Gauss-Newton steps from m₀.

    .. math:: \theta \leftarrow \theta - \eta (A + P_0)^{-1} (\nabla \ell(\theta) + P_0 (\theta - m_0)),
        \qquad
        A = \big[ J^\top (\nabla^2_f\, \ell) J \big]_+

    with J the slope of the observed distributions' parameters f(θ), :math:`[\cdot]_+` the matrix with its
    negative eigenvalues set to zero (Martens 2020, section 8), and η the best of 1, ½, ¼, ... 2⁻⁹; a step
    that does not lower the penalised loss, or is not finite, is not made. The quadratic returned has its
    closed-form mean at the last iterate, whether that has converged or not.

    ``structure="low_rank"`` works in function space: with :math:`U = [\nabla^2_f\, \ell]_+^{1/2} J`, of as
    many rows as there are outputs, :math:`A = U^\top U` is never formed, and with a diagonal law of the
    episodes neither is the posterior's covariance (Woodbury). For many local dimensions and few rows; unlike
    ``"diagonal"`` it keeps the correlations.

    :param num_steps: Gauss-Newton steps, at least 1.
    :param structure: ``"full"``; ``"diagonal"``: only the diagonal of A, for many local dimensions; or
        ``"low_rank"``.
    :raises ArgumentError: for options out of range.

    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import EpisodeStream, lift
    >>> def episode(y):
    ...     log_rate = numpyro.sample("log_rate", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(y)):
    ...         numpyro.sample("y", dist.Poisson(jnp.exp(log_rate)), obs=y)
    >>> counts = np.array([2, 4])
    >>> h = lift(episode, ["log_rate"]).hierarchy(EpisodeStream([(counts,)]))
    >>> loss = h.loss(h.form.initial_shared(), (counts,), jnp.array(2))
    >>> # hardly a prior: the mode is log 3, the curvature 2 * 3
    >>> fit = LaplaceGGN()(loss, jnp.zeros(1), 1e-6 * jnp.eye(1), None)
    >>> round(float(fit.precision[0, 0]), 2), round(float(fit.linear[0] / fit.precision[0, 0]), 2)
    (6.0, 1.1)
    """

    num_steps: int = 8
    structure: str = "full"

    def __check_init__(self):
        check_count("LaplaceGGN(num_steps=...)", self.num_steps)
        if not isinstance(self.structure, str) or self.structure not in ("full", "diagonal", "low_rank"):
            raise ArgumentError(
                "LaplaceGGN(structure=...) is 'full', 'diagonal' or 'low_rank', got "
                f"{described(self.structure)}."
            )

    def __call__(self, neg_log_lik, mean, precision, rng_key):
        theta = self.mode(neg_log_lik, mean, mean, precision)
        return through(theta, self._curvature(neg_log_lik, theta), mean, precision)

    def mode(self, neg_log_lik, start: jax.Array, mean: jax.Array, precision: jax.Array) -> jax.Array:
        """The last of the steps from ``start``."""

        def penalised(theta):
            r = theta - mean
            return neg_log_lik(theta) + 0.5 * r @ (precision * r if precision.ndim == 1 else precision @ r)

        def step(theta, _):
            direction = _direction(self._curvature(neg_log_lik, theta), precision, jax.grad(penalised)(theta))
            sizes = 0.5 ** jnp.arange(10, dtype=theta.dtype)
            losses = jax.vmap(lambda size: penalised(theta - size * direction))(sizes)
            losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
            # The best size, not the first that helps at all: a step just short of twice too long helps, too.
            size = jnp.where(losses.min() < penalised(theta), sizes[jnp.argmin(losses)], 0.0)
            return theta - size * jnp.where(jnp.isfinite(direction), direction, 0.0), None

        return jax.lax.scan(step, start, None, length=self.num_steps)[0]

    def _curvature(self, neg_log_lik, theta: jax.Array) -> jax.Array | Factored:
        if self.structure == "low_rank":
            return in_function_space(neg_log_lik, theta)
        return curvature(neg_log_lik, theta, self.structure)


def _direction(a: jax.Array | Factored, prior: jax.Array, slope: jax.Array) -> jax.Array:
    """(A + P₀)⁻¹ slope."""
    if isinstance(a, Factored):
        if prior.ndim == 1:
            return LowRank(1 / prior, a.factor).times(slope)
        a = a.dense()
    if a.ndim == prior.ndim == 1:
        return slope / (a + prior)
    a, prior = (jnp.diag(x) if x.ndim == 1 else x for x in (a, prior))
    return jnp.linalg.solve(a + prior, slope)


def curvature(neg_log_lik, theta: jax.Array, structure: str) -> jax.Array:
    """The generalised Gauss-Newton matrix of an episode at θ, or its diagonal, positive semidefinite and
    finite: what breaks down is left out."""
    loss, d = neg_log_lik.of_outputs(theta), theta.shape[0]
    outputs = neg_log_lik.outputs(theta)
    slopes = jax.jacfwd(neg_log_lik.outputs)(theta)  # d last

    def bent(direction):
        return jax.jvp(jax.grad(loss), (outputs,), (direction,))[1]

    curved = jax.vmap(bent, in_axes=-1, out_axes=-1, axis_size=d)(slopes)
    pairs = zip(slopes, curved, strict=True)
    if structure == "diagonal":
        diagonal = sum(
            (jnp.sum((j * hj).reshape(-1, d), 0) for j, hj in pairs), start=jnp.zeros(d, theta.dtype)
        )
        return jnp.where(jnp.isfinite(diagonal), jnp.maximum(diagonal, 0.0), 0.0)
    matrix = sum(
        (j.reshape(-1, d).T @ hj.reshape(-1, d) for j, hj in pairs), start=jnp.zeros((d, d), theta.dtype)
    )
    return positive(matrix)


def positive(matrix: jax.Array) -> jax.Array:
    """The nearest positive semidefinite matrix; zero if the matrix is not finite."""
    matrix = jnp.where(jnp.isfinite(matrix).all(), (matrix + matrix.T) / 2, 0.0)
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0.0)) @ vectors.T


def in_function_space(neg_log_lik, theta: jax.Array) -> Factored:
    """The curvature by its factor, a row for each output."""
    loss, outputs = neg_log_lik.of_outputs(theta), neg_log_lik.outputs(theta)
    sizes = [x.size for x in outputs]
    if not (r := sum(sizes)):  # no observed law has a real parameter
        return Factored(jnp.zeros((0, *theta.shape), theta.dtype))

    def cut(flat):
        parts = jnp.split(flat, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
        return [p.reshape(x.shape) for p, x in zip(parts, outputs, strict=True)]

    at = jnp.concatenate([jnp.ravel(x) for x in outputs])
    hessian = jax.hessian(lambda flat: loss(cut(flat)))(at)
    hessian = jnp.where(jnp.isfinite(hessian).all(), (hessian + hessian.T) / 2, 0.0)
    values, vectors = jnp.linalg.eigh(hessian)
    _, pull = jax.vjp(neg_log_lik.outputs, theta)
    # J, row by row: outputs are fewer than parameters
    rows = jax.vmap(lambda e: pull(cut(e))[0])(jnp.eye(r, dtype=theta.dtype))
    factor = (jnp.sqrt(jnp.maximum(values, 0.0)) * vectors).T @ rows
    return Factored(jnp.where(jnp.isfinite(factor).all(), factor, 0.0))
