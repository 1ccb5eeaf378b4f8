"""Weights of a mixture by the frequencies at which its components win."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from numpyro.distributions import Distribution

from ppl_ext.errors import StrategyError
from ppl_ext.gradients.local import LocalStrategy
from ppl_ext.gradients.strategy import unwrapped
from ppl_ext.runtime.arguments import check_count


@dataclass(frozen=True)
class ComponentFrequency(LocalStrategy):
    r"""A mixture's components by the path of the draw, its weights by a loss on frequencies. Biased.

    .. math:: -\nabla_w \sum_i (v_i - w_i)^2, \qquad v_i = \frac{w_i \bar\rho_i}{\sum_j w_j \bar\rho_j},
        \qquad \bar\rho_i = \frac1M \sum_m e^{L(z_{im})}, \quad z_{im} \sim q_i

    takes the place of the gradient by the weights w of :math:`q = \sum_i w_i q_i`. L is what the program
    returns where the site has that value: for the ELBO the log importance weight :math:`\log p(x, z) - \log
    q(z)`, so that v estimates the posterior's responsibilities, how often each component wins:

    .. math:: v_i \to \mathbb{E}_{p(z | x)} \big[ w_i q_i(z) / q(z) \big] \qquad (M \to \infty)

    - **Exact**: the gradient of the components' parameters, at the weights as they are, is unbiased. Where q
      is the posterior, every L is the log evidence and v is w for any draw: with
      ``ELBO(stick_the_landing=True)`` all gradients are zero there, without noise.
    - **Biased**: elsewhere the weights do not descend the objective. For many draws they come to rest at the
      weights that fit the posterior best *forwards*, as those of population Monte Carlo, which is another
      place unless q can be the posterior; for few v is biased too, as a ratio is. No objective is descended,
      and some runs rest where a wide component covers two modes. Never the default.

    A site's own scale (``scale``, a subsampled plate that it is in) multiplies its loss and leaves its
    frequencies as they are: L is what the program returns, over that scale. A cost that is scaled where the
    site is not sharpens them as it would the posterior. Under a mean over particles each has frequencies of
    its own, and their losses are averaged. The program runs again for each component and draw, in one
    ``vmap``; first derivatives only.

    :param num_draws: M, draws of each component.
    :raises StrategyError: for a site that is no ``MixtureSameFamily`` with a differentiable sampler; where
        particles are not averaged (``IWELBO``), or beside sites that are enumerated jointly, whose costs come
        in parts. The message names the site.

    >>> ComponentFrequency(num_draws=4)
    ComponentFrequency(num_draws=4)
    >>> law = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0))
    >>> ComponentFrequency.serves(law), ComponentFrequency.serves(dist.Normal())
    (True, False)

    Source: the loss by its formula, of which no publication was found; what v estimates, and where it rests:
    Douc, Guillin, Marin, Robert 2007, "Convergence of adaptive mixtures of importance sampling schemes".
    """

    num_draws: int = 1
    pathwise = True

    def __post_init__(self):
        check_count("ComponentFrequency(num_draws=...)", self.num_draws)

    @staticmethod
    def serves(fn: Distribution) -> bool:
        law = unwrapped(fn)
        return isinstance(law, dist.MixtureSameFamily) and law.component_distribution.has_rsample

    def coefficients(self, site: str, law: Distribution, value: jax.Array) -> list[jax.Array]:
        weights = _mixture(law).mixing_distribution.probs
        weights = jnp.broadcast_to(weights, (*law.batch_shape, weights.shape[-1]))
        parts = list(jnp.moveaxis(weights, -1, 0))
        return [jnp.zeros(law.batch_shape, weights.dtype), *parts * self.num_draws]

    def alternatives(self, law: Distribution, rng_key: jax.Array, value: jax.Array) -> list[jax.Array]:
        """Draws of every component, one after the other."""
        mixture = _mixture(law)
        shape = (*law.batch_shape, mixture.mixture_size)
        draws = mixture.component_distribution.expand(shape).sample(rng_key, (self.num_draws,))
        draws = jnp.moveaxis(draws, mixture.mixture_dim, 1)
        return list(draws.reshape(-1, *value.shape).astype(value.dtype))

    def worth(
        self,
        site: str,
        coefficients: Sequence[jax.Array],
        values: Sequence[jax.Array],
        num_particles: int | None,
        scale: jax.Array | None = None,
    ) -> list[jax.Array]:
        if num_particles is None:
            raise StrategyError(
                f"{self!r} at site '{site}' asks what one draw is worth, and the objective has no number for "
                "that: it is no average over particles, or the cost comes in parts of sites that are "
                "enumerated jointly. Use ELBO(), and 'enumerate_locally' or 'score' for those sites; or "
                "'score' here."
            )
        w = jnp.stack(coefficients[1:]).reshape(self.num_draws, -1, *coefficients[0].shape)
        w, costs = stop_gradient(w[0]), num_particles * jnp.stack(values[1:]).reshape(w.shape)
        counted = jnp.ones(()) if scale is None else scale
        costs = costs / jnp.where(counted == 0, 1.0, counted)
        won = jax.nn.softmax(jax.nn.logsumexp(costs, axis=0) + jnp.log(w), axis=0)
        slope = 2 * counted * (won - w) / (self.num_draws * num_particles)
        return [values[0], *jnp.concatenate([slope] * self.num_draws)]


def _mixture(law: Distribution) -> dist.MixtureSameFamily:
    found = unwrapped(law)
    assert isinstance(found, dist.MixtureSameFamily)
    return found
