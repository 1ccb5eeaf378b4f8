"""Objectives: short programs over a model and a guide, each a ``numpyro`` ELBO."""

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

from ppl_ext.densities.numbers_at_hand import Numbers
from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.by_site import estimate_by_site
from ppl_ext.expectations.masked_latents import without_absent
from ppl_ext.expectations.run import Run, current_run
from ppl_ext.expectations.surrogate import estimate
from ppl_ext.program import Program
from ppl_ext.runtime.arguments import (
    check_call,
    check_count,
    check_flag,
    check_function,
    check_key,
    check_mapping,
    check_number,
    check_program,
    described,
)
from ppl_ext.runtime.explain import explained, name_of
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import structure
from ppl_ext.tracing.inner_jits import past_inner_jits


class Objective(NumPyroELBO):
    """An objective as NumPyro's SVI takes it: ``loss`` is minus the estimate. Made by :func:`objective`."""

    can_infer_discrete = True
    body: Callable

    def __init__(self, *args, vectorize_particles: bool | Callable = True, **kwargs):
        try:
            bound = inspect.signature(self.body).bind(None, None, *args, **kwargs)
        except TypeError as error:
            hint = "".join(
                f" {name} is an option of ELBO alone."
                for name in ("sum_sites", "multi_sample_guide")
                if name in kwargs
            )
            raise ArgumentError(
                f"{type(self).__name__}{inspect.signature(type(self))} does not take these options: "
                f"{error}.{hint}"
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
                f"{type(self).__name__}(vectorize_particles=...), unless it is a function that maps as "
                "jax.lax.map does,",
                vectorize_particles,
            )
        super().__init__(
            num_particles=self.options.get("num_particles", 1), vectorize_particles=vectorize_particles
        )

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(self.body).parameters.items()}
        # Flags are shown where they are not as usual, numbers always.
        shown = {
            k: v for k, v in self.options.items() if not (isinstance(v, bool | None) and v == defaults[k])
        }
        words = [
            f"{k}=<{described(v)}>" if isinstance(v, jax.Array | np.ndarray) and v.ndim else f"{k}={v!r}"
            for k, v in shown.items()
        ]
        if self.vectorize_particles is not True:
            words.append(
                "vectorize_particles="
                f"{name_of(self.vectorize_particles) if self.vectorize_particles else False}"
            )
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
        """The loss, as :meth:`loss`, with the values that ``numpyro.mutable`` sites end with."""
        if isinstance(rng_key, jax.core.Tracer):
            refuse_open_handlers(repr(self), but=Run)
        where = f"{type(self).__name__}.loss"
        check_key(f"{where}: rng_key", rng_key)
        check_mapping(f"{where}: param_map", param_map, "from param sites to values")
        for name, program in (("model", model), ("guide", guide)):
            check_program(f"{where}: {name}", program)
            check_call(f"{where}: {name}", program, args, kwargs)
        with Numbers(partial(self.once, {}, model, guide, args, kwargs)):
            value, state = self._estimated(rng_key, param_map, model, guide, args, kwargs)
        return {"loss": jax.tree.map(jnp.negative, value), "mutable_state": state or None}

    def once(
        self, params: dict[str, Any], model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> None:
        """Run for what the run meets (:mod:`ppl_ext.densities.numbers_at_hand`), at these parameters; at
        initial values where there are none.
        """
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

                return (
                    of(lambda: self(*programs()))
                    if self.sums
                    else estimate_by_site(of, lambda: self(*programs()))
                )

            return without_absent(estimated, model, guide, rng_key)

    @property
    def sums(self) -> bool:
        """Whether :meth:`loss` is one number, and no dictionary by site."""
        return bool(self.options.get("sum_sites", True))

    def __call__(self, model, guide):
        """The objective of two programs that have their arguments, as part of another objective or of an
        expectation.
        """
        return type(self).body(model, guide, **self.options)

    def initial_state(self, rng_key, param_map, model, guide, *args, **kwargs) -> dict[str, Any]:
        """What the objective carries from step to step (:func:`~ppl_ext.expectations.objective.carried`)
        before the first one; empty for most.
        """
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
        """The guide, with the objective's state as ``numpyro.mutable`` sites: what ``SVI`` takes for an
        objective that carries state.

        ``SVI(model, objective.carried_by(guide, model), optim, objective)``. :func:`ppl_ext.infer.fit` does
        it by itself. (NumPyro's ``SVI.evaluate`` passes no mutable state on, so it does not serve such
        objectives.)
        """
        return _Carrier(guide, model, self)


class _Carrier(eqx.Module):
    program: Callable
    model: Callable
    objective: Objective = eqx.field(static=True)

    def __call__(self, *args, **kwargs):
        output = self.program(*args, **kwargs)
        # Inside an objective its own body reads and writes the state; without a key this is no setting-up.
        if (
            not any(isinstance(h, Run) for h in _PYRO_STACK)
            and (key := prng_key() if _PYRO_STACK else None) is not None
        ):
            for name, init in self.objective.initial_state(
                key, {}, self.model, self.program, *args, **kwargs
            ).items():
                mutable(name, init)
        return output


def objective(body: Callable) -> type[Objective]:
    r"""Turn a short program over two programs into a variational objective that NumPyro's ``SVI`` takes.

    ``body(model, guide, **options)`` returns a scalar or :class:`~ppl_ext.densities.log_density.LogDensity`
    whose expectation is to be maximised; ``model`` and ``guide`` are programs that already have their
    arguments and parameters.

    :return: a class: ``body.__name__(**options)`` is a ``numpyro.infer.elbo.ELBO``. Option names that start
        with ``num_`` are checked to be positive integers, and those whose default is a float to be real
        numbers.
    :raises ArgumentError: if the body does not take a model and a guide; by the class, for options that it
        does not have.

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
        raise ArgumentError(
            f"objective: body '{body.__name__}' must take a model and a guide, as body(model, guide, "
            "**options)."
        )
    namespace: dict[str, Any] = {
        "body": staticmethod(body),
        "__doc__": body.__doc__,
        "__module__": body.__module__,
        "__qualname__": body.__qualname__,
    }
    namespace["__signature__"] = inspect.Signature(
        [p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in parameters[2:]]
    )
    return type(body.__name__, (Objective,), namespace)


def carried(name: str, init: Any) -> dict[str, Any]:
    """State that an objective carries from one step to the next, through the mutable state of NumPyro's
    ``SVI``.

    It returns a dict, as ``numpyro.mutable`` does: what the objective writes into it is what the next step
    reads. An unbiased estimate may depend on the state of the steps before, and must not depend on what this
    step's own draws make of it.

    :param name: its name among the mutable state; no parameter may have the same.
    :param init: what it starts from: a dict of arrays, or a function that returns one and may sample.
    :raises ArgumentError: if nobody started the state: see
        :meth:`ppl_ext.expectations.objective.Objective.carried_by`.
    :raises HandlerError: outside an objective, or inside :func:`replicate`.

    >>> import jax, numpyro, optax, jax.numpy as jnp, numpyro.distributions as dist, ppl_ext
    >>> @ppl_ext.objective
    ... def Counted(model, guide):
    ...     count = carried("count", {"steps": jnp.zeros(())})
    ...     count["steps"] += 1.0
    ...     return -simulate(guide).log_density
    >>> from ppl_ext import simulate
    >>> program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> key, sgd = jax.random.key(0), optax.sgd(0.1)
    >>> result = ppl_ext.infer.fit(key, program, program, Counted(), sgd, 5, progress_bar=False)
    >>> float(result.params["count"]["steps"][0])
    5.0
    """
    return current_run().carry(name, init)
