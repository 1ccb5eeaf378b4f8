r"""Exact evidence and smoothing of a state-space model, where its densities allow: finite states, or linear-Gaussian ones.

Which of the two it is, is read off the model. Every latent site has a finite support: sums over the joint states (forward-backward). Every
latent site is real, and the second derivatives of the log density of a step are *constants* of the traced program: then the step is

.. math:: \log m(b \mid a)\, g = -\tfrac12 \begin{pmatrix} a \\ b \end{pmatrix}^\top J \begin{pmatrix} a \\ b \end{pmatrix}
          + h^\top \begin{pmatrix} a \\ b \end{pmatrix} + c

in the states a before and b after it, whatever distributions and factors it was written with, missing observations included. Messages
forward and backward are then quadratic forms too (the information form of the Kalman filter and of the two-filter
smoother), and so is the joint of neighbours, which gives lag-one covariances.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from ppl_ext.algorithms.compensated import Sum, plus, zero
from ppl_ext.algorithms.constancy import depends
from ppl_ext.algorithms.lowering import Inputs
from ppl_ext.algorithms.state_space import Particle, StateSpace
from ppl_ext.choices import elements
from ppl_ext.errors import ModelError
from ppl_ext.gradients import finite_support


class Smoothed(NamedTuple):
    """``log_evidence`` is log p(y); ``initial`` and ``states`` hold moments by site, the latter with a leading time axis.

    ``mean`` and ``covariance`` are of the joint state of all sites (raveled, in the order of ``names``), (T, d) and (T, d, d); ``cross``
    (T, d₋, d) is the covariance of the state before a step and after it; for the first step that of the initial sites.  Finite models
    also have ``probs`` (T, K) over ``points`` (K, d), the joint states; for Gaussian ones both are ``None``.
    """

    log_evidence: jax.Array
    initial_mean: jax.Array
    initial_covariance: jax.Array
    first_cross: jax.Array
    mean: jax.Array
    covariance: jax.Array
    cross: jax.Array
    probs: jax.Array | None = None
    points: jax.Array | None = None


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


def smooth_exactly(ss: StateSpace, max_states: int = 4096) -> Smoothed:
    """The exact evidence and the moments of the states given all data.

    :raises ModelError: if the model is neither finite nor linear-Gaussian, or its joint states are more than ``max_states``.
    """
    match kind_of(ss):
        case "finite":
            return _finite(ss, max_states)
        case "gaussian":
            return _gaussian(ss)
    raise ModelError(
        "No exact answer for this model: its latent sites are neither all finite, nor all real with a log density that is quadratic in "
        "them (or part of its state follows from the past without noise). Use a particle filter."
    )


def _is_real(fn) -> bool:
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _flat(sites: dict) -> tuple[jax.Array, Any]:
    return ravel_pytree({n: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)) for n, s in sites.items()})


class _Steps:
    """Log densities of a model's steps as functions of the states before and after, as flat vectors."""

    def __init__(self, ss: StateSpace):
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
    steps, x = _Steps(ss), ss.inputs(0)
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
    return Form(form.precision.at[where, where].add(other.precision), form.shift.at[where].add(other.shift), form.constant + other.constant)


def _moments(form: Form) -> tuple[jax.Array, jax.Array]:
    root = jnp.linalg.cholesky(form.precision)
    covariance = cho_solve((root, True), jnp.eye(len(root), dtype=root.dtype))
    return covariance @ form.shift, covariance


def _gaussian(ss: StateSpace) -> Smoothed:
    steps = _Steps(ss)
    n0, n = len(steps.zero_initial), len(steps.zero_state)
    x0 = ss.inputs(0)
    start = _form(steps.initial, steps.zero_initial)
    first = _form(lambda a, b: steps.first(a, b, x0), steps.zero_initial, steps.zero_state)
    pairs = jax.tree.map(lambda a: a[:-1], ss.xs), jax.tree.map(lambda a: a[1:], ss.xs)
    later = jax.vmap(lambda x, y: _form(lambda a, b: steps.later(a, b, x, y), steps.zero_state, steps.zero_state))(*pairs)

    def forth(state, form):
        """Constants are summed apart, so that none is lost among many."""
        message, total = state
        new = _integrate(_plus(form, message, slice(0, n)), slice(n, 2 * n), slice(0, n))
        return (new._replace(constant=jnp.zeros(())), plus(total, new.constant)), message

    message = _integrate(_plus(first, start, slice(0, n0)), slice(n0, n0 + n), slice(0, n0))
    state: tuple[Form, Sum] = (message._replace(constant=jnp.zeros(())), plus(zero(), message.constant))
    (last, total), forward = lax.scan(forth, state, later)
    nothing = slice(0, 0)
    evidence = plus(total, _integrate(last, nothing, slice(0, n)).constant).value

    def back(message, inputs):
        form, before = inputs
        form = _plus(form, message, slice(n, 2 * n))
        joint = _plus(form, before, slice(0, n))
        new = _integrate(form, slice(0, n), slice(n, 2 * n))
        return new._replace(constant=jnp.zeros(())), _moments(joint)

    flat = Form(jnp.zeros((n, n)), jnp.zeros(n), jnp.zeros(()))
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
    )


# Finite


def _points(sites: dict, max_states: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every joint value of the sites, by site and raveled."""
    supports, total = {}, 1
    for name, site in sites.items():
        values = np.asarray(finite_support(elements(site.fn))).reshape(-1)
        supports[name] = values
        total *= len(values) ** math.prod(site.shape)
    if total > max_states:
        raise ModelError(f"The sites {', '.join(map(repr, sites))} have {total} joint states, more than max_states={max_states}.")
    out, stride = {}, 1
    for name, site in sites.items():
        size, count = len(supports[name]), math.prod(site.shape)
        digits = (np.arange(total) // stride)[:, None] // size ** np.arange(count) % size
        stride *= size**count
        out[name] = jnp.asarray(supports[name][digits].reshape(total, *site.shape), site.dtype)
    flat = [v.reshape(total, -1).astype(jnp.float32) for v in jax.tree.leaves(out)]
    return out, jnp.concatenate(flat, 1) if flat else jnp.zeros((total, 0))


def _finite(ss: StateSpace, max_states: int) -> Smoothed:
    start_values, start_points = _points(ss.initial_sites, max_states)
    values, points = _points(ss.step_sites, max_states)
    start = jax.vmap(ss.initial, axis_size=len(start_points))(start_values)

    def densities(particles: Particle, x):
        """log m g of every state after every state, and the particles in the new states."""
        step = jax.vmap(lambda p: jax.vmap(lambda v: ss.step(p, v, x))(values))(particles)
        return step.log_transition + step.log_emission, jax.tree.map(lambda leaf: leaf[0], step.particle)

    def forth(state, x):
        particles, log_alpha, total = state
        log_density, new = densities(particles, x)
        joint = log_alpha[:, None] + log_density
        alpha = logsumexp(joint, axis=0)
        norm = logsumexp(alpha)
        norm = jnp.where(jnp.isfinite(norm), norm, 0.0)
        lost = jnp.where(jnp.isfinite(logsumexp(alpha)), 0.0, -jnp.inf)
        return (new, alpha - norm, plus(total, norm + lost)), (log_alpha, log_density)

    log_alpha = start.log_initial + start.log_emission
    state = (start.particle, log_alpha, zero())
    if not ss.num_steps:
        raise ModelError("The series is empty, so there is nothing to smooth.")
    state, (alpha_0, density_0) = forth(state, ss.inputs(0))
    (_, last, total), (alphas, log_densities) = lax.scan(forth, state, jax.tree.map(lambda a: a[1:], ss.xs))

    def back(log_beta, inputs):
        alpha, density = inputs
        joint = alpha[:, None] + density + log_beta[None]
        probs = jnp.exp(joint - logsumexp(joint))
        beta = logsumexp(density + log_beta[None], axis=1)
        return beta - beta.max(), probs

    behind, pairs = lax.scan(back, jnp.zeros_like(last), (alphas, log_densities), reverse=True)
    _, pair_0 = back(behind, (alpha_0, density_0))
    mean_0, covariance_0, _ = _weighted(pair_0.sum(1), start_points)
    probs = jnp.concatenate([pair_0.sum(0)[None], pairs.sum(1)])
    mean, covariance, _ = jax.vmap(lambda p: _weighted(p, points))(probs)
    before = jnp.concatenate([mean[:-1]])
    cross = jnp.einsum("tij,ia,jb->tab", pairs, points, points) - before[:, :, None] * mean[1:, None]
    first_cross = jnp.einsum("ij,ia,jb->ab", pair_0, start_points, points) - mean_0[:, None] * mean[0][None]
    return Smoothed(total.value, mean_0, covariance_0, first_cross, mean, covariance, cross, probs, points)


def _weighted(probs, points):
    mean = probs @ points
    return mean, (points - mean).T @ (probs[:, None] * (points - mean)), probs
