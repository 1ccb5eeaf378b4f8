"""Expected values of programs: the estimator :func:`expectation`, and :func:`objective`, which makes one a ``numpyro`` ELBO.

What they estimate, and with which gradient, is the business of :mod:`ppl_ext.surrogate`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.handlers import block, substitute
from numpyro.infer.elbo import ELBO as NumPyroELBO
from numpyro.primitives import _PYRO_STACK, mutable, prng_key

from ppl_ext.arguments import (
    check_call,
    check_count,
    check_flag,
    check_function,
    check_key,
    check_mapping,
    check_number,
    check_program,
    told,
)
from ppl_ext.by_plates import Numbers
from ppl_ext.by_site import estimate_by_site
from ppl_ext.carrying import carried
from ppl_ext.constants import join, odd_data_blamed, taken
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError
from ppl_ext.explain import explained, name_of, past_inner_jits
from ppl_ext.masked_latents import without_absent
from ppl_ext.outside import Outside, reading, structure
from ppl_ext.particles import replicate
from ppl_ext.program import Program
from ppl_ext.run import Run
from ppl_ext.surrogate import estimate

__all__ = ["Expectation", "Objective", "carried", "estimate", "expectation", "objective", "replicate"]


def _refuse_open_handlers(what: str) -> None:
    handlers = [type(h).__name__ for h in _PYRO_STACK if not isinstance(h, Run)]
    if handlers:
        raise HandlerError(
            f"{what} is compiled, and NumPyro handlers are open around the call ({', '.join(handlers)}): a cached compilation would ignore "
            "them. Wrap the model or guide instead, for example numpyro.handlers.scale(model, scale=2.0)."
        )


class Expectation(eqx.Module):
    """An estimator of ``E[fn(*args)]``; see :func:`expectation`."""

    fn: Callable = eqx.field(static=True)

    def value(self, rng_key: jax.Array, *args, **kwargs) -> jax.Array:
        """An unbiased estimate; differentiable, with unbiased derivatives."""
        _refuse_open_handlers("Expectation.value")
        self._check("value", rng_key, args, kwargs)
        with self._blamed("value", args, kwargs), reading(self.fn) as outside, explained(self.fn), self._numbers(rng_key, args, kwargs):
            return taken(outside, lambda data, rest: _value(self.fn, outside, rng_key, _traceable(data), rest), args, kwargs)

    def value_and_grad(self, rng_key: jax.Array, *args, **kwargs) -> tuple[jax.Array, Any]:
        """An unbiased estimate and an unbiased estimate of its gradient by the first argument."""
        _refuse_open_handlers("Expectation.value_and_grad")
        if not args:
            raise ArgumentError("value_and_grad differentiates by the first argument after rng_key, and there is none.")
        self._check("value_and_grad", rng_key, args, kwargs)
        for leaf in jax.tree.leaves(args[0]):
            if not isinstance(leaf, float | jax.Array | np.ndarray | np.generic) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise ArgumentTypeError(
                    f"value_and_grad differentiates by its first argument, which must be made of floating-point numbers; got {told(leaf)}."
                )
        by = len(jax.tree.leaves(args[0]))
        blamed, given = self._blamed("value_and_grad", args, kwargs), self._numbers(rng_key, args, kwargs)
        with blamed, reading(self.fn) as outside, explained(self.fn), given:
            return taken(
                outside, lambda data, rest: _value_and_grad(self.fn, outside, rng_key, _traceable(data), rest), args, kwargs, fixed=by
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

    .. math:: \theta \mapsto \mathbb{E}_{x \sim q_\theta}[f(x, \theta)], \qquad \nabla_\theta \mathbb{E}_{x \sim q_\theta}[f(x, \theta)]

    ``fn(*args)`` may sample NumPyro sites, :func:`~ppl_ext.simulate` programs, score them by :func:`~ppl_ext.log_density` and
    :func:`~ppl_ext.replicate` itself, and returns a scalar or a :class:`~ppl_ext.density.LogDensity`. Each site's gradient strategy
    comes from a handler, its ``infer={"gradient": ...}``, or the default (:mod:`ppl_ext.gradients`). Both methods are compiled, and work
    under ``jit``, ``vmap`` and ``grad``. What ``fn`` reads from outside (a global, a closure, its object) is part of what is compiled: if
    it changes, the next call compiles anew, so numbers that change at each call are best passed as arguments.

    :return: an object with ``value(rng_key, *args)`` and ``value_and_grad(rng_key, *args)`` (gradient by the first argument). Each
        value is a scalar; a gradient has the structure and shapes of that argument.
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


class Objective(NumPyroELBO):
    """An objective as NumPyro's SVI takes it: ``loss`` is minus the estimate. Made by :func:`objective`."""

    can_infer_discrete = True
    body: Callable

    def __init__(self, *args, vectorize_particles: bool | Callable = True, **kwargs):
        try:
            bound = inspect.signature(self.body).bind(None, None, *args, **kwargs)
        except TypeError as error:
            hint = "".join(f" {name} is an option of ELBO alone." for name in ("sum_sites", "multi_sample_guide") if name in kwargs)
            raise ArgumentError(
                f"{type(self).__name__}{inspect.signature(type(self))} does not take these options: {error}.{hint}"
            ) from None
        bound.apply_defaults()
        self.options = dict(list(bound.arguments.items())[2:])
        if isinstance(bound.arguments.get("kwargs"), dict):
            raise ArgumentError(f"{type(self).__name__}: an objective's options must be named.")
        for name, value in self.options.items():
            if name.startswith("num_"):
                check_count(f"{type(self).__name__}({name}=...)", value)
            elif isinstance(bound.signature.parameters[name].default, float):
                check_number(f"{type(self).__name__}({name}=...)", value)
            elif name in ("sum_sites", "multi_sample_guide"):
                check_flag(f"{type(self).__name__}({name}=...)", value)
        if not callable(vectorize_particles) or isinstance(vectorize_particles, type):
            check_flag(
                f"{type(self).__name__}(vectorize_particles=...), unless it is a function that maps as jax.lax.map does,",
                vectorize_particles,
            )
        super().__init__(num_particles=self.options.get("num_particles", 1), vectorize_particles=vectorize_particles)

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(self.body).parameters.items()}
        # Flags are shown where they are not as usual, numbers always.
        shown = {k: v for k, v in self.options.items() if not (isinstance(v, bool | None) and v == defaults[k])}
        words = [f"{k}=<{told(v)}>" if isinstance(v, jax.Array | np.ndarray) and v.ndim else f"{k}={v!r}" for k, v in shown.items()]
        if self.vectorize_particles is not True:
            words.append(f"vectorize_particles={name_of(self.vectorize_particles) if self.vectorize_particles else False}")
        return f"{type(self).__name__}({', '.join(words)})"

    def __eq__(self, other) -> bool:
        return self is other or (type(self) is type(other) and structure(self) == structure(other))

    def __hash__(self) -> int:
        return hash(structure(self))

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        """Minus an unbiased estimate of the objective; its gradient by ``param_map`` is unbiased too.

        With ``sum_sites=False``, a dictionary of such by site.
        """
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)["loss"]

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        """As :meth:`loss`, with the values that ``numpyro.mutable`` sites end with."""
        if isinstance(rng_key, jax.core.Tracer):
            _refuse_open_handlers(repr(self))
        where = f"{type(self).__name__}.loss"
        check_key(f"{where}: rng_key", rng_key)
        check_mapping(f"{where}: param_map", param_map, "from param sites to values")
        for name, program in (("model", model), ("guide", guide)):
            check_program(f"{where}: {name}", program)
            check_call(f"{where}: {name}", program, args, kwargs)
        with Numbers(partial(self.once, {}, model, guide, args, kwargs)):
            value, state = self._estimated(rng_key, param_map, model, guide, args, kwargs)
        return {"loss": jax.tree.map(jnp.negative, value), "mutable_state": state or None}

    def once(self, params: dict[str, Any], model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        """Run for what the run meets (:class:`ppl_ext.by_plates.Numbers`), at these parameters; at initial values where there are none."""
        key = random.key(0)
        started = self.initial_state(key, params, model, guide, *args, **kwargs)
        self._estimated(key, params | started, model, guide, args, kwargs)

    def _estimated(self, rng_key, param_map, model, guide, args: tuple, kwargs: dict):
        model = Program(substitute(model, data=param_map), args, kwargs)
        guide = Program(substitute(guide, data=param_map), args, kwargs)
        with explained(type(self).body):

            def estimated(programs):
                def of(fn: Callable):
                    return estimate(fn, rng_key, self.vectorize_particles, param_map)

                return of(lambda: self(*programs())) if self.sums else estimate_by_site(of, lambda: self(*programs()))

            return without_absent(estimated, model, guide, rng_key)

    @property
    def sums(self) -> bool:
        """Whether :meth:`loss` is one number, and no dictionary by site."""
        return bool(self.options.get("sum_sites", True))

    def __call__(self, model, guide):
        """The objective of two programs that have their arguments, as part of another objective or of an expectation."""
        return type(self).body(model, guide, **self.options)

    def initial_state(self, rng_key, param_map, model, guide, *args, **kwargs) -> dict[str, Any]:
        """What the objective carries from step to step (:func:`~ppl_ext.expectation.carried`) before the first one; empty for most."""
        model = Program(substitute(model, data=param_map), args, kwargs)
        guide = Program(substitute(guide, data=param_map), args, kwargs)

        def started(programs) -> dict[str, Any]:
            run = Run(rng_key, random.fold_in(rng_key, 0))
            run.given, run.started = param_map, {}
            with run, explained(type(self).body):
                self(*programs())
            return run.started

        def attempt() -> dict[str, Any]:
            with block():
                return without_absent(started, model, guide, rng_key)

        return past_inner_jits(attempt)

    def carried_by(self, guide: Callable, model: Callable) -> Callable:
        """The guide, with the objective's state as ``numpyro.mutable`` sites: what ``SVI`` takes for an objective that carries state.

        ``SVI(model, objective.carried_by(guide, model), optim, objective)``. :func:`ppl_ext.infer.fit` does it by itself. (NumPyro's
        ``SVI.evaluate`` passes no mutable state on, so it does not serve such objectives.)
        """
        return _Carrier(guide, model, self)


class _Carrier(eqx.Module):
    program: Callable
    model: Callable
    objective: Objective = eqx.field(static=True)

    def __call__(self, *args, **kwargs):
        output = self.program(*args, **kwargs)
        # Inside an objective its own body reads and writes the state; without a key this is no setting-up.
        if not any(isinstance(h, Run) for h in _PYRO_STACK) and (key := prng_key() if _PYRO_STACK else None) is not None:
            for name, init in self.objective.initial_state(key, {}, self.model, self.program, *args, **kwargs).items():
                mutable(name, init)
        return output


def objective(body: Callable) -> type[Objective]:
    r"""Turn a short program over two programs into a variational objective that NumPyro's ``SVI`` takes.

    ``body(model, guide, **options)`` returns a scalar or :class:`~ppl_ext.density.LogDensity` whose expectation is to be maximised;
    ``model`` and ``guide`` are programs that already have their arguments and parameters.

    :return: a class: ``body.__name__(**options)`` is a ``numpyro.infer.elbo.ELBO``. Option names that start with ``num_`` are checked to be
        positive integers, and those whose default is a float to be real numbers.
    :raises ArgumentError: if the body does not take a model and a guide; by the class, for options that it does not have.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from ppl_ext import log_density, simulate
    >>> @objective
    ... def MyELBO(model, guide):
    ...     draw = simulate(guide)
    ...     return log_density(model, draw.values) - draw.log_density
    >>> model = guide = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> abs(float(MyELBO().loss(jax.random.key(0), {}, model, guide)))
    0.0
    """
    check_function("objective: body", body)
    parameters = list(inspect.signature(body).parameters.values())
    if len(parameters) < 2:
        raise ArgumentError(f"objective: body '{body.__name__}' must take a model and a guide, as body(model, guide, **options).")
    namespace: dict[str, Any] = {
        "body": staticmethod(body),
        "__doc__": body.__doc__,
        "__module__": body.__module__,
        "__qualname__": body.__qualname__,
    }
    namespace["__signature__"] = inspect.Signature([p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in parameters[2:]])
    return type(body.__name__, (Objective,), namespace)
