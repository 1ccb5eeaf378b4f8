"""Gradients through a relaxed sampler of subsets: less noise, at the price of a bias."""

from abc import abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from numpyro.distributions import Distribution

from ppl_ext.gradients.reparameterize import Reparameterize
from ppl_ext.gradients.strategy import unwrapped
from ppl_ext.gradients.subsets.subset import Subset, relaxed
from ppl_ext.runtime.arguments import check_positive


@dataclass(frozen=True)
class _Relaxed(Reparameterize):
    temperature: float = 0.5

    def __post_init__(self):
        check_positive(f"{type(self).__name__}(temperature=...)", self.temperature)

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return isinstance(unwrapped(fn), Subset)

    def draw(self, fn: Distribution, rng_key: jax.Array, sample_shape: tuple[int, ...]):
        law = unwrapped(fn)
        assert isinstance(law, Subset)
        shape = fn.shape(sample_shape)
        logits = jnp.broadcast_to(law.logits, (*shape[:-2], shape[-1]))
        return self._made(*relaxed(logits, law.k, rng_key, self.temperature)), []

    @abstractmethod
    def _made(self, hard: jax.Array, soft: jax.Array) -> jax.Array: ...


class StraightThrough(_Relaxed):
    r"""A :class:`~ppl_ext.gradients.subsets.Subset` drawn hard, differentiated as if soft. Biased.

    .. math:: z + s_\tau(\ell + g) - \overline{s_\tau(\ell + g)}

    with z the one-hot rows of the k largest of the logits with Gumbel noise g, and s successive softmaxes of
    them. The rest of the program must be differentiable in the mask, and its slope stands for its
    differences: the mean gradient is not that of the objective, and can point away from it.

    :param temperature: τ: lower is less bias and more noise.
    :raises ArgumentError: for a temperature that is not positive.
    :raises StrategyError: for a site that is no Subset.

    >>> StraightThrough(0.5)
    StraightThrough(temperature=0.5)

    Source: Huijben, Veeling, van Sloun 2020.
    """

    def _made(self, hard, soft):
        return hard + soft - stop_gradient(soft)


class SoftTopK(_Relaxed):
    r"""A :class:`~ppl_ext.gradients.subsets.Subset` replaced by its soft rows, which sum to one each. Biased.

    The program sees masks between 0 and 1, so value and gradient are those of another objective, which tends
    to the true one as the temperature falls.

    :param temperature: τ.
    :raises ArgumentError: for a temperature that is not positive.
    :raises StrategyError: for a site that is no Subset.

    >>> SoftTopK(0.1)
    SoftTopK(temperature=0.1)

    Source: Plötz and Roth 2018; Xie and Ermon 2019.
    """

    def _made(self, hard, soft):
        return soft
