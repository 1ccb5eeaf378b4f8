"""Optimisers of optax that ask for the loss as a function: L-BFGS, and others that search along a line."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from numpyro.optim import _NumPyroOptim, optax_to_numpyro


class WithLoss(_NumPyroOptim):
    """An optimiser of optax for ``SVI``, which hands it loss, gradient and the loss as a function.

    NumPyro hands on the loss alone, so that a line search cannot run. The loss is that of the step: the same
    random numbers for all that a search looks at.

    >>> optim = WithLoss(optax.lbfgs())
    >>> state = optim.init({"x": jnp.array(3.0)})
    >>> for _ in range(3):
    ...     (loss, _), state = optim.eval_and_update(lambda p: (p["x"] ** 2, None), state)
    >>> bool(abs(optim.get_params(state)["x"]) < 1e-3)
    True
    """

    def __init__(self, transformation: optax.GradientTransformation):
        self.__dict__.update(vars(optax_to_numpyro(transformation)))
        self.transformation = optax.with_extra_args_support(transformation)

    def eval_and_update(
        self, fn: Callable[[Any], tuple], state: Any, forward_mode_differentiation: bool = False
    ) -> tuple[tuple[Any, Any], Any]:
        """The loss, and the state after one step."""
        out, slopes = self._evaluated(fn, state, forward_mode_differentiation)
        return out, self._moved(fn, state, out[0], slopes, forward_mode_differentiation)

    def eval_and_stable_update(
        self, fn: Callable[[Any], tuple], state: Any, forward_mode_differentiation: bool = False
    ) -> tuple[tuple[Any, Any], Any]:
        """A step where loss and gradient are finite, and else NaN and the state as it was."""
        (value, aux), slopes = self._evaluated(fn, state, forward_mode_differentiation)
        value, state = jax.lax.cond(
            jnp.isfinite(value) & jnp.isfinite(ravel_pytree(slopes)[0]).all(),
            lambda: (value, self._moved(fn, state, value, slopes, forward_mode_differentiation)),
            lambda: (jnp.full_like(value, jnp.nan), state),
        )
        return (value, aux), state

    def _evaluated(self, fn, state, forward):
        params = self.get_params(state)
        if not forward:
            return jax.value_and_grad(fn, has_aux=True)(params)
        slopes, out = jax.jacfwd(lambda p: (fn(p)[0], fn(p)), has_aux=True)(params)
        return out, slopes

    def _moved(self, fn, state, value, slopes, forward):
        i, (params, inner) = state
        more = {"forward_mode_differentiation": True} if forward else {}
        updates, inner = self.transformation.update(
            slopes, inner, params, value=value, grad=slopes, value_fn=lambda p: fn(p)[0], **more
        )
        return i + 1, (optax.apply_updates(params, updates), inner)
