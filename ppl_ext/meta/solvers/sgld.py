"""Langevin dynamics as a local solver: the mean and inverse variance of iterates (Welling and Teh 2011; Kim
and Hospedales 2024).
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from ppl_ext.errors import ArgumentError
from ppl_ext.meta.solvers.laplace import curvature, positive
from ppl_ext.meta.solvers.local import LocalSolver, through
from ppl_ext.runtime.arguments import check_count, check_number, described


class LangevinLocal(LocalSolver):
    r"""The mean and the inverse variance of Langevin iterates that start at m₀, as in the paper,
    preconditioned.

    .. math:: \theta \leftarrow \theta - \tfrac\epsilon2 M^{-1} \nabla U(\theta) + \sqrt\epsilon\, M^{-1/2}
        \xi, \qquad
        U(\theta) = \ell(\theta) + \tfrac12 (\theta - m_0)^\top P_0 (\theta - m_0)

    with M = A + P₀, A the generalised Gauss-Newton matrix: found anew at each of the ``num_warmup`` first
    steps, then held. The iterates' variances are taken in the coordinates :math:`M^{1/2} \theta`, where a
    Gaussian's are 1, and there multiplied by :math:`1 - \epsilon/4`, by which a finite step makes them too
    large. The quadratic returned has its closed-form mean at the iterates' mean. The prior's share of the
    precision is taken off again; directions in which chance left less than that count as flat. Memory does
    not grow with the steps.

    Where the posterior is far from Gaussian, its mean and spread are what this solver sees, and Laplace's
    approximation does not. Otherwise that is cheaper and has no noise: n iterates leave the variances with a
    relative error of about :math:`\sqrt{2 (4 - \epsilon) / (\epsilon n)}`.

    :param num_steps: iterates that count, at least 2.
    :param num_warmup: iterates before them.
    :param step_size: ε, in (0, 2]; at 2 the iterates of a Gaussian are independent, and anything else may
        diverge.
    :param structure: ``"full"``, or ``"diagonal"``, as the paper has it, for many local dimensions.
    :raises ArgumentError: for options out of range.

    >>> LangevinLocal(num_steps=500, step_size=3.0)  # lift(...).fit(..., local_solver=LangevinLocal(500))
    Traceback (most recent call last):
    ppl_ext.errors.ArgumentError: LangevinLocal(step_size=...) must lie in (0, 2], got ...
    """

    num_steps: int = 200
    num_warmup: int = 8
    step_size: float = 1.0
    structure: str = "full"

    def __check_init__(self):
        check_count("LangevinLocal(num_steps=...)", self.num_steps)
        check_count("LangevinLocal(num_warmup=...)", self.num_warmup)
        check_number("LangevinLocal(step_size=...)", self.step_size)
        if self.num_steps < 2:
            raise ArgumentError("LangevinLocal(num_steps=...) must be at least 2, for a variance.")
        if not 0 < self.step_size <= 2:
            raise ArgumentError(
                f"LangevinLocal(step_size=...) must lie in (0, 2], got {described(self.step_size)}."
            )
        if not isinstance(self.structure, str) or self.structure not in ("full", "diagonal"):
            raise ArgumentError(
                f"LangevinLocal(structure=...) is 'full' or 'diagonal', got {described(self.structure)}."
            )

    def __call__(self, neg_log_lik, mean, precision, rng_key):
        of_warmup, of_steps = jax.random.split(rng_key)
        # A diagonal curvature with a full prior would need their sum's root all the same: then the prior's
        # diagonal preconditions.
        narrow = self.structure == "diagonal"
        own = jnp.diagonal(precision) if narrow and precision.ndim == 2 else precision
        own = jnp.diag(own) if not narrow and own.ndim == 1 else own

        def slope(theta):
            r = theta - mean
            return jax.grad(neg_log_lik)(theta) + (precision * r if precision.ndim == 1 else precision @ r)

        def root_at(theta):
            m = curvature(neg_log_lik, theta, self.structure) + own
            return jnp.sqrt(m * _steepest(slope, theta, m)) if narrow else jnp.linalg.cholesky(m)

        def back(root, x):  # M^-1/2 x, so that x has the covariance M
            return x / root if narrow else solve_triangular(root, x, lower=True, trans=1)

        def moved(theta, root, key):
            noise = jax.random.normal(key, theta.shape, theta.dtype)
            pull = slope(theta) / root if narrow else solve_triangular(root, slope(theta), lower=True)
            new = theta - back(root, 0.5 * self.step_size * pull - jnp.sqrt(self.step_size) * noise)
            return jnp.where(jnp.isfinite(new).all() & jnp.isfinite(neg_log_lik(new)), new, theta)

        def warm(theta, key):
            return moved(theta, root_at(theta), key), None

        theta, _ = jax.lax.scan(warm, mean, jax.random.split(of_warmup, self.num_warmup))
        root, centre = root_at(theta), theta

        def step(carry, key):
            theta, total, squares = carry
            theta = moved(theta, root, key)
            x = root * (theta - centre) if narrow else root.T @ (theta - centre)
            return (theta, total + x, squares + x**2), None

        zeros = jnp.zeros_like(theta)
        (_, total, squares), _ = jax.lax.scan(
            step, (theta, zeros, zeros), jax.random.split(of_steps, self.num_steps)
        )
        average = total / self.num_steps
        variance = (
            (squares / self.num_steps - average**2)
            * self.num_steps
            / (self.num_steps - 1)
            * (1 - self.step_size / 4)
        )
        sharp = 1 / jnp.maximum(variance, 1e-6)
        if narrow:
            return through(centre + average / root, jnp.maximum(root**2 * sharp - own, 0.0), mean, precision)
        return through(centre + back(root, average), positive((root * sharp) @ root.T - own), mean, precision)


def _steepest(slope, theta: jax.Array, m: jax.Array, rounds: int = 8) -> jax.Array:
    """How many times the curvature of a sum along its worst direction exceeds that of its coordinates, m, at
    least 1: by power iteration.

    Coupled coordinates, each moved as if alone, would overshoot as many times.
    """
    root = jnp.sqrt(m)

    def again(carry, _):
        x, _ = carry
        y = jax.jvp(slope, (theta,), (x / root,))[1] / root
        size = jnp.linalg.norm(y)
        return (jnp.where(jnp.isfinite(size) & (size > 0), y / size, x), size), None

    x = jax.random.normal(jax.random.key(0), theta.shape, theta.dtype)
    (_, size), _ = jax.lax.scan(again, (x / jnp.linalg.norm(x), jnp.ones((), theta.dtype)), length=rounds)
    return jnp.where(jnp.isfinite(size), jnp.maximum(1.1 * size, 1.0), 1.0)
