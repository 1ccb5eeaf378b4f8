"""A set transformer, and any other network, as one function of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax import random
from numpyro.contrib.module import eqx_module, flax_module, nnx_module

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, described

NAME = "amortised"
PARAMS = f"{NAME}$params"


@dataclass(frozen=True)
class SetTransformer:
    r"""Attention among the rows of a data set, and one token that reads them and puts out the answer.

    .. math:: h \leftarrow h + \operatorname{attend}(\operatorname{norm} h), \qquad
        h \leftarrow h + \operatorname{mlp}(\operatorname{norm} h)

    for every layer, where h is one vector for each row and one for all other numbers of the data set. Rows
    that are not there are not attended to; the order of rows does not matter. All other numbers stand beside
    each row too, so that rows can be read in their light: the place of a prediction, say.

    A network of :func:`amortise` is this one or a module of flax or equinox; or any object with

    - ``init(rng_key, size, rows, seen, rest)``, a tree of params, and
    - ``apply(params, rows, seen, rest)``, the ``size`` numbers.

    :param width: of the vectors, a multiple of ``num_heads``.
    :param num_layers: at least 1.
    :param num_heads: of the attention.
    :raises ArgumentError: for a width that the heads do not divide.

    >>> network, rows = SetTransformer(8, num_layers=1, num_heads=2), jnp.array([[1.0], [2.0], [0.0]])
    >>> seen, rest = jnp.array([True, True, False]), jnp.zeros(2)
    >>> params = network.init(jax.random.key(0), 5, rows, seen, rest)
    >>> out = network.apply(params, rows, seen, rest)
    >>> turned = network.apply(params, rows[jnp.array([1, 0, 2])], seen, rest)
    >>> out.shape, bool(jnp.allclose(out, turned, atol=1e-5))
    ((5,), True)

    Source: the layers are those of Vaswani et al. 2017, "Attention is all you need", without places, as in
    Lee et al. 2019, "Set transformer"; each layer normalises before it attends.
    """

    width: int = 32
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self):
        for name in ("width", "num_layers", "num_heads"):
            check_count(f"SetTransformer: {name}", getattr(self, name))
        if self.width % self.num_heads:
            raise ArgumentError(
                f"SetTransformer: width={self.width} must be a multiple of num_heads={self.num_heads}."
            )

    def init(
        self, rng_key: jax.Array, size: int, rows: jax.Array, seen: jax.Array, rest: jax.Array
    ) -> dict[str, Any]:
        """Random params for inputs of these shapes and ``size`` outputs."""
        width, others = self.width, rest.shape[0]
        keys = iter(random.split(rng_key, 6 + 5 * self.num_layers))

        def linear(before: int, after: int, gain: float = 1.0):
            scale = gain / max(before, 1) ** 0.5
            return {"w": scale * random.normal(next(keys), (before, after)), "b": jnp.zeros(after)}

        def layer():
            return {
                "ask": linear(width, width),
                "read": linear(width, 2 * width),
                "mix": linear(width, width, 0.5),
                "up": linear(width, 2 * width),
                "down": linear(2 * width, width, 0.5),
            }

        return {
            "row": [linear(rows.shape[1] + others, width), linear(width, width)],
            "rest": [linear(others, width), linear(width, width)],
            "layers": [layer() for _ in range(self.num_layers)],
            "out": [linear(width, width), linear(width, size, 0.1)],
        }

    def apply(self, params: dict[str, Any], rows: jax.Array, seen: jax.Array, rest: jax.Array) -> jax.Array:
        """The numbers for one data set."""
        beside = jnp.broadcast_to(rest, (rows.shape[0], rest.shape[0]))
        tokens = [_perceptron(params["rest"], rest)[None]]
        tokens.append(_perceptron(params["row"], jnp.concatenate([rows, beside], 1)))
        h, there = jnp.concatenate(tokens), jnp.concatenate([jnp.ones(1, bool), seen])
        for number, layer in enumerate(params["layers"], start=1):
            read = _linear(layer["read"], _normed(h)).reshape(len(h), 2, self.num_heads, -1)
            h = h if number < self.num_layers else h[:1]  # of the last layer one vector is wanted
            query = _linear(layer["ask"], _normed(h)).reshape(len(h), self.num_heads, -1)
            key, value = read[:, 0], read[:, 1]
            mixed = jax.nn.dot_product_attention(query, key, value, mask=there[None, None])
            h = h + _linear(layer["mix"], mixed.reshape(len(h), -1))
            h = h + _linear(layer["down"], jax.nn.gelu(_linear(layer["up"], _normed(h))))
        return _perceptron(params["out"], _normed(h[0]))


def _linear(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def _perceptron(layers: list, x: jax.Array) -> jax.Array:
    return _linear(layers[1], jax.nn.gelu(_linear(layers[0], x)))


def _normed(x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def _is_of(network: Any, module: str) -> bool:
    """Whether a class of the network is from there; nothing is imported for it."""
    return any(f"{kind.__module__}.".startswith(f"{module}.") for kind in type(network).__mro__)


def check_network(network: Any) -> None:
    known = isinstance(network, eqx.Module) or _is_of(network, "flax.linen") or _is_of(network, "flax.nnx")
    own = all(callable(getattr(network, name, None)) for name in ("init", "apply"))
    if isinstance(network, type) or not (known or own):
        raise ArgumentTypeError(
            "amortise: network must be a module of flax or equinox, or an object with init and apply such as "
            f"SetTransformer(), got {described(network)}."
        )


def bound_network(network: Any, size: int, inputs: tuple[jax.Array, ...]) -> Callable[..., jax.Array]:
    """The network with its params, which are a ``param`` site of the guide."""
    if _is_of(network, "flax.linen"):
        return flax_module(NAME, network, *inputs)
    if _is_of(network, "flax.nnx"):
        return nnx_module(NAME, network)
    if isinstance(network, eqx.Module):
        return eqx_module(NAME, network)
    return partial(network.apply, numpyro.param(PARAMS, lambda key: network.init(key, size, *inputs)))
