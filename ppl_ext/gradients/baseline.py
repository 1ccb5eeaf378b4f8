"""What may be taken off the cost of a scored draw: values that :class:`~ppl_ext.gradients.ScoreFunction`
takes as ``baseline``.

A baseline b changes no mean, since the score has mean zero and b does not depend on the draw that it is
weighed by:

.. math:: \\mathbb{E}[(f(z) - b)\\, \\nabla_\\theta \\log q_\\theta(z)] = \\mathbb{E}[f(z)\\, \\nabla_\\theta
    \\log q_\\theta(z)]

and it takes away the part of the noise that comes from the size of f. Those that keep something between steps
(:class:`Kept`) have it declared by :class:`ppl_ext.handlers.gradient`, where ``SVI`` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.lax import stop_gradient
from numpyro.handlers import scope
from numpyro.primitives import mutable

from ppl_ext.errors import ArgumentError, StrategyError
from ppl_ext.runtime.arguments import check_function, check_number

SUFFIX = "_baseline"  # after a site's name: what is kept for it


class Baseline:
    """Immutable, hashable and comparable, as a strategy is."""


class Kept(Baseline, ABC):
    """A baseline that keeps numbers between steps, in sites of the program that carries the strategy.

    >>> [isinstance(baseline, Kept) for baseline in (MovingAverage(), LearnedBaseline(), LeaveOneOut())]
    [True, True, False]
    """

    @abstractmethod
    def declare(
        self, site: str, shape: tuple[int, ...], kept: tuple[int, ...], draws: dict[str, jax.Array]
    ) -> None:
        """Within the program, after it ran: name what is kept for a site.

        :param shape: of the site's elements.
        :param kept: the same with size one where elements share what is kept: along subsampled plates.
        :param draws: the latent sites before it.
        """


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    r"""Baseline for particle k made from the other particles of :func:`ppl_ext.replicate`.

    For objectives linear in the particles' costs it is the mean cost of the others, element by element. For
    any other objective F it is F with particle k's output replaced by the mean of the others' outputs; for
    importance-weighted bounds that is VIMCO (Mnih and Rezende 2016, eq. 8, geometric mean). With a single
    particle it is the costs of the other elements of the same site, where they do not meet (the other slices
    of a plate): their sum over n and not n − 1, since they may be unlike. A lone element has no baseline.

    >>> from ppl_ext.gradients import ScoreFunction
    >>> ScoreFunction()  # at the site: infer={"gradient": ScoreFunction()}
    ScoreFunction(baseline=LeaveOneOut())
    """


@dataclass(frozen=True)
class MovingAverage(Kept):
    r"""The mean cost of earlier steps, weighed down geometrically (Mnih and Gregor 2014, section 2.3; Kingma
    and Ba 2015, eq. 4).

    .. math:: m_t = \beta\, m_{t-1} + (1 - \beta)\, c_t, \qquad w_t = \beta\, w_{t-1} + (1 - \beta), \qquad
        b_{t+1} = m_t / w_t

    where c is what the site's element is charged with, averaged over particles. One average for each element
    of a plate; in a subsampled plate, where the same place holds another datum each time, one for all its
    elements. It is a ``numpyro.mutable`` site, ``"<site>_baseline"``, that goes from step to step with the
    state of ``SVI`` or :func:`ppl_ext.infer.fit`. An :func:`~ppl_ext.expectation` has no steps: there the
    average stays where it starts, at zero, and nothing is taken off.

    :param decay: β, at least 0 and below 1.
    :raises StrategyError: when the site is scored and no :class:`ppl_ext.handlers.gradient` around its
        program declared the state.

    >>> MovingAverage(decay=0.95)
    MovingAverage(decay=0.95)
    """

    decay: float = 0.9

    def __post_init__(self):
        check_number("MovingAverage(decay=...)", self.decay, at_least=0.0)
        if not self.decay < 1:
            raise ArgumentError(
                f"MovingAverage(decay=...) must be below 1, or no cost would ever count; got {self.decay}."
            )

    def declare(self, site, shape, kept, draws):
        mutable(site + SUFFIX, {"average": jnp.zeros(kept), "weight": jnp.zeros(())})

    def value(self, state: dict[str, jax.Array]) -> jax.Array:
        """b, in the shape of the state's elements."""
        return state["average"] / jnp.where(state["weight"] > 0, state["weight"], 1.0)

    def moved(self, state: dict[str, jax.Array], cost: jax.Array) -> dict[str, jax.Array]:
        """The state after one more cost; a cost that is not finite leaves its element as it is."""
        average, weight = state["average"], self.decay * state["weight"] + (1 - self.decay)
        moved = self.decay * average + (1 - self.decay) * cost
        held = average * weight / jnp.where(state["weight"] > 0, state["weight"], 1.0)
        new = {"average": jnp.where(jnp.isfinite(cost), moved, held), "weight": weight}
        return {name: x.astype(state[name].dtype) for name, x in new.items()}


@dataclass(frozen=True)
class LearnedBaseline(Kept):
    r"""A regression of the cost on what was drawn before, trained as the run goes (Mnih and Gregor 2014, eq.
    9).

    .. math:: b = f_\psi(x_{<s}), \qquad \psi \text{ ascends } -\tfrac12 \mathbb{E} \textstyle\sum_e (c_e -
        b_e)^2

    The square's gradient reaches ψ alone and is added to the objective's own, in the same step by the same
    optimiser; the objective's value does not change. ``fn``'s ``param`` sites (and flax or equinox modules)
    get the prefix ``"<site>_baseline/"``; its predictions are a deterministic site ``"<site>_baseline"``.

    :param fn: a function from a dict of the latent sites drawn before this one (for a site in a ``scan``:
        before the scan) to an array that broadcasts to the site's elements (its batch and event axes), with a
        leading time axis in a ``scan``. It may use ``numpyro.param``. Take what depends on parameters from
        the dict only, whose values are held fixed: what comes by closure would be trained by the square too.
        Default: one constant for each element.
    :raises StrategyError: when the site is scored and no :class:`ppl_ext.handlers.gradient` around its
        program declared the parameters.

    >>> line = lambda draws: numpyro.param("a", 0.0) + numpyro.param("b", 0.0) * draws["x"]
    >>> LearnedBaseline(line)  # doctest: +ELLIPSIS
    LearnedBaseline(fn=<function <lambda> at ...>)
    """

    fn: Callable[[dict[str, Any]], Any] | None = None

    def __post_init__(self):
        if self.fn is not None:
            check_function("LearnedBaseline: fn", self.fn)

    def declare(self, site, shape, kept, draws):
        def constant(draws):
            return numpyro.param("constant", jnp.zeros(kept))

        fn = constant if self.fn is None else self.fn
        out = scope(fn, prefix=site + SUFFIX)({name: stop_gradient(x) for name, x in draws.items()})
        numpyro.deterministic(site + SUFFIX, fitted(site, out, shape))


def fitted(site: str, value: Any, shape: tuple[int, ...], batch_ndim: int | None = None) -> jax.Array:
    """A baseline as an array of the site's elements, the axes of its event behind those of its batch.

    :raises StrategyError: if it does not broadcast.
    """
    value = jnp.asarray(value, jnp.result_type(float))
    if batch_ndim is not None and batch_ndim < len(shape) and value.ndim:
        value = value.reshape(value.shape + (1,) * (len(shape) - batch_ndim))
    try:
        return jnp.broadcast_to(value, shape)
    except ValueError:
        raise StrategyError(
            f"The baseline of site '{site}' has shape {value.shape}, which does not broadcast to the site's "
            f"{tuple(shape)}."
        ) from None
