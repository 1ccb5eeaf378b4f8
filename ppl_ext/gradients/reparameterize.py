"""Differentiate through the sample itself (Kingma and Welling 2014; implicitly: Figurnov, Mohamed, Mnih
2018).
"""

from dataclasses import dataclass
from typing import Any

import jax
from numpyro.distributions import Distribution

from ppl_ext.gradients.strategy import Strategy


@dataclass(frozen=True)
class Reparameterize(Strategy):
    r"""Write the draw as a differentiable function of noise, and let the chain rule do the rest.

    .. math:: \nabla_\theta \mathbb{E}_{z \sim q_\theta} f(z) = \mathbb{E}_\epsilon \nabla_\theta
        f(g_\theta(\epsilon))

    Serves every distribution whose sampler is differentiable in all its parameters (``has_rsample``), with
    implicit gradients for gamma, beta, Dirichlet and their kin. Low variance; needs ``f`` to be
    differentiable almost everywhere and continuous.

    :raises StrategyError: for a site whose sampler is not differentiable, naming it and what would serve.

    >>> import numpyro.distributions as dist
    >>> Reparameterize.serves(dist.Gamma(2.0, 1.0)), Reparameterize.serves(dist.Bernoulli(0.5))
    (True, False)

    Source: Kingma and Welling 2014; implicitly: Figurnov, Mohamed, Mnih 2018.
    """

    @staticmethod
    def serves(fn: Distribution) -> bool:
        # A distribution without parameters (arg_constraints empty) reports has_rsample even where it is
        # discrete.
        return fn.has_rsample and not fn.support.is_discrete

    def draw(self, fn: Distribution, rng_key: jax.Array, sample_shape: tuple[int, ...]) -> tuple[Any, Any]:
        """A draw that carries the gradient, and what its sampler hands on."""
        return fn(rng_key=rng_key, sample_shape=sample_shape, sample_intermediates=True)
