"""Wasserstein-1 distance by a critic, a network that is trained along."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax, random

from ppl_ext.priors.distances.distance import Distance, Functions, check_draws
from ppl_ext.runtime.arguments import check_count, check_flag, check_number, check_positive


class CriticW1(Distance):
    r"""Wasserstein-1 distance in its dual form, with a penalty on the critic's gradient.

    .. math:: \max_c\; E\, c(G) - E\, c(F) - \lambda\, E \big(\|\nabla c(\hat x)\| - 1\big)^2, \qquad \hat x =
        \epsilon F + (1 - \epsilon) G

    The critic D → 200 → 200 → 1 (softplus) takes K steps of Adagrad before each step of the prior, from where
    the last ones left it, and stops early when its gradient's norm falls below τ. The estimate is
    :math:`E\, c(G) - E\, c(F)`; the penalty lets slopes a little over 1 through, so that the best critic
    gives W(1 + W/(2λ)). It is by far the dearest of the distances here: K gradients of a critic a step. A
    critic can settle where it should not: at one input, between laws that differ in scale alone, the slope ±1
    that the penalty wants is far from the best critic, its absolute value.

    :param num_steps: K.
    :param learning_rate: of Adagrad.
    :param penalty: λ.
    :param tolerance: τ.
    :param width: of the hidden layers.
    :param fresh: train each step of the critic on new draws, at this step's inputs. As published (``False``),
        the K steps see one set of draws, which the critic learns by heart.

    >>> CriticW1(num_steps=5).fresh
    True

    Tran et al., *All You Need is a Good Functional Prior for Bayesian Deep Learning*, JMLR 2022, eqs. 15-18
    and alg. 1.
    """

    num_steps: int = eqx.field(static=True, default=200)
    learning_rate: float = eqx.field(static=True, default=0.02)
    penalty: float = eqx.field(static=True, default=10.0)
    tolerance: float = eqx.field(static=True, default=0.1)
    width: int = eqx.field(static=True, default=200)
    fresh: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        for name in ("num_steps", "width"):
            check_count(f"CriticW1: {name}", getattr(self, name))
        for name in ("learning_rate", "penalty"):
            check_positive(f"CriticW1: {name}", getattr(self, name))
        check_number("CriticW1: tolerance", self.tolerance, at_least=0.0)
        check_flag("CriticW1: fresh", self.fresh)

    def start(self, rng_key: jax.Array, dim: int) -> Any:
        sizes = (dim, self.width, self.width, 1)
        keys = random.split(rng_key, 3)
        bound = [n**-0.5 for n in sizes[:-1]]
        return [
            (random.uniform(k, (i, o), minval=-b, maxval=b), jnp.zeros(o))
            for k, i, o, b in zip(keys, sizes[:-1], sizes[1:], bound, strict=True)
        ]

    def prepare(self, rng_key: jax.Array, state: Any, draw) -> Any:
        optim = optax.adagrad(self.learning_rate)
        once = None if self.fresh else draw(random.fold_in(rng_key, self.num_steps))

        def objective(params, key):
            of_draws, of_penalty = random.split(key)
            network, target = draw(of_draws) if once is None else once
            f, g = network.values, target.values
            check_draws("CriticW1", f, g, at_least=2, equal=True)
            at = random.uniform(of_penalty, (len(f), 1), f.dtype)
            slopes = jax.vmap(jax.grad(lambda x: critic(params, x)))(at * f + (1.0 - at) * g)
            # The root's own slope is infinite where the critic is flat.
            norms = jnp.sqrt(jnp.sum(slopes**2, axis=1) + 1e-12)
            return -self._gap(params, f, g) + self.penalty * jnp.mean((norms - 1.0) ** 2)

        def go_on(carry):
            step, _, _, norm = carry
            return (step < self.num_steps) & (norm >= self.tolerance)

        def train(carry):
            step, params, optim_state, _ = carry
            slopes = jax.grad(objective)(params, random.fold_in(rng_key, step))
            norm = jnp.sqrt(sum(jnp.vdot(s, s) for s in jax.tree.leaves(slopes)))
            updates, optim_state = optim.update(slopes, optim_state, params)
            return step + 1, optax.apply_updates(params, updates), optim_state, norm

        return lax.while_loop(
            go_on, train, (0, state, optim.init(state), jnp.full((), jnp.inf, state[0][0].dtype))
        )[1]

    def _gap(self, params, f: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.mean(critic(params, g)) - jnp.mean(critic(params, f))

    def __call__(self, rng_key: jax.Array, state: Any, network: Functions, target: Functions) -> jax.Array:
        check_draws("CriticW1", network.values, target.values, at_least=2)
        return self._gap(lax.stop_gradient(state), network.values, target.values)


def critic(params: Any, x: jax.Array) -> jax.Array:
    """(..., D) to (...)."""
    for weight, bias in params[:-1]:
        x = jax.nn.softplus(x @ weight + bias)
    weight, bias = params[-1]
    return (x @ weight + bias)[..., 0]
