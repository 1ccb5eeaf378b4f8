"""A network that learns the probability of any part from consistency alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count, check_function, described
from ppl_ext.transport.marginalization import Marginalization


class _Network(eqx.Module):
    """f of a part: exact where nothing is left to sum, and else a guess and what two hidden layers add."""

    layers: list
    log_density: Callable = eqx.field(static=True)
    guess: Callable | None = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def __call__(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        h = jnp.concatenate([(jax.nn.one_hot(x, self.num_values) * seen[:, None]).ravel(), seen])
        for w, b in self.layers[:-1]:
            h = jax.nn.gelu(h @ w + b)
        w, b = self.layers[-1]
        guess = 0.0 if self.guess is None else self.guess(x, seen)
        summed = guess + (~seen).sum() * jnp.log(self.num_values) + (h @ w + b)[0]
        return jnp.where(seen.all(), self.log_density(x), summed)


def marginalization(
    log_density: Callable,
    num_sites: int,
    num_values: int,
    *,
    guess: Callable | None = None,
    width: int = 128,
    batch_size: int = 512,
) -> "MarginalizationModel":
    r"""A NumPyro model that trains one network to give the probability of any few of n finite variables.

    .. math:: \min_f \mathbb{E} \Big(f(x_S) - \log \sum_{v} e^{f(x_S,\, x_d = v)}\Big)^2, \qquad f(x) =
        \log p(x) + \text{constant for all of x}

    over uniform values, a uniform order and a uniform number of variables in S, with d the next in the order.
    From no data: a consistent f has all marginals, and of no variable at all the log of the constant. The
    model has one factor, minus this mean, no latent site and no argument, so that an empty guide fits it;
    ``law(params)`` is the :class:`Marginalization` of what was fitted.

    Uniform parts are of use where the law is not much narrower than they are; the Pareto k of importance
    weights of its draws tells whether it was.

    :param log_density: of values (n,), unnormalised and finite everywhere.
    :param num_sites: n.
    :param num_values: K.
    :param guess: what the network is to correct, of values (n,) and which of them are there, (n,) of bool,
        such as the terms of the density within a part; K to the number of the others is counted beside it.
    :param width: of both hidden layers.
    :param batch_size: parts a step.
    :raises ArgumentTypeError: if one of the functions is none.
    :raises ArgumentError: for numbers below one, or a log density that is no single finite number.

    >>> import optax
    >>> from ppl_ext.infer import fit
    >>> from ppl_ext.objectives import ELBO
    >>> model = marginalization(lambda x: 1.0 * (x[0] == x[1]), 2, 2, width=16, batch_size=64)
    >>> found = fit(jax.random.key(0), model, lambda: None, ELBO(), optax.adam(0.02), 500, progress_bar=False)
    >>> law = model.law(found.params)
    >>> alike = law.log_prob(jnp.array([1, 1]))  # e / (2 e + 2) = 0.366
    >>> bool(abs(jnp.exp(alike) - 0.366) < 0.03)
    True

    Source: Liu, Ramadge, Adams 2024, "Generative marginalization models"; there the conditionals have a
    network of their own, here they are sums over the values.
    """
    for name, function in (("log_density", log_density), *((("guess", guess),) if guess else ())):
        check_function(f"marginalization: {name}", function)
    numbers = {"num_sites": num_sites, "num_values": num_values, "width": width, "batch_size": batch_size}
    for name, number in numbers.items():
        check_count(f"marginalization: {name}", number)
    some = jax.random.randint(jax.random.key(0), (8, num_sites), 0, num_values)
    found = jax.vmap(log_density)(some)
    if found.shape != (8,) or not bool(jnp.isfinite(found).all()):
        row = 0 if found.shape != (8,) else int(jnp.argmin(jnp.isfinite(found)))
        raise ArgumentError(
            f"marginalization: log_density must give one finite number, and for x={some[row].tolist()} gives "
            f"{found[row] if found.shape == (8,) else described(found[row])}. A network cannot be consistent "
            "with what is impossible: give it a low density, or leave such values out."
        )
    return MarginalizationModel(log_density, num_sites, num_values, guess, width, batch_size)


@dataclass(frozen=True)
class MarginalizationModel:
    """What :func:`marginalization` returns: a NumPyro model without arguments."""

    log_density: Callable
    num_sites: int
    num_values: int
    guess: Callable | None
    width: int
    batch_size: int

    def __call__(self) -> None:
        network = self._network(numpyro.param("network", self._layers))

        def off(x, seen, site):
            more = seen.at[site].set(True)
            each = jax.vmap(lambda v: network(x.at[site].set(v), more))(jnp.arange(self.num_values))
            return network(x, seen) - jax.nn.logsumexp(each)

        of_values, of_order, of_size = (numpyro.prng_key() for _ in range(3))
        shape = (self.batch_size, self.num_sites)
        x = jax.random.randint(of_values, shape, 0, self.num_values)
        rank = jnp.argsort(jax.random.uniform(of_order, shape), axis=1)
        taken = jax.random.randint(of_size, (self.batch_size, 1), 0, self.num_sites)
        squares = jax.vmap(off)(x, rank < taken, (rank == taken).argmax(1)) ** 2
        numpyro.factor("inconsistency", -squares.mean())

    def law(
        self, params: dict[str, Any], chain: int = 0, order: Sequence[int] | None = None
    ) -> Marginalization:
        """The law with these parameters, of a :class:`~ppl_ext.infer.Fit` (its chain ``chain``) or of
        NumPyro's ``SVI``.

        :raises ArgumentError: if the network is not in them, or an order is no permutation.
        """
        layers = params.get("network")
        if layers is None:
            raise ArgumentError(
                f"marginalization: params must be those of this model, with 'network', got {list(params)}."
            )
        if jnp.ndim(layers[0][1]) == 2:
            layers = jax.tree.map(lambda leaf: leaf[chain], layers)
        return Marginalization(self._network(layers), self.num_sites, self.num_values, order)

    def _network(self, layers: list) -> _Network:
        return _Network(layers, self.log_density, self.guess, self.num_values)

    def _layers(self, key: jax.Array) -> list:
        sizes = (self.num_sites * (self.num_values + 1), self.width, self.width, 1)
        keys = jax.random.split(key, 3)
        return [
            (jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b))
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
