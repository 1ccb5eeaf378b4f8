r"""Expected values of programs, with unbiased gradients: every strategy becomes one surrogate here.

For a program that draws sites :math:`x_1 \dots x_S` and returns :math:`L = \sum_t c_t`, the surrogate's value is an unbiased estimate of
:math:`\mathbb{E} L`, and its derivatives (of any order) estimate those of :math:`\mathbb{E} L`:

.. math::

    \sum_t \sum_{\text{lanes}} \Big[\prod_{s \in \text{enumerated}, s \to t} q_s\Big] \; c_t \;
    \exp\Big(\sum_{s \in \text{scored}, s \to t} \log q_s - \overline{\log q_s}\Big)
    \; - \sum_{s \in \text{scored}} \big[\exp(\log q_s - \overline{\log q_s}) - 1\big]\, \overline{b_s}

A bar stops gradients, :math:`s \to t` means that (an element of) cost t can feel (an element of) site s, as :mod:`ppl_ext.credit` finds,
and :math:`b_s` is a baseline that does not depend on the draw (Foerster et al. 2018 for the form, Mao et al. 2019 for the baseline).
Reparameterised sites need no term. To enumerate, or to leave a particle out, the same Python program is run again under the same keys with
the sites' values or the particles' outputs replaced, in one ``vmap``.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.handlers import substitute
from numpyro.infer.elbo import ELBO as NumPyroELBO
from numpyro.primitives import _PYRO_STACK

from ppl_ext.choices import Choice, Run, replicate
from ppl_ext.credit import Deps, collect, spread, trace_credit
from ppl_ext.density import LogDensity
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError
from ppl_ext.gradients import ScoreFunction
from ppl_ext.lanes import plan_lanes
from ppl_ext.program import Program

__all__ = ["Expectation", "Objective", "estimate", "expectation", "objective", "replicate"]

_stop = lax.stop_gradient


def estimate(fn: Callable[[], Any], rng_key: jax.Array, vectorize: bool = True) -> tuple[jax.Array, dict[str, Any]]:
    """One unbiased estimate of ``E[fn()]``, differentiable as such, and the mutable state that the run left behind."""
    plate_key, key = random.fold_in(rng_key, 0), rng_key

    def run(**options) -> tuple[list[jax.Array], Run]:
        with (r := Run(key, plate_key, vectorize=vectorize, **options)):
            return _terms(fn()), r

    terms, base = run()
    if not base.choices:
        return _sum(terms), base.mutable
    credit, met = trace_credit(lambda: run(tracing=True)[0])
    _distrust_unseen(credit, terms, base, met)
    lanes = plan_lanes(base, credit)
    if not lanes.forced:
        baselines = _baselines(run, terms, base, credit)
        return _surrogate(terms, base.choices, base.log_probs, credit, baselines), base.mutable

    def lane(forced):
        terms, r = run(forced=forced)
        weights = lanes.weights(terms, r, credit)
        weighted = [jnp.where((w == 0) & ~jnp.isfinite(c), 0.0, c) * w for c, w in zip(terms, weights, strict=True)]
        scored = [c for c in r.choices if c.id not in lanes.forced]
        baselines = {c.id: _others_mean(c, r.log_probs[c.id].shape, weighted, credit) for c in scored}
        return _surrogate(weighted, scored, r.log_probs, credit, baselines)

    return jax.vmap(lane)(lanes.forced).sum(), base.mutable


def _terms(out) -> list[jax.Array]:
    if isinstance(out, LogDensity):
        if out.batch_ndim:
            raise ArgumentError("The program returns one value per particle; reduce them, for example by `.mean()` or `log_mean_exp`.")
        return list(out.terms)
    if not isinstance(out, int | float | np.ndarray | np.generic | jax.Array):
        raise ArgumentTypeError(f"An expectation is taken of a number, but the program returned a {type(out).__name__}.")
    if jnp.shape(out) != ():
        raise ArgumentError(f"An expectation is taken of a number, but the program returned an array of shape {jnp.shape(out)}.")
    return [jnp.asarray(out)]


def _sum(terms: list[jax.Array]) -> jax.Array:
    sums = [jnp.sum(t) for t in terms]
    return sum(sums[1:], start=sums[0]) if sums else jnp.zeros(())


def _distrust_unseen(credit: list[Deps], terms, run: Run, met: set[str]) -> None:
    for c in run.choices:
        if c.id not in met:
            for deps in credit:
                deps[c.id] = (None,) * run.log_probs[c.id].ndim


def _surrogate(terms, choices: list[Choice], log_probs, credit: list[Deps], baselines) -> jax.Array:
    total = jnp.zeros(())
    for cost, deps in zip(terms, credit, strict=True):
        felt = [spread(log_probs[c.id], deps[c.id], cost.ndim) for c in choices if c.id in deps]
        total += jnp.sum(cost * _one(sum(felt[1:], start=felt[0])) if felt else cost)
    for choice in choices:
        if (b := baselines.get(choice.id)) is not None:
            # Without particle k the others may all be impossible (−inf): such a baseline is of no use, and any constant is unbiased.
            total -= jnp.sum((_one(log_probs[choice.id]) - 1) * _stop(jnp.where(jnp.isfinite(b), b, 0.0)))
    return total


def _one(exponent: jax.Array) -> jax.Array:
    """One in value; its derivatives of any order are those of a likelihood ratio. (log q may be −inf where a mask hides an element.)"""
    return jnp.exp(jnp.where(jnp.isfinite(exponent), exponent - _stop(exponent), 0.0))


# --- baselines -------------------------------------------------------------------------------------------------------------------------


def _wants_baseline(choice: Choice, shape: tuple[int, ...]) -> bool:
    # What is left to score here is a ScoreFunction, or was to be enumerated only if that was cheap.
    strategy = choice.strategy if isinstance(choice.strategy, ScoreFunction) else ScoreFunction()
    return strategy.baseline is not None and choice.num_nodes > 0 and shape[0] > 1


def _others_mean(choice: Choice, shape, terms, credit: list[Deps]) -> jax.Array | None:
    """Mean cost of the other particles, element by element; ``None`` unless every cost belongs to one particle."""
    if not _wants_baseline(choice, shape):
        return None
    mine = [(c, deps[choice.id]) for c, deps in zip(terms, credit, strict=True) if choice.id in deps]
    if any(relation[0] is None or relation[0][0] != "at" for _, relation in mine):
        return None
    cost = sum((collect(_stop(c), relation, shape) for c, relation in mine), start=jnp.zeros(shape))
    return (cost.sum(0, keepdims=True) - cost) / (shape[0] - 1)


def _baselines(run, terms, base: Run, credit: list[Deps]) -> dict[str, jax.Array | None]:
    out: dict[str, jax.Array | None] = {}
    left_out: dict[str, list[jax.Array]] = {}
    for choice in base.choices:
        shape = base.log_probs[choice.id].shape
        baseline = _others_mean(choice, shape, terms, credit)
        node = choice.node
        if baseline is None and node is not None and _wants_baseline(choice, shape):
            if node not in left_out:
                left_out[node] = _leave_each_out(run, node, base.replicates[node], shape[0])
            touched = [(c, deps[choice.id]) for c, deps in zip(left_out[node], credit, strict=True) if choice.id in deps]
            baseline = jnp.zeros(shape)
            for cost, relation in touched:
                baseline += jax.vmap(partial(_collect_one, relation, shape))(cost, jnp.arange(shape[0]))
        out[choice.id] = baseline
    return out


def _collect_one(relation, shape, cost, k):
    return collect(cost, relation, shape)[k]


def _leave_each_out(run, node: str, outputs, num: int) -> list[jax.Array]:
    """The program's terms with particle k's output replaced by the mean of the others', for each k."""

    def without(k):
        def replaced(x):
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                return x
            mine = jnp.arange(num).reshape((num,) + (1,) * (x.ndim - 1)) == k
            others = jnp.where(mine, 0.0, x).sum(0) / (num - 1)
            return jnp.where(mine, others, x)

        return run(outputs={node: jax.tree.map(replaced, _stop(outputs))})[0]

    return jax.vmap(without)(jnp.arange(num))


# --- the public edge -------------------------------------------------------------------------------------------------------------------


def _refuse_open_handlers(what: str) -> None:
    handlers = [type(h).__name__ for h in _PYRO_STACK if not isinstance(h, Run)]
    if handlers:
        raise HandlerError(
            f"{what} is compiled, and NumPyro handlers are open around the call ({', '.join(handlers)}): a cached compilation would ignore "
            "them. Wrap the model or guide instead, for example numpyro.handlers.scale(model, scale=2.0)."
        )


class Expectation(eqx.Module):
    """An estimator of E[fn(*args)]; see :func:`expectation`."""

    fn: Callable = eqx.field(static=True)

    def value(self, rng_key: jax.Array, *args, **kwargs) -> jax.Array:
        """An unbiased estimate; differentiable, with unbiased derivatives."""
        _refuse_open_handlers("Expectation.value")
        return _value(self.fn, rng_key, *_traceable((args, kwargs)))

    def value_and_grad(self, rng_key: jax.Array, *args, **kwargs) -> tuple[jax.Array, Any]:
        """An unbiased estimate and an unbiased estimate of its gradient by the first argument."""
        _refuse_open_handlers("Expectation.value_and_grad")
        if not args:
            raise ArgumentError("value_and_grad differentiates by the first argument after rng_key, and there is none.")
        args, kwargs = _traceable((args, kwargs))
        return _value_and_grad(args[0], self.fn, rng_key, args[1:], kwargs)


def _traceable(tree):
    """Python's floats as arrays, so that another number does not compile again."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, tree)


@eqx.filter_jit
def _value(fn, rng_key, args, kwargs):
    return estimate(lambda: fn(*args, **kwargs), rng_key)[0]


@eqx.filter_jit
def _value_and_grad(params, fn, rng_key, args, kwargs):
    return jax.value_and_grad(lambda p: estimate(lambda: fn(p, *args, **kwargs), rng_key)[0])(params)


def expectation(fn: Callable) -> Expectation:
    r"""An estimator of the expectation of a program's value, and of its gradient.

    .. math:: \theta \mapsto \mathbb{E}_{x \sim q_\theta}[f(x, \theta)], \qquad \nabla_\theta \mathbb{E}_{x \sim q_\theta}[f(x, \theta)]

    ``fn(*args)`` may sample NumPyro sites, :func:`~ppl_ext.simulate` programs, score them by :func:`~ppl_ext.log_density` and
    :func:`~ppl_ext.replicate` itself, and returns a scalar or a :class:`~ppl_ext.density.LogDensity`. Each site's gradient strategy
    comes from a handler, its ``infer={"gradient": ...}``, or the default (:mod:`ppl_ext.gradients`). Both methods are compiled, and work
    under ``jit``, ``vmap`` and ``grad``.

    :return: an object with ``value(rng_key, *args)`` and ``value_and_grad(rng_key, *args)`` (gradient by the first argument).

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def program(p):
    ...     return 1.0 * numpyro.sample("b", dist.Bernoulli(p), infer={"gradient": "enumerate"})
    >>> value, grad = expectation(program).value_and_grad(jax.random.key(0), 0.3)
    >>> round(float(value), 5), round(float(grad), 5)
    (0.3, 1.0)
    """
    if not callable(fn):
        raise ArgumentTypeError(f"expectation takes a function, got {type(fn).__name__}.")
    return Expectation(fn)


class Objective(NumPyroELBO):
    """An objective as NumPyro's SVI takes it: ``loss`` is minus the estimate. Made by :func:`objective`."""

    can_infer_discrete = True
    body: Callable

    def __init__(self, *args, vectorize_particles: bool = True, **kwargs):
        bound = inspect.signature(self.body).bind(None, None, *args, **kwargs)
        bound.apply_defaults()
        self.options = dict(list(bound.arguments.items())[2:])
        if isinstance(bound.arguments.get("kwargs"), dict):
            raise ArgumentError(f"{type(self).__name__}: an objective's options must be named.")
        for name, value in self.options.items():
            if name.startswith("num_") and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ArgumentError(f"{type(self).__name__}({name}=...) must be a positive integer, got {value!r}.")
        if not isinstance(vectorize_particles, bool):
            raise ArgumentTypeError(f"{type(self).__name__}(vectorize_particles=...) must be True or False, got {vectorize_particles!r}.")
        super().__init__(num_particles=self.options.get("num_particles", 1), vectorize_particles=vectorize_particles)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        """Minus an unbiased estimate of the objective; its gradient by ``param_map`` is unbiased too."""
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)["loss"]

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        """As :meth:`loss`, with the values that ``numpyro.mutable`` sites end with."""
        if isinstance(rng_key, jax.core.Tracer):
            _refuse_open_handlers(repr(self))
        model = Program(substitute(model, data=param_map), args, kwargs)
        guide = Program(substitute(guide, data=param_map), args, kwargs)
        value, mutable = estimate(lambda: type(self).body(model, guide, **self.options), rng_key, self.vectorize_particles)
        return {"loss": -value, "mutable_state": mutable or None}


def objective(body: Callable) -> type[Objective]:
    r"""Turn a short program over two programs into a variational objective that NumPyro's ``SVI`` takes.

    ``body(model, guide, **options)`` returns a scalar or :class:`~ppl_ext.density.LogDensity` whose expectation is to be maximised;
    ``model`` and ``guide`` are programs that already have their arguments and parameters.

    :return: a class: ``body.__name__(**options)`` is a ``numpyro.infer.elbo.ELBO``. Option names that start with ``num_`` are checked to be
        positive integers.

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
    namespace: dict[str, Any] = {
        "body": staticmethod(body),
        "__doc__": body.__doc__,
        "__module__": body.__module__,
        "__qualname__": body.__qualname__,
    }
    parameters = list(inspect.signature(body).parameters.values())[2:]
    namespace["__signature__"] = inspect.Signature([p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in parameters])
    return type(body.__name__, (Objective,), namespace)
