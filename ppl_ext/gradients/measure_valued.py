"""Measure-valued derivatives (Pflug 1989; Heidergott, Vázquez-Abad, Pflug, Farenhorst-Yuan 2010; Mohamed et
al. 2020, table 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from jax.lax import stop_gradient as _stop
from numpyro.distributions import Distribution

from ppl_ext.gradients.enumerate_locally import EnumerateLocally
from ppl_ext.gradients.local import LocalStrategy, held
from ppl_ext.gradients.strategy import unwrapped


@dataclass(frozen=True)
class MeasureValued(LocalStrategy):
    r"""The derivative of a law by each parameter is a difference of two laws; the rest of the program is run
    on a draw of each.

    .. math:: \nabla_\theta \mathbb{E}_{x \sim q_\theta} K(x) = c_\theta \big(\mathbb{E} K(x^+) - \mathbb{E}
        K(x^-)\big)

    =========== =================== ====================== =====================================
    law         parameter           constant               x⁺ against x⁻ (X the draw)
    =========== =================== ====================== =====================================
    Bernoulli   p                   1                      1 against 0
    Categorical each p_k            1                      k, by local enumeration
    Poisson     rate                1                      X + 1 against X
    Binomial    p                   n                      Y + 1 against Y ~ Binomial(n − 1, p)
    Geometric   p                   1/p                    X against X + X′ + 1
    Exponential rate λ              1/λ                    X against X + X′
    Gamma       rate b              a/b                    X against X + Exponential(b)
    Normal      mean μ              1/(σ √(2π))            μ + σR against μ − σR, R Rayleigh
    Normal      scale σ             1/σ                    μ + σM against X = μ + σMU
    =========== =================== ====================== =====================================

    R, M (Maxwell on both sides) and U (uniform) as in the sources; pairs share their noise, and the draw X
    serves as one of them where it can. Needs no differentiable cost, and its noise does not grow with the
    number of sites that the cost does not couple. First derivatives only. The concentration of a gamma has no
    such pair: differentiating by it is refused.

    :raises StrategyError: for a law or a parameter that is not in the table, naming the site and what would
        serve; for second derivatives.

    >>> MeasureValued.serves(dist.Poisson(2.0)), MeasureValued.serves(dist.Beta(1.0, 1.0))
    (True, False)

    Source: Pflug 1989; Heidergott, Vázquez-Abad, Pflug, Farenhorst-Yuan 2010; Mohamed, Rosca, Figurnov, Mnih
    2020, table 1.
    """

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return _pair(fn) is not None

    @staticmethod
    def enumerates(fn: Distribution) -> bool:
        """Whether this is local enumeration: the law is finite and its parameters are the probabilities of
        its outcomes.
        """
        return _pair(fn) is _FINITE

    def coefficients(self, site: str, law: Distribution, value: jax.Array) -> list[jax.Array]:
        pair = _pair(law)
        if pair is _FINITE:
            return EnumerateLocally().coefficients(site, law, value)
        return [jnp.broadcast_to(c, value.shape) for c in pair.coefficients(site, unwrapped(law))]

    def alternatives(self, law: Distribution, rng_key: jax.Array, value: jax.Array) -> list[jax.Array]:
        pair = _pair(law)
        if pair is _FINITE:
            return EnumerateLocally().alternatives(law, rng_key, value)
        return [x.astype(value.dtype) for x in pair.alternatives(unwrapped(law), rng_key, value)]


class Pair(NamedTuple):
    """``coefficients(site, law)``: of the draw and of each alternative; ``alternatives(law, key, draw)``:
    their values.
    """

    coefficients: Callable
    alternatives: Callable


def _poisson(site, law):
    return -law.rate, law.rate


def _binomial(site, law):
    scaled = law.probs * _stop(law.total_count)
    return 0.0, scaled, -scaled


def _one_trial_less(law, key, x):
    # Leave out one of the n trials at random: it was a success with probability x/n.
    n = jnp.asarray(law.total_count)
    less = x - random.bernoulli(key, x / jnp.maximum(n, 1), x.shape)
    return [less + 1, less]


def _geometric(site, law):
    scaled = law.probs / _stop(law.probs)
    return scaled, -scaled


def _exponential(site, law):
    scaled = law.rate / _stop(law.rate)
    return scaled, -scaled


def _gamma(site, law):
    remedy = "Use 'reparam' or 'score' there, or hold the concentration fixed."
    scaled = law.rate * _stop(law.concentration / law.rate) + 0 * held(
        site, "concentration", remedy, law.concentration
    )
    return scaled, -scaled


def _normal(site, law):
    mean, scale = law.loc / _stop(law.scale * math.sqrt(2 * math.pi)), law.scale / _stop(law.scale)
    return -scale, mean, -mean, scale


def _apart_and_wider(law, key, x):
    apart, wider = random.split(key)
    r = jnp.sqrt(2 * random.exponential(apart, x.shape))
    # Given X = μ + σε with ε = MU, the size of M has the Rayleigh density beyond |ε|.
    eps = (x - law.loc) / law.scale
    m = jnp.sign(eps) * jnp.sqrt(eps**2 + 2 * random.exponential(wider, x.shape))
    return [law.loc + law.scale * r, law.loc - law.scale * r, law.loc + law.scale * m]


_FINITE = Pair(lambda *_: (), lambda *_: [])
_PAIRS: dict[type[Distribution], Pair] = {
    dist.BernoulliProbs: _FINITE,
    dist.BernoulliLogits: _FINITE,
    dist.CategoricalProbs: _FINITE,
    dist.CategoricalLogits: _FINITE,
    dist.Poisson: Pair(_poisson, lambda law, key, x: [x + 1]),
    dist.BinomialProbs: Pair(_binomial, _one_trial_less),
    dist.BinomialLogits: Pair(_binomial, _one_trial_less),
    dist.GeometricProbs: Pair(_geometric, lambda law, key, x: [x + 1 + law.expand(x.shape).sample(key)]),
    dist.GeometricLogits: Pair(_geometric, lambda law, key, x: [x + 1 + law.expand(x.shape).sample(key)]),
    dist.Exponential: Pair(
        _exponential, lambda law, key, x: [x + random.exponential(key, x.shape) / law.rate]
    ),
    dist.Gamma: Pair(_gamma, lambda law, key, x: [x + random.exponential(key, x.shape) / law.rate]),
    dist.Normal: Pair(_normal, _apart_and_wider),
}


def _pair(fn: Distribution) -> Any:
    return _PAIRS.get(type(unwrapped(fn)))
