"""The exact score of a mixture of Gaussians at every level of added noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array
from ppl_ext.scores.gaussian import GaussianScore, checked_moments


class MixtureScore(eqx.Module):
    r"""The score of a mixture of Gaussians with noise added, exactly.

    .. math:: \nabla_x \log \sum_k w_k \, \mathcal{N}(x; m_k, S_k + \sigma^2 I)
        = \sum_k r_k(x) \, (S_k + \sigma^2 I)^{-1} (m_k - x), \qquad
        r_k \propto w_k \, \mathcal{N}(x; m_k, S_k + \sigma^2 I)

    :param weights: w, (K,), positive, of sum one.
    :param locs: m, (K, d).
    :param covariances: S, (K, d, d), or (d, d) for all components.
    :raises ArgumentError: for shapes that disagree, weights that are none, or a matrix that is no covariance.

    Called as :class:`GaussianScore`, with ``log_prob`` and ``sample`` as that.

    >>> score = MixtureScore(jnp.array([0.5, 0.5]), jnp.array([[-2.0], [2.0]]), jnp.eye(1))
    >>> float(score(jnp.zeros(1), 0.3)[0])  # between the two
    0.0

    Source: Wang and Vastola 2024, the section on Gaussian mixtures.
    """

    log_weights: jax.Array
    parts: GaussianScore  # its arrays have a leading axis K

    def __init__(self, weights, locs, covariances):
        check_array("MixtureScore: weights", weights)
        check_array("MixtureScore: locs", locs)
        check_array("MixtureScore: covariances", covariances)
        weights, locs, covariances = (jnp.asarray(x, float) for x in (weights, locs, covariances))
        if weights.ndim != 1 or locs.ndim != 2 or len(weights) != len(locs):
            raise ArgumentError(
                f"MixtureScore: weights (K,) and locs (K, d) disagree: {weights.shape} and {locs.shape}."
            )
        if not isinstance(weights, jax.core.Tracer) and not (
            (weights > 0).all() and abs(float(weights.sum()) - 1) < 1e-4
        ):
            raise ArgumentError("MixtureScore: weights must be positive and have the sum one.")
        if covariances.ndim == 2:
            covariances = jnp.broadcast_to(covariances, (len(locs), *covariances.shape))
        parts = [
            GaussianScore(*checked_moments("MixtureScore", *pair))
            for pair in zip(locs, covariances, strict=True)
        ]
        self.log_weights = jnp.log(weights)
        self.parts = jax.tree.map(lambda *x: jnp.stack(x), *parts)

    def _joint(self, x, sigma) -> jax.Array:
        """log of weight times density, (K, ...)."""
        each = jax.vmap(lambda part: part.log_prob(x, sigma))(self.parts)
        return each + self.log_weights.reshape(-1, *[1] * (each.ndim - 1))

    def __call__(self, x, sigma) -> jax.Array:
        scores = jax.vmap(lambda part: part(x, sigma))(self.parts)
        return (jax.nn.softmax(self._joint(x, sigma), axis=0)[..., None] * scores).sum(0)

    def log_prob(self, x, sigma=0.0) -> jax.Array:
        """The log density of :math:`X + \\sigma \\varepsilon`, (...)."""
        return logsumexp(self._joint(x, sigma), axis=0)

    def sample(self, rng_key, shape: tuple[int, ...] = (), sigma=0.0) -> jax.Array:
        """Draws of :math:`X + \\sigma \\varepsilon`, ``(*shape, d)``."""
        which, noise = jax.random.split(rng_key)
        each = jax.vmap(lambda part: part.sample(noise, shape, sigma))(self.parts)
        k = jax.random.categorical(which, self.log_weights, shape=shape)
        return jnp.take_along_axis(each, k[None, ..., None], axis=0)[0]

    @property
    def dim(self) -> int:
        """d."""
        return self.parts.loc.shape[-1]

    @property
    def gaussian(self) -> GaussianScore:
        """The Gaussian with the mixture's mean and covariance."""
        w = jnp.exp(self.log_weights)
        loc = w @ self.parts.loc
        apart = self.parts.loc - loc
        within = jnp.einsum("k,kij,kj,klj->il", w, self.parts.vectors, self.parts.values, self.parts.vectors)
        return GaussianScore(loc, within + jnp.einsum("k,ki,kj->ij", w, apart, apart))
