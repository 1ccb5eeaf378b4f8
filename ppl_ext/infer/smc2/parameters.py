"""Parameters of a state-space model as positions without bounds, and the model at one of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from numpyro.handlers import block
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import unmasked
from ppl_ext.errors import ModelError
from ppl_ext.state_space.lowering import Reached
from ppl_ext.state_space.model import StateSpace, lower


class _Head(Messenger):
    """The model up to its scan: sites with a position get the value there, by the support that they have in
    this run; the others are drawn.
    """

    def __init__(self, positions: Mapping[str, jax.Array], key: jax.Array):
        super().__init__()
        self.positions, self.key, self.count = positions, key, 0
        self.sites: dict[str, dict] = {}
        self.latent: list[str] = []
        self.log_det = jnp.zeros(())

    def _next(self) -> jax.Array:
        self.count += 1
        return random.fold_in(self.key, self.count)

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            raise Reached
        if msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None:
            msg["kwargs"]["rng_key"] = self._next()
        if msg["type"] != "sample":
            return
        name, fn, key = msg["name"], msg["fn"], self._next()
        if msg["value"] is None and not msg["is_observed"]:
            self.latent.append(name)
            if name in self.positions:
                transform, u = biject_to(fn.support), self.positions[name]
                msg["value"] = transform(u)
                self.log_det = self.log_det + jnp.sum(transform.log_abs_det_jacobian(u, msg["value"]))
            else:
                msg["value"] = _drawn(name, unmasked(fn), key, msg["kwargs"]["sample_shape"])
        self.sites[name] = {"fn": fn, "value": msg["value"]}


def _drawn(name: str, law: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
    try:
        return law(rng_key=key, sample_shape=sample_shape)
    except NotImplementedError as error:
        raise ModelError(
            f"SMC2 starts from draws of the prior, and site '{name}' ({type(law).__name__}) cannot be drawn. "
            "Give it a proper prior, such as a wide Normal."
        ) from error


def latent_sites(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Latent sites before the scan, without those that a handler inside the model gives a value."""
    return tuple(_run(model, args, kwargs, _Head({}, random.key(0))).latent)


def _run(model: Callable, args: tuple, kwargs: Mapping[str, Any], head: _Head) -> _Head:
    with block(), head:
        try:
            model(*args, **kwargs)
        except Reached:
            pass
    return head


class Parameters:
    """Positions (D,) of the parameters ``names``, and the model there. It lives inside one trace.

    :raises ModelError: if one of them is discrete, or has a prior that cannot be drawn from.
    """

    def __init__(self, model: Callable, data: tuple[tuple, dict], names: tuple[str, ...]):
        self.model, self.names = model, names
        self.args, self.kwargs = data
        sites = self._head({}, random.key(0)).sites
        for name in names:
            law = unmasked(sites[name]["fn"])
            if law.support.is_discrete:
                raise ModelError(
                    f"SMC2: parameter '{name}' ({type(law).__name__}) is discrete, and moves of parameters "
                    "need continuous ones. Run SMC2 at each of its values, and weigh these by their evidence."
                )
        flat, self.unravel = ravel_pytree(self._positions(sites))
        self.size, self.dtype = flat.size, flat.dtype

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A position (D,) from the laws of the sites, and the log density of the values drawn there."""
        sites = self._head({}, key).sites
        laws = (unmasked(sites[n]["fn"]).log_prob(sites[n]["value"]) for n in self.names)
        return ravel_pytree(self._positions(sites))[0], sum((jnp.sum(p) for p in laws), jnp.zeros(()))

    def values(self, position: jax.Array) -> dict[str, jax.Array]:
        """The parameters' values at a position (D,)."""
        return self._at(position)[0]

    def space(self, position: jax.Array) -> tuple[StateSpace, jax.Array, jax.Array]:
        """The model at a position (D,), the log prior of the values, and the log of the Jacobian."""
        values, log_det = self._at(position)
        lowered = lower(self.model, self.args, self.kwargs, values, initial="rest")
        return lowered, lowered.log_prior, log_det

    def _at(self, position: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        head = self._head(self.unravel(position.astype(self.dtype)), random.key(0))
        return {n: head.sites[n]["value"] for n in self.names}, head.log_det

    def _positions(self, sites: Mapping[str, dict]) -> dict[str, jax.Array]:
        return {
            n: biject_to(sites[n]["fn"].support).inv(jnp.asarray(sites[n]["value"], float))
            for n in self.names
        }

    def _head(self, positions: Mapping[str, jax.Array], key: jax.Array) -> _Head:
        return _run(self.model, self.args, self.kwargs, _Head(positions, key))
