"""What a network reads of a data set: the observed sites of a model, as its simulations have them."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, NonFiniteError
from ppl_ext.runtime.arguments import check_array, described

PILOT = 1000
"""Simulations that say how large the numbers are."""


class Reach(NamedTuple):
    """Where the values of an observed site lie in simulations, element by element (rows pooled).

    :param support: of its law, or None where that depends on other sites.
    :param example: a value that it can have.
    """

    center: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    support: Any
    example: np.ndarray


def scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median, and half the distance of the quantiles that are a standard deviation off in a Normal, over the
    first axis; a scale of 1 for what does not vary."""
    x = np.asarray(x, float)
    low, middle, high = np.quantile(x, [0.159, 0.5, 0.841], axis=0)
    half = 0.5 * (high - low)
    return middle, np.where(half > 0.0, half, 1.0)


@dataclass(frozen=True, eq=False)
class DataSets:
    """The data sets that a model simulates.

    :param template: the model's arguments, by name, as of a data set of full length.
    :param rows: those with one entry a row; ``count`` says how many rows there are.
    :param reach: by observed site.
    """

    signature: inspect.Signature
    template: dict[str, Any]
    rows: tuple[str, ...]
    count: str | None
    reach: dict[str, Reach]

    @property
    def length(self) -> int:
        return np.shape(self.template[self.rows[0]])[0] if self.rows else 0

    def inputs(self, given: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the network gets: rows (N, F), which of them there are (N,), and all other numbers (C,), each
        about 0 and of size 1."""

        def standard(name):
            x, reach = jnp.asarray(given[name], float), self.reach[name]
            return (x - reach.center) / reach.scale

        seen = jnp.ones(self.length, bool)
        if self.count is not None:
            seen = jnp.arange(self.length) < given[self.count]
        parts = [standard(name).reshape(self.length, -1) for name in self.rows]
        rows = jnp.concatenate(parts, 1) if parts else jnp.zeros((0, 0))
        others = [jnp.ravel(standard(name)) for name in self.reach if name not in self.rows]
        rest = jnp.concatenate(others) if others else jnp.zeros(0)
        return jnp.where(seen[:, None], rows, 0.0), seen, rest

    def bound(self, args: tuple, kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """The arguments of one data set, rows filled up to the full length, checked."""
        try:
            given = self.signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(
                f"amortise: the model takes {self.signature}, which the data set given does not fit: {error}."
            ) from None
        given = {name: x for name, x in given.items() if x is not None}
        num = self._num_rows(given)
        if self.count is not None and self.count not in given:
            given[self.count] = jnp.asarray(num, jnp.result_type(self.template[self.count]))
        for name in self.template:
            if name in self.reach:
                if name not in given:
                    raise ArgumentError(f"amortise: argument '{name}' is missing; the network reads it.")
                given[name] = self._filled(name, given[name], num)
            elif name in given and not _same(given[name], self.template[name]):
                raise ArgumentError(
                    f"amortise: argument '{name}' is not what the network was trained for, and no observed "
                    "site of the model, so that the network does not read it. To answer for several, give it "
                    f"a law in the model: numpyro.sample('{name}', ..., obs={name})."
                )
        full = self.signature.bind_partial()
        full.arguments.update({n: given.get(n, self.template[n]) for n in self.template})
        self._check_values({n: given[n] for n in self.reach}, num)
        return full

    def _num_rows(self, given: Mapping[str, Any]) -> int:
        lengths = {
            name: np.shape(given[name])[0] for name in self.rows if name in given and np.ndim(given[name])
        }
        if len(set(lengths.values())) > 1:
            raise ArgumentError(f"amortise: the rows of {lengths} are not equally many.")
        num = next(iter(lengths.values()), self.length)
        if num > self.length:
            raise ArgumentError(
                f"amortise: '{next(iter(lengths))}' has {num} rows, and the network was trained for "
                f"{self.length} at most. Train one for more, or leave rows out."
            )
        if num < self.length and self.count is None:
            raise ArgumentError(
                f"amortise: '{next(iter(lengths))}' has {num} rows, and the network was trained for "
                f"{self.length}, no fewer. Let the model draw how many there are, and name it: count=."
            )
        return num

    def _filled(self, name: str, x: Any, num: int) -> Any:
        check_array(f"amortise: '{name}'", x)
        like = self.template[name]
        shape = (num, *np.shape(like)[1:]) if name in self.rows else np.shape(like)
        if np.shape(x) != shape:
            raise ArgumentError(
                f"amortise: '{name}' must have shape {shape}, got {described(np.asarray(x))}."
            )
        if not _keeps(x, jnp.result_type(like)):
            raise ArgumentError(
                f"amortise: '{name}' must be whole numbers, as in the data set that amortise was given, got "
                f"{described(x)}. Give amortise one of floating-point numbers, if there can be others."
            )
        x = jnp.asarray(x, jnp.result_type(like))
        if name not in self.rows or num == self.length:
            return x
        # values that the law can have: they are masked, but a density of NaN would spoil gradients
        filling = jnp.asarray(self.reach[name].example, x.dtype)
        return jnp.concatenate([x, jnp.broadcast_to(filling, (self.length - num, *shape[1:]))])

    def _check_values(self, given: Mapping[str, Any], num: int) -> None:
        """Numbers at hand are finite, possible, and such as were simulated."""
        given = {name: x for name, x in given.items() if not isinstance(x, jax.core.Tracer)}
        expected = all(_same(x, self.template[name]) for name, x in given.items())  # the shapes' own values
        if self.count in given:
            if (said := int(given[self.count])) > num:
                raise ArgumentError(f"amortise: {self.count}={said}, but there are {num} rows.")
            num = said
        for name, x in given.items():
            whole, reach = np.asarray(x), self.reach[name]
            x = whole[:num] if name in self.rows else whole
            if not np.isfinite(x).all():
                raise NonFiniteError(
                    f"amortise: '{name}' has {x[~np.isfinite(x)][0]} in it. Leave such rows out."
                )
            inside = np.ones(1, bool) if reach.support is None else np.asarray(reach.support(whole))
            inside = inside[: len(x)] if name in self.rows else inside
            if not inside.all():
                raise ArgumentError(
                    f"amortise: site '{name}' is {_first(x, inside)}, where its law has no mass, so that the "
                    "network never saw such a data set. Train with a wider law."
                )
            little = 0.01 * (reach.high - reach.low)
            inside = (reach.low - little <= x) & (x <= reach.high + little)
            if not inside.all() and not expected:
                warnings.warn(
                    f"amortise: site '{name}' is {_first(x, inside)}, beyond all of {PILOT} simulations of "
                    "the model, so that the network extrapolates. Look at the Pareto k of the answer, or "
                    "train with a wider law.",
                    stacklevel=4,
                )


def _first(x: np.ndarray, inside: np.ndarray) -> str:
    inside = inside.reshape(inside.shape + (1,) * (x.ndim - inside.ndim))
    return f"{x[~np.broadcast_to(inside, x.shape)][0]:.4g}"


def _same(x: Any, y: Any) -> bool:
    if x is y:
        return True
    leaves = [jax.tree.leaves(x), jax.tree.leaves(y)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves[0]):
        return True  # not at hand
    return len(leaves[0]) == len(leaves[1]) and all(
        np.array_equal(a, b) for a, b in zip(*leaves, strict=True)
    )


def _keeps(x: Any, dtype: Any) -> bool:
    """Whether numbers are what they were once they are of this type."""
    if jnp.issubdtype(dtype, jnp.floating) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return True
    return not isinstance(x, jax.core.Tracer) and bool((np.asarray(x) % 1 == 0).all())
