"""The steps in a window as a NumPyro model, and the guide that goes with it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block, mask, seed, substitute, trace

from ppl_ext.gradients import Constant

FREE, PAST = "free", "past"  # the guide's parameters, and which draw of the past


class Window(NamedTuple):
    """Data of the steps in a window, ``xs``, of which ``inside`` are there yet, and P draws of the carry
    before it.
    """

    before: Any
    xs: Any
    inside: jax.Array


class Pair(NamedTuple):
    """One step of the model, and of the guide."""

    body: Callable
    guide: Callable

    def model(self, window: Window) -> None:
        """The window's steps from one of the draws before it, as a ``scan``."""

        def step(carry, at):
            x, here = at
            with mask(mask=here):
                new, _ = self.body(carry, x)
            return _where(here, new, carry), None

        scan(step, _start(window), (window.xs, window.inside))

    def guide_of(self, window: Window, free: Any) -> None:
        """The guide of :meth:`model`; the carry is what the model's step makes of its draws."""

        def step(carry, at):
            free, x, here = at
            with mask(mask=here):
                values = latent(trace(self.guide).get_trace(free, carry, x))
            return _where(here, self._carried(values, carry, x), carry), None

        scan(step, _start(window), (numpyro.param(FREE, free), window.xs, window.inside))

    def drawn(self, key: jax.Array, free: Any, carry: Any, x: Any, here: jax.Array) -> tuple[Any, dict]:
        """The carry after a step of the guide, and what it drew."""
        with block():
            values = latent(trace(seed(self.guide, key)).get_trace(free, carry, x))
        return _where(here, self._carried(values, carry, x), carry), values

    def draws(self, key: jax.Array, free: Any, window: Window) -> tuple[Any, dict]:
        """P carries after the window, and the latent sites of its steps, (P, W, ...)."""

        def one(key, carry):
            keys = random.split(key, len(window.inside))
            inputs = keys, free, window.xs, window.inside
            return jax.lax.scan(lambda c, at: self.drawn(*at[:2], c, *at[2:]), carry, inputs)

        return jax.vmap(one)(random.split(key, len(jax.tree.leaves(window.before)[0])), window.before)

    def _carried(self, values: dict, carry: Any, x: Any) -> Any:
        with block():
            return substitute(self.body, data=values)(carry, x)[0]


def latent(record: dict) -> dict[str, jax.Array]:
    """The values that a run drew."""
    return {n: s["value"] for n, s in record.items() if s["type"] == "sample" and not s["is_observed"]}


def _start(window: Window) -> Any:
    num = len(jax.tree.leaves(window.before)[0])
    i = numpyro.sample(PAST, dist.DiscreteUniform(0, num - 1), infer={"gradient": Constant()})
    return jax.tree.map(lambda a: a[i], window.before)


def _where(here: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(here, a, b), new, old)
