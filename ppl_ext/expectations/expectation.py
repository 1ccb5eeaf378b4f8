"""Expected values of programs: the estimator :func:`expectation`.

What it estimates, and with which gradient, is the business of :mod:`ppl_ext.expectations.surrogate`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.numbers_at_hand import Numbers
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.expectations.run import Run
from ppl_ext.expectations.surrogate import estimate
from ppl_ext.runtime.arguments import check_call, check_function, check_key, described
from ppl_ext.runtime.constants import join, odd_data_blamed, taken
from ppl_ext.runtime.explain import explained
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading


class Expectation(eqx.Module):
    """An estimator of ``E[fn(*args)]``; see :func:`expectation`."""

    fn: Callable = eqx.field(static=True)

    def value(self, rng_key: jax.Array, *args, **kwargs) -> jax.Array:
        """An unbiased estimate; differentiable, with unbiased derivatives."""
        refuse_open_handlers("Expectation.value", but=Run)
        self._check("value", rng_key, args, kwargs)
        with (
            self._blamed("value", args, kwargs),
            reading(self.fn) as outside,
            explained(self.fn),
            self._numbers(rng_key, args, kwargs),
        ):
            return taken(
                outside,
                lambda data, rest: _value(self.fn, outside, rng_key, _traceable(data), rest),
                args,
                kwargs,
            )

    def value_and_grad(self, rng_key: jax.Array, *args, **kwargs) -> tuple[jax.Array, Any]:
        """An unbiased estimate and an unbiased estimate of its gradient by the first argument."""
        refuse_open_handlers("Expectation.value_and_grad", but=Run)
        if not args:
            raise ArgumentError(
                "value_and_grad differentiates by the first argument after rng_key, and there is none."
            )
        self._check("value_and_grad", rng_key, args, kwargs)
        for leaf in jax.tree.leaves(args[0]):
            if not isinstance(leaf, float | jax.Array | np.ndarray | np.generic) or not jnp.issubdtype(
                jnp.result_type(leaf), jnp.inexact
            ):
                raise ArgumentTypeError(
                    "value_and_grad differentiates by its first argument, which must be made of "
                    f"floating-point numbers; got {described(leaf)}."
                )
        by = len(jax.tree.leaves(args[0]))
        blamed, given = self._blamed("value_and_grad", args, kwargs), self._numbers(rng_key, args, kwargs)
        with blamed, reading(self.fn) as outside, explained(self.fn), given:
            return taken(
                outside,
                lambda data, rest: _value_and_grad(self.fn, outside, rng_key, _traceable(data), rest),
                args,
                kwargs,
                fixed=by,
            )

    def _check(self, method: str, rng_key, args: tuple, kwargs: dict) -> None:
        check_key(f"Expectation.{method}: rng_key, the first argument,", rng_key)
        check_call(f"Expectation.{method}: program", self.fn, args, kwargs)

    def _numbers(self, rng_key, args: tuple, kwargs: dict):
        return Numbers(lambda: estimate(lambda: self.fn(*args, **kwargs), rng_key))

    def _blamed(self, method: str, args: tuple, kwargs: dict):
        return odd_data_blamed(f"Expectation.{method}: program", args, kwargs)


def _traceable(tree):
    """Python's floats as arrays, so that another number does not compile again."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, tree)


@eqx.filter_jit
def _value(fn, outside: Outside, rng_key, data, constants):
    args, kwargs = join(data, constants)
    return estimate(lambda: fn(*args, **kwargs), rng_key)[0]


@eqx.filter_jit
def _value_and_grad(fn, outside: Outside, rng_key, data, constants):
    (params, *args), kwargs = join(data, constants)
    return jax.value_and_grad(lambda p: estimate(lambda: fn(p, *args, **kwargs), rng_key)[0])(params)


def expectation(fn: Callable) -> Expectation:
    r"""An estimator of the expectation of a program's value, and of its gradient.

    .. math:: \theta \mapsto \mathbb{E}_{x \sim q_\theta}[f(x, \theta)], \qquad \nabla_\theta \mathbb{E}_{x
        \sim q_\theta}[f(x, \theta)]

    ``fn(*args)`` may sample NumPyro sites, :func:`~ppl_ext.simulate` programs, score them by
    :func:`~ppl_ext.log_density` and :func:`~ppl_ext.replicate` itself, and returns a scalar or a
    :class:`~ppl_ext.densities.log_density.LogDensity`. Each site's gradient strategy comes from a handler,
    its ``infer={"gradient": ...}``, or the default (:mod:`ppl_ext.gradients`). Both methods are compiled, and
    work under ``jit``, ``vmap`` and ``grad``. What ``fn`` reads from outside (a global, a closure, its
    object) is part of what is compiled: if it changes, the next call compiles anew, so numbers that change at
    each call are best passed as arguments.

    :return: an object with ``value(rng_key, *args)`` and ``value_and_grad(rng_key, *args)`` (gradient by the
        first argument). Each value is a scalar; a gradient has the structure and shapes of that argument.
    :raises ArgumentTypeError: if ``fn`` is no function.
    :raises HandlerError: by the methods, if a NumPyro handler is open around the call.
    :raises ProgramError: by the methods, if the program fails, naming the site where it stood.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def program(p):
    ...     return 1.0 * numpyro.sample("b", dist.Bernoulli(p), infer={"gradient": "enumerate"})
    >>> value, grad = expectation(program).value_and_grad(jax.random.key(0), 0.3)
    >>> round(float(value), 5), round(float(grad), 5)
    (0.3, 1.0)
    """
    check_function("expectation: fn", fn)
    return Expectation(fn)
