"""A local solver that fits each episode's Gaussian by an objective of variational inference."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.linalg import cho_solve, solve_triangular
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.solvers.laplace import positive
from ppl_ext.meta.solvers.local import LocalSolver, through
from ppl_ext.runtime.arguments import check_count, check_number, described

REACH = 3.0


class VariationalLocal(LocalSolver):
    r"""Each episode's Gaussian by stochastic gradients of an objective, from the shared Gaussian as its
    start.

    .. math:: q = \arg\min \; \mathrm{objective}\big(\theta \sim N(m_0, P_0^{-1}),\; e^{-\ell(\theta)};\;
        q(\theta) = N(m, L L^\top)\big)

    **With any objective but the ELBO the conjugate identities are off.** The shared law is still moved as if
    each q were the one that minimises :math:`\mathbb{E}_q \ell + \mathrm{KL}`, and training still reports
    that bound, which the fits then no longer optimise: it may rise, and the fixed point of training is no
    optimum of it. What the objective changes (a q that covers more, say) does reach the shared law.
    :attr:`conjugate` tells.

    The quadratic returned has its closed-form mean at m and its covariance at LLᵀ, narrowed to the shared
    Gaussian's where it is wider.

    :param objective: an instance of any objective of :mod:`ppl_ext.objectives`, or of NumPyro's; default
        NumPyro's ``Trace_ELBO()``. It sees θ as one latent site and the episode as a factor, so objectives
        that simulate data, or carry state, do not serve.
    :param num_steps: steps of Adam.
    :param step_size: its first, in standard deviations of the shared Gaussian; it falls to zero as a
        cosine does.
    :param structure: ``"full"``, or ``"diagonal"``.
    :raises ArgumentError: for options out of range.
    :raises ArgumentTypeError: if the objective is none.

    >>> from numpyro.infer import RenyiELBO
    >>> VariationalLocal().conjugate, VariationalLocal(RenyiELBO(0.5, 8)).conjugate
    (True, False)
    """

    objective: Any = eqx.field(static=True, default=None)
    num_steps: int = 200
    step_size: float = 0.1
    structure: str = "full"

    def __check_init__(self):
        if self.objective is not None and not isinstance(self.objective, ELBO):
            raise ArgumentTypeError(
                "VariationalLocal(objective=...) must be an instance such as ppl_ext.objectives.IWELBO(8), "
                f"got {described(self.objective)}."
            )
        check_count("VariationalLocal(num_steps=...)", self.num_steps)
        check_number("VariationalLocal(step_size=...)", self.step_size)
        if not self.step_size > 0:
            raise ArgumentError(
                f"VariationalLocal(step_size=...) must be positive, got {described(self.step_size)}."
            )
        if not isinstance(self.structure, str) or self.structure not in ("full", "diagonal"):
            raise ArgumentError(
                f"VariationalLocal(structure=...) is 'full' or 'diagonal', got {described(self.structure)}."
            )

    @property
    def conjugate(self) -> bool:
        """Whether the closed forms of the hierarchy are those of this objective: only an ELBO's."""
        # By name: the library's own objectives stand beside this package, not below it.
        return self.objective is None or type(self.objective).__name__ in (
            "ELBO",
            "Trace_ELBO",
            "TraceMeanField_ELBO",
        )

    def _least(self, shift):
        """The least curvature, in standard deviations of the shared Gaussian, along a direction in which the
        mean moved by ``shift``.

        An objective that covers can leave q as wide as the shared Gaussian where it moved its mean. No
        likelihood does that: a pull without curvature carries the mean away without end where the shared law
        is wider, as a Student-t is in its tails. So the likelihood's own optimum lies within ``REACH`` more
        deviations.
        """
        return 0.0 if self.conjugate else jnp.abs(shift) / REACH

    def __call__(self, neg_log_lik, mean, precision, rng_key):
        narrow, d = self.structure == "diagonal", mean.shape[0]
        own = jnp.diag(precision) if precision.ndim == 1 else precision
        # θ = m₀ + L₀ z with L₀L₀ᵀ = P₀⁻¹: in z the shared Gaussian is standard, and one step size fits all.
        root = jnp.linalg.cholesky(own)
        eye = jnp.eye(d, dtype=mean.dtype)
        spread = (
            1 / jnp.sqrt(jnp.diagonal(own)) if narrow else solve_triangular(root, eye, lower=True, trans=1)
        )

        def at(z):
            return mean + (spread * z if narrow else spread @ z)

        def whitened():
            z = numpyro.sample("z", dist.Normal(jnp.zeros(d, mean.dtype), 1.0).to_event(1))
            theta = at(z)
            if narrow and precision.ndim == 2:  # correlated a priori, where the guide is not
                r = theta - mean
                numpyro.factor("prior", -0.5 * (r @ own @ r - z @ z))
            numpyro.factor("episode", -neg_log_lik(theta))

        def guide():
            loc, scale = numpyro.param("loc", jnp.zeros(d)), numpyro.param("scale", jnp.eye(d))
            numpyro.sample(
                "z",
                dist.Normal(loc, scale).to_event(1)
                if narrow
                else dist.MultivariateNormal(loc, scale_tril=scale),
            )

        def params_of(free):
            scale = (
                jnp.exp(free["scale"])
                if narrow
                else jnp.tril(free["scale"], -1) + jnp.diag(jnp.exp(jnp.diagonal(free["scale"])))
            )
            return {"loc": free["loc"], "scale": scale}

        objective = Trace_ELBO() if self.objective is None else self.objective
        optim = optax.adam(optax.cosine_decay_schedule(self.step_size, self.num_steps))

        def step(carry, key):
            free, state = carry
            grads = jax.grad(lambda f: objective.loss(key, params_of(f), whitened, guide))(free)
            finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]).all()
            updates, new = optim.update(grads, state, free)
            return jax.tree.map(
                lambda a, b: jnp.where(finite, a, b), (optax.apply_updates(free, updates), new), carry
            ), None

        free = {"loc": jnp.zeros(d, mean.dtype), "scale": jnp.zeros((d,) if narrow else (d, d), mean.dtype)}
        (free, _), _ = jax.lax.scan(step, (free, optim.init(free)), jax.random.split(rng_key, self.num_steps))
        q = params_of(free)
        if narrow:
            sharp = jnp.maximum(
                1 / (spread * q["scale"]) ** 2 - jnp.diagonal(own), self._least(q["loc"]) / spread**2
            )
            return through(at(q["loc"]), sharp, mean, precision)
        inner = cho_solve((q["scale"], True), eye) - eye
        if self.conjugate:
            inner = positive(inner)
        else:
            values, vectors = jnp.linalg.eigh(inner)
            inner = (vectors * jnp.maximum(values, self._least(q["loc"] @ vectors))) @ vectors.T
        return through(at(q["loc"]), root @ inner @ root.T, mean, precision)
