"""Strategies that compare a draw with alternatives to it: what the law's change is worth, one site at a
time.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

from ppl_ext.errors import StrategyError
from ppl_ext.gradients.strategy import Strategy


class LocalStrategy(Strategy):
    r"""The derivative of an expectation by the law of one site, as a weighted sum of values of the rest of
    the program.

    .. math:: \int \partial q_\theta(x)\, K(x)\, dx = \sum_b \partial c_b(\theta)\; \mathbb{E}[K(x_b)], \qquad
        K(x) = \mathbb{E}[L \mid x_{<s}, x_s = x]

    Branch 0 is the site's own draw, the other :math:`x_b` are alternatives to it. The program runs again for
    each of them under the same keys, all in one ``vmap``; only derivatives of the :math:`c_b` are used. A
    law's elements come apart (plates and ``.to_event`` alike): all at once where their costs do not meet, one
    at a time where they do.

    >>> import numpyro.distributions as dist
    >>> from ppl_ext.gradients import EnumerateLocally
    >>> law, x = dist.Bernoulli(0.25), jnp.array(1)
    >>> # of the draw, and of the other outcome:
    >>> [float(c) for c in EnumerateLocally().coefficients("x", law, x)]
    [0.25, 0.75]
    >>> [int(other) for other in EnumerateLocally().alternatives(law, None, x)]
    [0]
    """

    @abstractmethod
    def coefficients(self, site: str, law: Distribution, value: jax.Array) -> list[jax.Array]:
        """:math:`c_b` for each branch, with the shape of the elements; differentiable by the law's
        parameters.
        """

    @abstractmethod
    def alternatives(self, law: Distribution, rng_key: jax.Array, value: jax.Array) -> list[jax.Array]:
        """:math:`x_b` for branches 1 and on, each with the shape of ``value``."""


def charged(site: str, coefficients: Sequence[jax.Array], values: Sequence[jax.Array]) -> jax.Array:
    """Zero, with the derivative ``sum(d coefficients * values)`` over branches and elements.

    Not to be differentiated twice: the values' own change is not in it.

    :param coefficients: :math:`c_b`, one array for each branch, each with the shape of the site's elements.
    :param values: :math:`K(x_b)`,
        likewise.
    :return: a scalar.
    :raises StrategyError: when differentiated twice, naming the site.

    >>> def bernoulli(p):  # the derivative of E[7 x] by p, from both branches
    ...     return charged("x", [1 - p, p], [jnp.array(0.0), jnp.array(7.0)])
    >>> float(bernoulli(0.3)), float(jax.grad(bernoulli)(0.3))
    (0.0, 7.0)
    """
    return _charged(site, list(coefficients), list(values))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _charged(site, coefficients, values):
    return jnp.zeros((), coefficients[0].dtype)


@_charged.defjvp
def _charged_jvp(site, primals, tangents):
    coefficients, values = primals
    once = _once(site, coefficients, values)
    # An impossible alternative of probability zero has no say, as under joint enumeration; of a likely one
    # the bound says −inf itself.
    once = [jnp.where(jnp.isfinite(k) | (c != 0), k, 0.0) for c, k in zip(coefficients, once, strict=True)]
    total = sum(dc * k for dc, k in zip(tangents[0], once, strict=True))
    return _charged(site, coefficients, values), jnp.sum(total).astype(coefficients[0].dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(site, coefficients, values):
    return values


@_once.defjvp
def _once_jvp(site, primals, tangents):
    raise StrategyError(
        f"The gradient of site '{site}' is measure-valued or locally enumerated, which gives first "
        "derivatives only. Use 'enumerate' or 'score' at this site for derivatives of higher order."
    )


def held(site: str, parameter: str, remedy: str, x) -> jax.Array:
    """``x`` itself; an error if anybody differentiates by it, since the strategy has no derivative for this
    parameter.
    """
    return _held(
        f"MeasureValued has no derivative by the {parameter} of site '{site}'. {remedy}", jnp.asarray(x)
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _held(message, x):
    return x


@_held.defjvp
def _held_jvp(message, primals, tangents):
    raise StrategyError(message)
