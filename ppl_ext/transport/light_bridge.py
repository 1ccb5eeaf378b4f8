"""The Schrödinger bridge between two laws, as a mixture of normals: a conditional law and a diffusion."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_key, described


class LightSB(eqx.Module):
    r"""A diffusion that takes one law to another, and is otherwise as near to Brownian motion as can be.

    .. math:: dx_t = g(x_t, t) \, dt + \sqrt\epsilon \, dW_t, \qquad \pi(y \mid x) \propto e^{\langle x, y
        \rangle / \epsilon} v(y), \qquad v(y) = \sum_k \alpha_k N(y; r_k, \epsilon S_k)

    from x at time 0 to y at time 1, with noise of variance :math:`\epsilon` per unit of time. Its plan is
    the entropic optimal transport with cost :math:`\|x - y\|^2/2`. Where the potential v is a mixture, so is
    the law of y given the diffusion at any time. It is a tree of arrays;
    :func:`~ppl_ext.transport.light_sb` finds it.

    ``log_weights`` (K,): :math:`\log \alpha_k`, up to a constant; ``centers`` (K, d): :math:`r_k`; ``roots``
    (K, d, d): lower triangular roots of :math:`S_k`; ``epsilon``: the variance of the noise per unit of time.

    >>> bridge = LightSB(jnp.zeros(1), jnp.ones((1, 1)), jnp.eye(1)[None], 0.5)
    >>> there = bridge.given(jnp.array([2.0]))
    >>> print(there.mean, there.variance.round(4))
    [3.] [0.5]
    >>> bridge.drift(jnp.array([2.0]), 0.0).tolist()
    [1.0]

    Source: Korotin, Gushchin, Burnaev 2024, "Light Schrödinger bridge".
    """

    log_weights: Any
    centers: Any
    roots: Any
    epsilon: Any

    def log_potential(self, y: jax.Array) -> jax.Array:
        """log v at ends (..., d)."""
        inverse = self._inverse_roots()
        off = _each(inverse, y) - jnp.einsum("kij,kj->ki", inverse, self.centers)
        half_log_det = jnp.log(jnp.diagonal(self.roots, axis1=-2, axis2=-1)).sum(-1)
        constant = 0.5 * y.shape[-1] * jnp.log(2 * jnp.pi * self.epsilon)
        each = -0.5 * (off**2).sum(-1) / self.epsilon - half_log_det - constant
        return jax.nn.logsumexp(self.log_weights + each, axis=-1)

    def log_normalizer(self, x: jax.Array) -> jax.Array:
        r"""log c at starts (..., d), :math:`c(x) = \int e^{\langle x, y \rangle / \epsilon} v(y) \, dy`."""
        scaled = jnp.einsum("kij,kj->ki", self._inverse_roots(), self.centers)
        u = _each(jnp.swapaxes(self.roots, -1, -2), x) + scaled
        squares = (u**2).sum(-1) - (scaled**2).sum(-1)
        return jax.nn.logsumexp(self.log_weights + 0.5 * squares / self.epsilon, axis=-1)

    def given(self, x: Any, t: Any = 0.0) -> dist.MixtureSameFamily:
        """The law of the end y, given that the diffusion is at x (..., d) at time t.

        :raises ArgumentError: for x of another dimension, or a time outside of [0, 1).
        """
        x = self._point("given: x", x)
        logs, moves, roots = self._mixture(x, _time("given: t", t))
        # a root that is triangular again
        upper = jnp.linalg.qr(jnp.swapaxes(roots, -1, -2), mode="r")
        signs = jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
        lower = jnp.swapaxes(upper * signs[..., None], -1, -2)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logs), dist.MultivariateNormal(x[..., None, :] + moves, scale_tril=lower)
        )

    def drift(self, x: Any, t: Any) -> jax.Array:
        r"""The diffusion's drift (..., d) at x (..., d) at time t.

        .. math:: g(x, t) = \frac{\mathbb{E}[x_1 \mid x_t = x] - x}{1 - t}

        :raises ArgumentError: for x of another dimension, or a time outside of [0, 1).
        """
        x, t = self._point("drift: x", x), _time("drift: t", t)
        logs, moves, _ = self._mixture(x, t)
        return (jax.nn.softmax(logs, axis=-1)[..., None] * moves).sum(-2) / (1.0 - t)

    def bridge(self, rng_key: jax.Array, x: Any, times: Any) -> jax.Array:
        r"""Paths of the diffusion from x (..., d), at times (T,): (..., T, d). Exact, whatever the times.

        .. math:: x_t = x + t (y - x) + \sqrt\epsilon (W_t - t W_1), \qquad y \sim \pi(\cdot \mid x)

        :raises ArgumentError: for x of another dimension, or times that do not increase within [0, 1].
        """
        check_key("bridge: rng_key", rng_key)
        check_array("bridge: times", times)
        x, times = self._point("bridge: x", x), jnp.asarray(times, float)
        steps = jnp.diff(times, prepend=0.0, append=1.0)
        if times.ndim != 1 or not _holds((steps >= 0).all()):
            raise ArgumentError(f"bridge: times must increase within [0, 1], got {described(times)}.")
        of_end, of_path = jax.random.split(rng_key)
        y = self.given(x).sample(of_end)
        noise = jax.random.normal(of_path, (*x.shape[:-1], len(steps), x.shape[-1]))
        wiener = jnp.cumsum(jnp.sqrt(jnp.maximum(steps, 0.0))[:, None] * noise, -2)
        t = times[:, None]
        around = jnp.sqrt(self.epsilon) * (wiener[..., :-1, :] - t * wiener[..., -1:, :])
        return x[..., None, :] + t * (y - x)[..., None, :] + around

    def _mixture(self, x: jax.Array, t: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        r"""Log weights (..., K) of the end, from x at time t, how far its means (..., K, d) are from x, and
        roots (K, d, d).

        .. math:: \log \alpha_k - \tfrac12 \log |M_k^{-1}| + \tfrac{1}{2 \epsilon} \big(p^\top M_k p
            + 2 p^\top M_k e - a (r_k - x)^\top L_k M_k e\big), \qquad L_k M_k (p + e)

        with :math:`a = t / (1 - t)`, :math:`M_k = (I + a L_k^\top L_k)^{-1}`, :math:`p = L_k^\top x` and
        :math:`e = L_k^{-1} (r_k - x)`: near time 1, where the mean is near x, nothing cancels.
        """
        roots, eye, inverse = self.roots, jnp.eye(x.shape[-1]), self._inverse_roots()
        turned, later = jnp.swapaxes(roots, -1, -2), t / (1.0 - t)
        both = jnp.linalg.cholesky(eye + later * turned @ roots)
        half = jnp.linalg.inv(both)  # small matrices, and triangular
        along = _each(turned, x)
        off = jnp.einsum("kij,kj->ki", inverse, self.centers) - _each(inverse, x)
        away = jnp.einsum("kij,kj->ki", turned, self.centers) - along
        p, e, v = (jnp.einsum("kij,...kj->...ki", half, y) for y in (along, off, away))
        half_log_det = jnp.log(jnp.diagonal(both, axis1=-2, axis2=-1)).sum(-1)
        squares = (p**2 + 2.0 * p * e - later * v * e).sum(-1)
        logs = self.log_weights + 0.5 * squares / self.epsilon - half_log_det
        outer = roots @ jnp.swapaxes(half, -1, -2)
        return logs, jnp.einsum("kij,...kj->...ki", outer, p + e), jnp.sqrt(self.epsilon) * outer

    def _inverse_roots(self) -> jax.Array:
        eye = jnp.broadcast_to(jnp.eye(self.roots.shape[-1]), self.roots.shape)
        return solve_triangular(self.roots, eye, lower=True)

    def _point(self, where: str, x: Any) -> jax.Array:
        check_array(where, x)
        x = jnp.asarray(x, float)
        dim = self.centers.shape[-1]
        if x.ndim < 1 or x.shape[-1] != dim:
            raise ArgumentError(f"{where} must have {dim} numbers in its last axis, got {described(x)}.")
        return x


def _each(matrices: jax.Array, x: jax.Array) -> jax.Array:
    """Each of K matrices times x (..., d): (..., K, d), as one product."""
    num, dim = matrices.shape[:2]
    return (x @ matrices.reshape(num * dim, dim).T).reshape(*x.shape[:-1], num, dim)


def _holds(condition: jax.Array) -> bool:
    return isinstance(condition, jax.core.Tracer) or bool(condition)


def _time(where: str, t: Any) -> Any:
    if not isinstance(t, jax.core.Tracer) and not (np.ndim(t) == 0 and 0 <= t < 1):
        raise ArgumentError(f"{where} must be one time from 0 on and below 1, got {described(t)}.")
    return t
