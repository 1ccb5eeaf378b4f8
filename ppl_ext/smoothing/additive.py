r"""Additive functionals: sums over time of a function of neighbouring states, whose smoothed expectation is
carried along.

.. math:: h_T(x_{0:T}) = \tilde h_0(x_0) + \sum_{t=1}^{T} \tilde h_t(x_{t-1}, x_t)

A functional is a function ``(t, x_prev, x)`` of the step's number, counted from 0, and of the carry before
and after it, to an array or a pytree; or one of those made here. Of a scan that runs backward t is the number
of the input, and ``x_prev`` what the step received, the state of t + 1.

============================ =================================================================================
``score()``                  the gradient of the log likelihood in the unconstrained parameters (Fisher's
                             identity)
``sufficient_statistics(f)`` sums of ``f(x_prev, x, inputs)``, where ``inputs`` is what the scan hands to the
step
``moments()``                sums of x and of x xᵀ
``lag_covariances()``        sums of x₋ x₋ᵀ, x₋ xᵀ and x xᵀ, for the state before (x₋) and after
``transition_counts(K)``     expected numbers of moves between K states
============================ =================================================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ppl_ext.errors import ArgumentTypeError, ProgramError
from ppl_ext.runtime.arguments import check_call, check_count, check_function, check_mapping, described
from ppl_ext.runtime.explain import in_one_line, is_foreign
from ppl_ext.smoothing.space import Functional
from ppl_ext.state_space.model import StateSpace

__all__ = ["Additive", "lag_covariances", "moments", "score", "sufficient_statistics", "transition_counts"]


class Context(NamedTuple):
    """The model while it is traced: ``lower`` makes its state-space form at other constrained parameters."""

    lower: Callable[[Mapping[str, Any]], StateSpace]
    lowered: StateSpace


class Additive(ABC):
    """A functional that needs to know the model, made by one of the functions here.

    >>> isinstance(moments(), Additive)
    True
    """

    @abstractmethod
    def bind(self, context: Context) -> Functional:
        """The terms of the functional. ``inputs`` of a term are those of
        :class:`~ppl_ext.state_space.lowering.Inputs`.
        """


@dataclass(frozen=True)
class _Plain(Additive):
    fn: Callable

    def bind(self, context: Context) -> Functional:
        return Functional(None, lambda inputs, carry, particle: self.fn(inputs.number, carry, particle.carry))


@dataclass(frozen=True)
class _WithInputs(Additive):
    fn: Callable

    def bind(self, context: Context) -> Functional:
        return Functional(None, lambda inputs, carry, particle: self.fn(carry, particle.carry, inputs.x))


@dataclass(frozen=True)
class Score(Additive):
    """The functional that :func:`score` makes."""

    def bind(self, context: Context) -> Functional:
        from ppl_ext.smoothing.fisher_score import of_parameters

        return of_parameters(*context)


def score() -> Additive:
    r"""The score of the parameters, by Fisher's identity.

    .. math:: \nabla_\theta \log p_\theta(y_{1:T}) = \mathbb{E}\Bigl[\nabla_\theta \log p_\theta(x_0) + \sum_t
        \nabla_\theta
        \log m_\theta(x_{t-1}, x_t) \, g_\theta(x_t, y_t) \Bigm| y_{1:T}\Bigr]

    with θ NumPyro's unconstrained parameters (``biject_to`` of each site's support); the prior and its
    Jacobian are not in it. Source: Cappé, Moulines, Rydén 2005, equation 10.29.

    :raises ModelError: when smoothing begins, if the state follows from sites and parameters together (a
        non-centred model): then holding the states fixed is not holding the sites fixed.

    Where y ~ N(m, 1) whatever the state, the score of m is the sum of y - m:

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext.smoothing import smooth
    >>> def model(y):
    ...     m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(x_prev, 1.0))
    ...         numpyro.sample("y", dist.Normal(m, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, 0.0, y)
    >>> y = jnp.array([3.0, 0.5])
    >>> found = smooth(model, {"score": score()}, 2).run(jax.random.key(0), y, params={"m": 1.0})
    >>> round(float(found.expectations["score"]["m"]), 3)
    1.5
    """
    return Score()


def sufficient_statistics(fn: Callable) -> Additive:
    r"""Sums of a function of neighbouring states and the step's inputs: what a maximisation step needs.

    .. math:: S_T = \sum_{t=1}^{T} s(x_{t-1}, x_t, y_t)

    :class:`~ppl_ext.smoothing.OnlineEM` has an example of its use.

    :param fn: s, a function ``(x_prev, x, inputs)`` of the carry before and after and of what the scan hands
        to the step, to an array or a pytree of numbers.
    :raises ArgumentTypeError: if ``fn`` is no function of three arguments.

    >>> sufficient_statistics(lambda x_prev, x, y_t: {"xx": x * x, "xy": x * y_t})
    _WithInputs(fn=<function ...>)
    """
    check_function("sufficient_statistics: fn", fn)
    check_call("sufficient_statistics: fn, called with (x_prev, x, inputs):", fn, (0.0, 0.0, 0.0), {})
    return _WithInputs(fn)


def moments() -> Additive:
    r"""Sums over the steps of the state and of its square.

    .. math:: \sum_{t=1}^{T} x_t, \qquad \sum_{t=1}^{T} x_t x_t^\top

    :return: under ``"x"`` (D,) and ``"xx"`` (D, D), for the carry flattened to a vector of D numbers.

    >>> # one term of the sums, for a state of 2
    >>> {name: sums.tolist() for name, sums in moments().fn(1, 0.0, 2.0).items()}
    {'x': [2.0], 'xx': [[4.0]]}
    """
    return _Plain(lambda t, x_prev, x: {"x": _flat(x), "xx": jnp.outer(_flat(x), _flat(x))})


def lag_covariances() -> Additive:
    r"""Sums over the steps of second moments about 0, of the state before and after.

    .. math:: \sum_t x_{t-1} x_{t-1}^\top, \qquad \sum_t x_{t-1} x_t^\top, \qquad \sum_t x_t x_t^\top

    :return: under ``"before"``, ``"cross"`` (rows before, columns after) and ``"after"``, (D, D) each, of the
        carry flattened to D numbers.

    >>> # one term of the sum, for a state that went from 2 to 3
    >>> lag_covariances().fn(1, 2.0, 3.0)["cross"].tolist()
    [[6.0]]
    """

    def fn(t, x_prev, x):
        before, after = _flat(x_prev), _flat(x)
        return {
            "before": jnp.outer(before, before),
            "cross": jnp.outer(before, after),
            "after": jnp.outer(after, after),
        }

    return _Plain(fn)


def transition_counts(num_states: int) -> Additive:
    r"""Expected numbers of moves from state k to state l, for a scalar finite state.

    .. math:: \sum_{t=1}^{T} 1\{x_{t-1} = k, x_t = l\}

    :param num_states: K.
    :return: (K, K).
    :raises ArgumentTypeError: when smoothing begins, if the carry is not one integer.

    >>> transition_counts(2).fn(1, 0, 1).tolist()  # one term of the sum, for a move from 0 to 1
    [[0.0, 1.0], [0.0, 0.0]]
    """
    check_count("transition_counts: num_states", num_states)
    return _Plain(
        lambda t, x_prev, x: (
            jax.nn.one_hot(_state(x_prev), num_states)[:, None] * jax.nn.one_hot(_state(x), num_states)
        )
    )


def _state(x: Any) -> jax.Array:
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) or jnp.issubdtype(jnp.result_type(leaves[0]), jnp.floating):
        raise ArgumentTypeError(
            "transition_counts needs a state that is one integer; the carry of this model's scan is not."
        )
    return leaves[0]


def _flat(x: Any) -> jax.Array:
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), x))[0]


def as_additive(where: str, functionals: Any) -> dict[str, Additive]:
    """A user's dict of functionals, checked."""
    check_mapping(where, functionals, "from names to functionals (t, x_prev, x)")
    found: dict[str, Additive] = {}
    for name, fn in functionals.items():
        if not isinstance(fn, Additive) and (not callable(fn) or isinstance(fn, type)):
            raise ArgumentTypeError(
                f"{where}: '{name}' must be a function (t, x_prev, x) or one of "
                f"ppl_ext.smoothing.additive's, got {described(fn)}."
            )
        if not isinstance(fn, Additive):
            check_call(f"{where}: '{name}', called with (t, x_prev, x):", fn, (0, 0.0, 0.0), {})
        found[name] = fn if isinstance(fn, Additive) else _Plain(fn)
    return found


def joined(functionals: Mapping[str, Additive], context: Context) -> Functional | None:
    """All of them as one, by name."""
    if not functionals:
        return None
    bound = {name: fn.bind(context) for name, fn in functionals.items()}

    def step(inputs, carry, particle):
        return {name: _run(name, fn.step, inputs, carry, particle) for name, fn in bound.items()}

    def initial(particle):
        return {
            name: None if fn.initial is None else _run(name, fn.initial, particle)
            for name, fn in bound.items()
        }

    return Functional(initial, step)


def _run(name: str, term: Callable, *args: Any) -> Any:
    """A term of a functional, as real numbers."""
    try:
        values = term(*args)
    except Exception as error:
        if not is_foreign(error):
            raise
        raise ProgramError(
            f"The functional '{name}' failed: {in_one_line(error)} It is traced for one particle, whose "
            "state is the scan's carry: write it with jax.numpy, without Python's `if` on values."
        ) from error
    leaves = jax.tree.leaves(values, is_leaf=lambda x: x is None)
    if not leaves or not all(_is_real(x) for x in leaves):
        raise ArgumentTypeError(
            f"The functional '{name}' must return real numbers, an array or a pytree of them, got "
            f"{described(values)}."
        )
    return _floating(values)


def _is_real(x: Any) -> bool:
    if not hasattr(x, "dtype"):
        return isinstance(x, bool | int | float)
    return x.dtype == bool or (
        jnp.issubdtype(x.dtype, jnp.number) and not jnp.issubdtype(x.dtype, jnp.complexfloating)
    )


def _floating(values: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), values)
