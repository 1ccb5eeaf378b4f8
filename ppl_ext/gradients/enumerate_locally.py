"""Sum one finite site out exactly, its successors drawn once for each outcome (Titsias and Lázaro-Gredilla
2015, eq. 7).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

from ppl_ext.densities.distributions import prob
from ppl_ext.gradients.local import LocalStrategy


@dataclass(frozen=True)
class EnumerateLocally(LocalStrategy):
    r"""The gradient sums over the site's support, one site (and one element) at a time, while the others keep
    their draws.

    .. math:: \nabla_\theta \mathbb{E}_{x \sim q_\theta} K(x) \ni \sum_k \nabla q_\theta(k)\; K(k)

    The value of the objective is that of the draw; the gradient has no noise from this site, only from the
    others. S sites of K outcomes take S (K − 1) reruns where joint enumeration takes K^S. First derivatives
    only.

    :raises StrategyError: for a site without a finite support, naming it; for second derivatives.

    >>> import numpyro.distributions as dist
    >>> EnumerateLocally.serves(dist.Categorical(logits=jnp.zeros(3)))
    True

    Source: Titsias and Lázaro-Gredilla 2015, eq. 7.
    """

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return fn.has_enumerate_support

    def coefficients(self, site: str, law: Distribution, value: jax.Array) -> list[jax.Array]:
        others = [prob(law, x) for x in self.alternatives(law, None, value)]
        return [1 - others[0] if len(others) == 1 else prob(law, value), *others]

    def alternatives(self, law: Distribution, rng_key, value: jax.Array) -> list[jax.Array]:
        """The other outcomes, in the order of the support from the draw on."""
        support = finite_support(law)
        if len(support) == 2 and not law.event_dim:  # the other of two, without looking the draw up
            first, second = support.astype(value.dtype)
            return [jnp.where(value == first, second, first)]
        event = tuple(range(value.ndim - law.event_dim, value.ndim))
        same = jnp.all(
            jnp.expand_dims(value, value.ndim - law.event_dim) == support, axis=tuple(a + 1 for a in event)
        )
        index, size = jnp.argmax(same, axis=-1), len(support)
        return [jnp.take(support, (index + j) % size, axis=0).astype(value.dtype) for j in range(1, size)]


def finite_support(law: Distribution) -> jax.Array:
    """The outcomes of one element, of shape ``(outcomes, *event)``. Known while tracing, so that its length
    is.

    >>> import numpyro.distributions as dist
    >>> finite_support(dist.Categorical(logits=jnp.zeros((5, 3)))).tolist()
    [0, 1, 2]
    """
    with jax.ensure_compile_time_eval():
        support = law.enumerate_support(expand=False)
        return support.reshape(support.shape[:1] + law.event_shape)
