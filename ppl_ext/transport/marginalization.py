"""A law of finite variables by one function that gives the probability of any few of them."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.nn import log_softmax
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count, check_function, described


class Marginalization(Distribution):
    r"""A law of n finite variables that tells the probability of any few of them, the others summed out.

    .. math:: f(x_S) = \log \sum_{x_{-S}} e^{\ell(x)}, \qquad \log p(x_S) = f(x_S) - f(\emptyset), \qquad
        p(x_d \mid x_{<d}) \propto e^{f(x_{<d}, x_d)}

    with one function f in place of the sums; :func:`marginalization` trains a network to be it. Draws are
    made variable by variable in an order, each given those before, and :meth:`log_prob` is the law of these
    draws: normalised whatever f is, and where f is consistent the same in every order. It costs n K calls of
    f, :meth:`log_marginal` two. It is a tree of arrays if f is one (an equinox module), and then passes
    through ``jit`` and ``vmap``.

    :param log_part: f, called with values (n,) and with which of them are there, (n,) of bool; it must not
        look at the values of the others.
    :param num_sites: n.
    :param num_values: K; each variable has the values 0 to K - 1.
    :param order: in which variables are drawn; by default as they are numbered.
    :raises ArgumentTypeError: if f is no function.
    :raises ArgumentError: for numbers below one, or an order that is no permutation.

    >>> table = jnp.array([[0.1, 0.2], [0.3, 0.4]])  # of two variables
    >>> def log_part(x, seen):
    ...     there = [(jnp.arange(2) == x[i]) | ~seen[i] for i in range(2)]
    ...     return jnp.log((table * there[0][:, None] * there[1]).sum())
    >>> law = Marginalization(log_part, 2, 2)
    >>> x, second = jnp.array([0, 1]), jnp.array([False, True])
    >>> logs = law.log_prob(x), law.log_marginal(x, second)  # of both, and of the second alone
    >>> [f"{float(jnp.exp(log)):.3f}" for log in logs]
    ['0.200', '0.600']
    >>> [f"{p:.3f}" for p in law.given(0, x, second).probs.tolist()]  # the first, given that the second is 1
    ['0.333', '0.667']

    Source: Liu, Ramadge, Adams 2024, "Generative marginalization models".
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("log_part",)
    pytree_aux_fields = ("num_values", "order")

    def __init__(
        self,
        log_part: Callable,
        num_sites: int,
        num_values: int,
        order: Sequence[int] | None = None,
        *,
        validate_args=None,
    ):
        check_function("Marginalization: log_part", log_part)
        check_count("Marginalization: num_sites", num_sites)
        check_count("Marginalization: num_values", num_values)
        order = range(num_sites) if order is None else np.asarray(order).tolist()
        if sorted(order) != list(range(num_sites)):
            raise ArgumentError(
                f"Marginalization: order must hold each of 0 to {num_sites - 1} once, got {described(order)}."
            )
        # a plain function has no arrays, and is no array
        self.log_part = log_part if isinstance(log_part, eqx.Module) else jax.tree_util.Partial(log_part)
        self.num_values, self.order = int(num_values), tuple(order)
        super().__init__((), (num_sites,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return constraints.independent(constraints.integer_interval(0, self.num_values - 1), 1)

    def log_marginal(self, x: Any, seen: Any) -> jax.Array:
        """log p of the values x (..., n) of those variables that are ``seen`` (..., n) alone.

        :raises ArgumentError: for arrays of another last axis.
        """
        x, seen = self._part("log_marginal", x, seen)
        nothing = self.log_part(jnp.zeros(self.event_shape, int), jnp.zeros(self.event_shape, bool))
        return jnp.vectorize(self.log_part, signature="(n),(n)->()")(x, seen) - nothing

    def given(self, site: int, x: Any, seen: Any) -> dist.Categorical:
        """The law of one variable given the values x (..., n) of those that are ``seen`` (..., n).

        :raises ArgumentError: for a variable there is not, or arrays of another last axis.
        """
        [num_sites] = self.event_shape
        if isinstance(site, bool) or site not in range(num_sites):
            raise ArgumentError(
                f"Marginalization.given: site must be one of 0 to {num_sites - 1}, got {described(site)}."
            )
        x, seen = self._part("given", x, seen)
        logits = jnp.vectorize(lambda x, seen: self._logits(x, seen, site), signature="(n),(n)->(k)")
        return dist.Categorical(logits=logits(x, seen))

    def sample(self, key, sample_shape=()):
        def step(part, site_and_key):
            (x, seen), (site, key) = part, site_and_key
            value = jax.random.categorical(key, self._logits(x, seen, site))
            return (x.at[site].set(value), seen.at[site].set(True)), None

        def one(key):
            start = jnp.zeros(self.event_shape, int), jnp.zeros(self.event_shape, bool)
            keys = jax.random.split(key, len(self.order))
            return jax.lax.scan(step, start, (jnp.array(self.order), keys))[0][0]

        draw = one
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(jax.random.split(key, sample_shape))

    @validate_sample
    def log_prob(self, value):
        order, inside = jnp.array(self.order), self.support(value)
        before = jnp.argsort(order) < jnp.arange(len(order))[:, None]  # (place in the order, variable)
        safe = jnp.where(inside[..., None], value, 0).astype(int)

        def one(x):
            logits = jax.vmap(lambda seen, site: self._logits(x, seen, site))(before, order)
            return log_softmax(logits)[jnp.arange(len(order)), x[order]].sum()

        return jnp.where(inside, jnp.vectorize(one, signature="(n)->()")(safe), -jnp.inf)

    def _logits(self, x: jax.Array, seen: jax.Array, site: Any) -> jax.Array:
        """f with each value (K,) of one more variable."""
        seen = seen.at[site].set(True)
        return jax.vmap(lambda v: self.log_part(x.at[site].set(v), seen))(jnp.arange(self.num_values))

    def _part(self, where: str, x: Any, seen: Any) -> tuple[jax.Array, jax.Array]:
        for name, value in (("x", x), ("seen", seen)):
            if jnp.shape(value)[-1:] != self.event_shape:
                raise ArgumentError(
                    f"Marginalization.{where}: {name} must have {self.event_shape[0]} elements in its last "
                    f"axis, one for each variable, got {described(value)}."
                )
        return jnp.asarray(x, int), jnp.asarray(seen, bool)
