r"""Exact evidence and smoothing of a state-space model, where its densities allow: finite states, or
linear-Gaussian ones.

Which of the two it is, is read off the model. Every latent site has a finite support: sums over the joint
states (forward-backward). Every latent site is real, and the second derivatives of the log density of a step
are *constants* of the traced program: then the step is

.. math:: \log m(b \mid a)\, g = -\tfrac12 \begin{pmatrix} a \\ b \end{pmatrix}^\top J \begin{pmatrix} a \\ b
    \end{pmatrix}
          + h^\top \begin{pmatrix} a \\ b \end{pmatrix} + c

in the states a before and b after it, whatever distributions and factors it was written with, missing
observations included. Messages forward and backward are then quadratic forms too (the information form of the
Kalman filter and of the two-filter smoother), and so is the joint of neighbours, which gives lag-one
covariances.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve
from numpyro.distributions import constraints

from ppl_ext.errors import ModelError
from ppl_ext.state_space.compensated_sum import Sum, plus, zero
from ppl_ext.state_space.forward_backward import smooth_finite
from ppl_ext.state_space.gaps import no_exact_answer
from ppl_ext.state_space.lagged import ORDERS, Lagged, lagged
from ppl_ext.state_space.lowering import Inputs
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.smoothed import Smoothed
from ppl_ext.tracing.depends import depends


class Form(NamedTuple):
    """A quadratic form −½ xᵀ precision x + shift·x + constant."""

    precision: jax.Array
    shift: jax.Array
    constant: jax.Array


def kind_of(ss: StateSpace) -> str | None:
    """``"finite"``, ``"gaussian"`` or ``None``: which exact answer there is for a model.

    A model without latent sites in its step has none of these forms.
    """
    sites = [*ss.initial_sites.values(), *ss.step_sites.values()]
    if not ss.step_sites or ss.not_markov is not None:
        return None
    if all(s.fn.has_enumerate_support for s in sites):
        return "finite"
    if all(_is_real(s.fn) for s in sites) and ss.num_steps and _is_quadratic(ss):
        return "gaussian"
    return None


def exact_form(ss: StateSpace) -> tuple[StateSpace | Lagged, str | None]:
    """The state-space form that an exact answer is made of, and which kind it is. Where the steps of a finite
    chain read two or three states back, its state is that of as many steps.

    Gaps that are handed on belong to the state. Where the model has an exact answer only without them, and
    nobody knows yet whether there are any, it is taken as if there were none: :meth:`StateSpace.has_gap`
    tells, and then the evidence is NaN.
    """
    if (
        (kind := kind_of(ss)) is None
        and ss.imputed
        and not any(ss.imputed.values())
        and (other := kind_of(ss.as_observed()))
    ):
        return ss.as_observed(), other
    if kind is None and ss.not_markov is not None and (longer := lagged(ss)) is not None:
        return longer, "finite"
    return ss.for_sums(), kind


def smooth_exactly(ss: StateSpace, max_states: int = 4096) -> Smoothed:
    """The exact evidence and the moments of the states given all data, by time in the order of the inputs.

    Of a chain whose steps read more than one state back the moments are those of the steps' own states, and
    the probabilities those of the joint states of as many steps.

    :raises ModelError: if the model is neither finite nor linear-Gaussian, or its joint states are more than
        ``max_states``.
    """
    found = smooth_run(ss, max_states)
    if isinstance(form := exact_form(ss)[0], Lagged):
        found = _of_steps(found, form.own_columns())
    by_time = (
        "mean",
        "covariance",
        "cross",
        "log_increments",
        "filtered_mean",
        "filtered_covariance",
        "probs",
        "filtered_probs",
        "pairs",
    )
    return found._replace(**{name: ss.ordered(getattr(found, name)) for name in by_time})


def _of_steps(s: Smoothed, own: list[int]) -> Smoothed:
    square = jnp.ix_(jnp.array(own), jnp.array(own))
    means, squares = ("mean", "filtered_mean"), ("covariance", "cross", "filtered_covariance")
    parts = {name: getattr(s, name)[:, jnp.array(own)] for name in means} | {
        name: getattr(s, name)[:, *square] for name in squares
    }
    return s._replace(**parts, first_cross=s.first_cross[:, jnp.array(own)])


def smooth_run(ss: StateSpace, max_states: int) -> Smoothed:
    """Smooth exactly, by time in the order of the run, which for a reversed scan is the other way."""
    if not ss.num_steps:
        raise ModelError(
            "The series is empty, so there is nothing to smooth exactly. Use a particle method, which then "
            "says so much."
        )
    form, kind = exact_form(ss)
    if kind == "finite":
        return _known(ss, form, smooth_finite(form, max_states))
    if kind == "gaussian" and isinstance(form, StateSpace):
        return _known(ss, form, _gaussian(form))
    if gone := [name for name, has in ss.imputed.items() if has]:
        raise ModelError(no_exact_answer(gone[0]))
    if ss.step_sites and all(site.fn.has_enumerate_support for site in ss.step_sites.values()):
        raise ModelError(
            f"No exact answer for this model: {ss.not_markov} A chain of finite states may read up to "
            f"{max(ORDERS)} steps back, if each of these states is an entry of its own in the scan's carry, "
            "and the first ones are known numbers. Else use a particle filter."
        )
    raise ModelError(
        "No exact answer for this model: its latent sites are neither all finite, nor all real with a log "
        "density that is quadratic in them (or part of its state follows from the past without noise). Use "
        "a particle filter."
    )


def _known(given: StateSpace, served: StateSpace | Lagged, s: Smoothed) -> Smoothed:
    """NaN where a gap was not served, and where there is nothing to know."""
    if given.imputed and not served.imputed:
        unserved = given.has_gap()
        s = jax.tree.map(lambda x: jnp.where(unserved, jnp.nan, x), s)
    return _told_where_lost(s)


def _told_where_lost(s: Smoothed) -> Smoothed:
    """Where no state allows a step's observations, what the filter conditions on them is NaN. (The smoother's
    moments are already.)
    """
    dead = jnp.cumsum(jnp.isneginf(jnp.concatenate([s.log_initial[None], s.log_increments]))) > 0
    so_far, before = dead[1:], dead[:-1]

    def unknown(x, when):
        return (
            None
            if x is None
            else jnp.where(when.reshape(when.shape + (1,) * (x.ndim - when.ndim)), jnp.nan, x)
        )

    filtered = ("filtered_mean", "filtered_covariance", "filtered_probs")
    return s._replace(
        log_increments=unknown(s.log_increments, before),
        **{name: unknown(getattr(s, name), so_far) for name in filtered},
    )


def exact_evidence(ss: StateSpace, max_states: int = 4096) -> jax.Array:
    """The evidence alone, compiled as one: whoever asks outside of ``jit`` would wait for each operation to
    be compiled by itself.

    :raises ModelError: as :func:`smooth_exactly`.
    """
    return jax.jit(lambda: smooth_run(ss, max_states).log_evidence)()


def _is_real(fn) -> bool:
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _flat(sites: dict) -> tuple[jax.Array, Any]:
    return ravel_pytree(
        {n: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)) for n, s in sites.items()}
    )


class Steps:
    """Log densities of a model's steps as functions of the states before and after, as flat vectors."""

    def __init__(self, ss: StateSpace | Lagged):
        self.ss = ss
        self.zero_initial, self.unravel_initial = _flat(ss.initial_sites)
        self.zero_state, self.unravel_state = _flat(ss.step_sites)

    def initial(self, a):
        start = self.ss.initial(self.unravel_initial(a))
        return start.log_initial + start.log_emission

    def first(self, a, b, x: Inputs):
        return self._density(self.ss.initial(self.unravel_initial(a)).particle, b, x)

    def later(self, a, b, x_before: Inputs, x: Inputs):
        return self._density(self.particle(a, x_before), b, x)

    def particle(self, a, x: Inputs) -> Particle:
        """The particle whose last step drew a: the carry before that step does not matter."""
        anything = self.ss.initial(self.unravel_initial(self.zero_initial)).particle
        return self.ss.step(anything, self.unravel_state(a), x).particle

    def _density(self, particle: Particle, b, x: Inputs):
        step = self.ss.step(particle, self.unravel_state(b), x)
        return step.log_transition + step.log_emission


def _is_quadratic(ss: StateSpace) -> bool:
    """Whether no second derivative depends on the states, as far as the traced program shows."""
    steps, x = Steps(ss), ss.inputs(0)
    for fn, points in (
        (lambda a: steps.initial(a), (steps.zero_initial,)),
        (lambda a, b: steps.first(a, b, x), (steps.zero_initial, steps.zero_state)),
        (lambda a, b: steps.later(a, b, x, x), (steps.zero_state, steps.zero_state)),
    ):
        numbers = tuple(range(len(points)))
        closed = jax.make_jaxpr(jax.hessian(fn, argnums=numbers))(*points)
        if any(depends(closed, [True] * len(points))):
            return False
    return True


# Linear-Gaussian


def _form(fn, *zeros) -> Form:
    """The quadratic form of a function of these vectors, together."""
    sizes = [len(z) for z in zeros]

    def joint(v):
        return fn(*jnp.split(v, list(np.cumsum(sizes))[:-1]))

    at = jnp.concatenate(zeros)
    return Form(-jax.hessian(joint)(at), jax.grad(joint)(at), joint(at))


def _integrate(form: Form, keep: slice, out: slice) -> Form:
    """log ∫ exp(form) over the coordinates ``out``, as a form in those of ``keep``."""
    precision, cross = form.precision[out, out], form.precision[keep, out]
    root = jnp.linalg.cholesky(precision)
    solved = cho_solve((root, True), jnp.concatenate([cross.T, form.shift[out][:, None]], 1))
    constant = form.constant + 0.5 * form.shift[out] @ solved[:, -1] - jnp.log(jnp.diagonal(root)).sum()
    return Form(
        form.precision[keep, keep] - cross @ solved[:, :-1],
        form.shift[keep] - cross @ solved[:, -1],
        constant + 0.5 * len(root) * math.log(2 * math.pi),
    )


def _plus(form: Form, other: Form, where: slice) -> Form:
    return Form(
        form.precision.at[where, where].add(other.precision),
        form.shift.at[where].add(other.shift),
        form.constant + other.constant,
    )


def _moments(form: Form) -> tuple[jax.Array, jax.Array]:
    root = jnp.linalg.cholesky(form.precision)
    covariance = cho_solve((root, True), jnp.eye(len(root), dtype=root.dtype))
    return covariance @ form.shift, covariance


def _gaussian(ss: StateSpace) -> Smoothed:
    steps = Steps(ss)
    n0, n = len(steps.zero_initial), len(steps.zero_state)
    x0 = ss.inputs(0)
    start = _form(steps.initial, steps.zero_initial)
    first = _form(lambda a, b: steps.first(a, b, x0), steps.zero_initial, steps.zero_state)
    pairs = jax.tree.map(lambda a: a[:-1], ss.xs), jax.tree.map(lambda a: a[1:], ss.xs)
    later = jax.vmap(
        lambda x, y: _form(lambda a, b: steps.later(a, b, x, y), steps.zero_state, steps.zero_state)
    )(*pairs)

    def forth(state, form):
        """Constants are summed apart, so that none is lost among many."""
        message, total = state
        new = _integrate(_plus(form, message, slice(0, n)), slice(n, 2 * n), slice(0, n))
        return (new._replace(constant=jnp.zeros(())), plus(total, new.constant)), (message, new.constant)

    log_first = _integrate(start, slice(0, 0), slice(0, n0)).constant
    message = _integrate(_plus(first, start, slice(0, n0)), slice(n0, n0 + n), slice(0, n0))
    state: tuple[Form, Sum] = (message._replace(constant=jnp.zeros(())), plus(zero(), message.constant))
    (last, total), (forward, constants) = lax.scan(forth, state, later)
    messages = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), forward, last)
    # What each message integrates to is, with the constants so far, the evidence of the series up to its
    # time.
    masses = jax.vmap(lambda form: _integrate(form, slice(0, 0), slice(0, n)).constant)(messages)
    evidence = plus(total, masses[-1]).value
    increments = jnp.concatenate([(message.constant - log_first)[None], constants]) + jnp.diff(
        masses, prepend=0.0
    )
    filtered_mean, filtered_covariance = jax.vmap(_moments)(messages)

    def back(message, inputs):
        form, before = inputs
        form = _plus(form, message, slice(n, 2 * n))
        joint = _plus(form, before, slice(0, n))
        new = _integrate(form, slice(0, n), slice(n, 2 * n))
        return new._replace(constant=jnp.zeros(())), _moments(joint)

    # Of data that are impossible there is no posterior, though each message is a normal law all the same.
    nothing = jnp.where(log_first + increments.min() > -jnp.inf, 0.0, jnp.nan)
    flat = Form(jnp.full((n, n), nothing), jnp.full(n, nothing), jnp.zeros(()))
    behind, (means, covariances) = lax.scan(back, flat, (later, forward), reverse=True)
    mean_0, covariance_0 = _moments(_plus(_plus(first, start, slice(0, n0)), behind, slice(n0, n0 + n)))
    return Smoothed(
        evidence,
        mean_0[:n0],
        covariance_0[:n0, :n0],
        covariance_0[:n0, n0:],
        jnp.concatenate([mean_0[None, n0:], means[:, n:]]),
        jnp.concatenate([covariance_0[None, n0:, n0:], covariances[:, n:, n:]]),
        covariances[:, :n, n:],
        log_first,
        increments,
        filtered_mean,
        filtered_covariance,
    )
