"""Tables over finite sites and plates, and how they are multiplied and summed in log space."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class PreviousStep(NamedTuple):
    """A site of a chain, one step earlier than the place in the chain where it stands."""

    site: str


class Colour(NamedTuple):
    """A colour: sites that take their values at the same time, while tables are made."""

    number: int


Axis = str | PreviousStep | Colour | int


class Factor(NamedTuple):
    """A table: its axes stand for sites (by name), for sites one step earlier, and for plates (by number), in
    the order of ``axes``.
    """

    table: jax.Array
    axes: tuple[Axis, ...]

    @property
    def sites(self) -> frozenset[str]:
        return frozenset(
            a.site if isinstance(a, PreviousStep) else a
            for a in self.axes
            if isinstance(a, str | PreviousStep)
        )

    @property
    def plates(self) -> frozenset[int]:
        return frozenset(a for a in self.axes if isinstance(a, int))

    def sizes(self) -> dict[Axis, int]:
        return dict(zip(self.axes, self.table.shape, strict=True))


def multiplied_along(factor: Factor, plates: Iterable[int]) -> Factor:
    """The product over the elements of some plates."""
    over = tuple(i for i, a in enumerate(factor.axes) if a in set(plates))
    return Factor(
        jnp.sum(factor.table, axis=over), tuple(a for i, a in enumerate(factor.axes) if i not in over)
    )


def laid_out(factor: Factor, axes: Sequence[Axis]) -> jax.Array:
    """The table with these axes in this order, of size one where the factor has none."""
    order = [factor.axes.index(a) for a in axes if a in factor.axes]
    sizes = factor.sizes()
    return jnp.transpose(factor.table, order).reshape([sizes.get(a, 1) for a in axes])


def product(factors: Sequence[Factor]) -> Factor:
    axes = tuple(dict.fromkeys(a for f in factors for a in f.axes))
    tables = [laid_out(f, axes) for f in factors]
    return Factor(sum(tables[1:], start=tables[0]) if tables else jnp.zeros(()), axes)


def summed(factor: Factor, site: str) -> Factor:
    return Factor(
        log_sum_exp(factor.table, factor.axes.index(site)), tuple(a for a in factor.axes if a != site)
    )


def summed_along(factor: Factor, time: int, sites: dict[str, int]) -> Factor:
    r"""Sum the sites of a chain out, one step after the other.

    .. math:: \alpha_t(c) = \log \sum_{c'} \exp\big(\alpha_{t-1}(c') + \ell_t(c', c)\big)

    :param time: the plate whose elements are the steps. The first step reads no earlier one, whatever its
        table says.
    :param sites: how many outcomes each site of the chain has.
    """
    links: list[Axis] = [*map(PreviousStep, sites), *sites]
    others = tuple(a for a in factor.axes if a != time and a not in links)
    table = laid_out(factor, (time, *others, *links))
    states = math.prod(sites.values())
    whole = jnp.broadcast_to(table, table.shape[: 1 + len(others)] + tuple(sites.values()) * 2)
    whole = whole.reshape(*table.shape[: 1 + len(others)], states, states)

    def step(alpha, link):
        return log_sum_exp(alpha[..., :, None] + link, -2), None

    alpha, _ = lax.scan(step, whole[0, ..., 0, :], whole[1:])
    return Factor(log_sum_exp(alpha, -1), others)


def log_sum_exp(x: jax.Array, axis: int) -> jax.Array:
    """Where every outcome is impossible, −inf with a gradient of zero and not NaN."""
    top = lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    possible = jnp.isfinite(top)
    shifted = jnp.where(possible, x - jnp.where(possible, top, 0.0), 0.0)
    total = jnp.squeeze(jnp.where(possible, top, 0.0), axis) + jnp.log(jnp.sum(jnp.exp(shifted), axis=axis))
    return jnp.where(jnp.squeeze(possible, axis), total, -jnp.inf)
