r"""Smoothing without error, where a model allows it: finite states, or linear-Gaussian ones
(:mod:`ppl_ext.state_space.exact`).

Functionals of finite states are summed over all pairs of neighbours. Of Gaussian ones only those of degree
two have a closed form,

.. math:: \mathbb{E}\, h(z) = h(\mu) + \tfrac12 \operatorname{tr}(\nabla^2 h \; \Sigma), \qquad
    z = (x_{t-1}, x_t) \sim \mathcal{N}(\mu, \Sigma)

and whether a functional is one is asked of its traced program, and then of its values at a few draws.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ppl_ext.errors import ModelError
from ppl_ext.smoothing.quantiles import weighted_quantiles
from ppl_ext.smoothing.space import Functional
from ppl_ext.state_space.compensated_sum import Sum, plus, two_sum
from ppl_ext.state_space.exact import Steps, exact_form, smooth_run
from ppl_ext.state_space.extinction import lost
from ppl_ext.state_space.forward_backward import joint_points
from ppl_ext.state_space.kalman import root_of
from ppl_ext.state_space.lagged import Lagged
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.prefixes import tree_sum
from ppl_ext.state_space.smoothed import Smoothed
from ppl_ext.tracing.depends import depends

MAX_STATES = 4096
METHODS = {"finite": "forward-backward", "gaussian": "Kalman"}


class Exact:
    """One series, smoothed within one trace."""

    def __init__(self, lowered: StateSpace, parallel: bool = False):
        self.lowered, self.kind = form = exact_form(lowered)
        self.smoothed: Smoothed = smooth_run(lowered, form, MAX_STATES, parallel)
        self.parallel = parallel
        self.space: StateSpace = self.lowered.space if isinstance(self.lowered, Lagged) else self.lowered
        self.steps = Steps(self.lowered)

    def expectations(self, functional: Functional | None) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Expectations of the functionals, and by name whether one has no closed form after all.

        :raises ModelError: if the program of one shows it already.
        """
        if functional is None:
            return {}, {}
        if isinstance(lagged := self.lowered, Lagged):
            functional = functional._replace(step=_on_own(functional.step, lagged))
        return self._finite(functional) if self.kind == "finite" else self._gaussian(functional)

    def states(self, values: Mapping[str, Any], x: Any) -> Particle:
        """Those of a step whose sites have these values: what lies before does not matter."""
        return Particle(self.steps.particle(ravel_pytree(dict(values))[0], x).carry, dict(values))

    def initial(self, values: Mapping[str, Any]) -> Particle:
        return Particle(self.lowered.placed(values).carry, dict(values))

    def _finite(self, functional: Functional):
        ss, smoothed = self.lowered, self.smoothed
        first, _ = joint_points(ss.initial_sites, MAX_STATES)
        later, _ = joint_points(ss.step_sites, MAX_STATES)
        anything = ss.placed({n: jnp.zeros(s.shape, s.dtype) for n, s in ss.initial_sites.items()})

        def after(x):
            return jax.vmap(lambda v: Particle(ss.moved(anything, v, x).carry, v))(later)

        def mean(probs, before, particles, x):
            values = jax.vmap(lambda a: jax.vmap(lambda b: functional.step(x, a, b))(particles))(before)
            return jax.tree.map(
                lambda v: jnp.tensordot(probs, jnp.where(_beside(probs, v) > 0, v, 0), 2), values
            )

        x0 = ss.inputs(0)
        before = jax.vmap(self.initial, axis_size=len(smoothed.first_pairs))(first)  # type: ignore[arg-type]
        total = _begun(mean(smoothed.first_pairs, before.carry, after(x0), x0))
        if functional.initial is not None:
            probs = smoothed.first_pairs.sum(1)  # type: ignore[union-attr]
            values = jax.vmap(functional.initial, axis_size=len(probs))(before)
            total = _added(total, jax.tree.map(lambda v: jnp.tensordot(probs, v, 1), values))
        given = smoothed.pairs, jax.tree.map(lambda a: a[1:], ss.xs)
        if self.parallel:
            states = jax.vmap(lambda x: after(x).carry)(jax.tree.map(lambda a: a[:-1], ss.xs))
            values = jax.vmap(lambda carry, probs, x: mean(probs, carry, after(x), x))(states, *given)
            return _sums(_all_added(total, values)), {}

        def body(state, at):
            total, carry = state
            probs, x = at
            particles = after(x)
            return (_added(total, mean(probs, carry, particles, x)), particles.carry), None

        (total, _), _ = jax.lax.scan(body, (total, after(x0).carry), given)
        return _sums(total), {}

    def _gaussian(self, functional: Functional):
        ss, s, steps = self.lowered, self.smoothed, self.steps
        n0, n = len(steps.zero_initial), len(steps.zero_state)

        def at_first(z, x):
            before = self.initial(steps.unravel_initial(z[:n0]))
            return functional.step(x, before.carry, self.states(steps.unravel_state(z[n0:]), x))

        def at(z, inputs):
            x_before, x = inputs
            before = steps.particle(z[:n], x_before).carry
            return functional.step(x, before, self.states(steps.unravel_state(z[n:]), x))

        def of_initial(z, _):
            values = functional.initial(self.initial(steps.unravel_initial(z)))  # type: ignore[misc]
            return {name: v for name, v in values.items() if v is not None}

        x0, x = ss.inputs(0), jax.tree.map(lambda a: a[1:], ss.xs)
        x_before = jax.tree.map(lambda a: a[:-1], ss.xs)
        mean_0, cov_0 = _joint(
            s.initial_mean, s.mean[0], s.initial_covariance, s.covariance[0], s.first_cross
        )
        _refuse_curved(at_first, mean_0, x0)
        first, bad = _quadratic(at_first, mean_0, cov_0, x0)
        total, wrong = _begun(first), bad
        if functional.initial is not None and jax.eval_shape(of_initial, s.initial_mean, None):
            _refuse_curved(of_initial, s.initial_mean, None)
            value, bad = _quadratic(of_initial, s.initial_mean, s.initial_covariance, None)
            total, wrong = _added(total, value), wrong | {name: wrong[name] | b for name, b in bad.items()}
        means, covs = jax.vmap(_joint)(s.mean[:-1], s.mean[1:], s.covariance[:-1], s.covariance[1:], s.cross)

        if self.parallel:
            values, bad = jax.vmap(partial(_quadratic, at))(means, covs, (x_before, x))
            return _sums(_all_added(total, values)), {n: wrong[n] | bad[n].any() for n in wrong}

        def body(state, given):
            total, wrong = state
            mean, cov, inputs = given
            value, bad = _quadratic(at, mean, cov, inputs)
            return (_added(total, value), {name: wrong[name] | bad[name] for name in wrong}), None

        (total, wrong), _ = jax.lax.scan(body, (total, wrong), (means, covs, (x_before, x)))
        return _sums(total), wrong

    def draws(self, rng_key: jax.Array, num: int) -> dict[str, jax.Array]:
        """Whole trajectories, by latent site (num, ...) and (num, T, ...)."""
        one = self._draw_finite if self.kind == "finite" else self._draw_gaussian
        values = jax.vmap(lambda key: self.lowered.ordered_values(one(key)))(jax.random.split(rng_key, num))
        return lost(values, jnp.isneginf(self.smoothed.log_evidence))

    def _draw_finite(self, rng_key):
        ss, s = self.lowered, self.smoothed
        first, _ = joint_points(ss.initial_sites, MAX_STATES)
        later, _ = joint_points(ss.step_sites, MAX_STATES)

        def back(index, at):
            key, pairs = at
            chosen = _choose(key, pairs[:, index])
            return chosen, index

        last_key, first_key, back_key = jax.random.split(rng_key, 3)
        last = _choose(last_key, s.probs[-1])  # type: ignore[index]
        index, rest = jax.lax.scan(
            back, last, (jax.random.split(back_key, ss.num_steps - 1), s.pairs), reverse=True
        )
        indices = jnp.concatenate([index[None], rest])
        start = _choose(first_key, s.first_pairs[:, index])  # type: ignore[index]
        return jax.tree.map(lambda v: v[start], first) | jax.tree.map(lambda v: v[indices], later)

    def _draw_gaussian(self, rng_key):
        ss, s, steps = self.lowered, self.smoothed, self.steps

        def back(later, given):
            key, behind = given
            return _earlier(key, behind, later), later

        last_key, first_key, back_key = jax.random.split(rng_key, 3)
        last = _normal(last_key, s.mean[-1], s.covariance[-1])
        keys = jax.random.split(back_key, ss.num_steps - 1)
        x1, rest = jax.lax.scan(back, last, (keys, s.behind), reverse=True)
        x0 = _earlier(first_key, s.first_behind, x1)
        states = jnp.concatenate([x1[None], rest])
        return {**steps.unravel_initial(x0), **jax.vmap(steps.unravel_state)(states)}

    def quantiles(self, levels: jax.Array) -> dict[str, jax.Array]:
        """Quantiles of the filtering law, by site of a step: (levels, T, ...)."""
        s = self.smoothed
        if self.kind == "gaussian":
            spread = jnp.sqrt(jnp.diagonal(s.filtered_covariance, axis1=1, axis2=2))
            flat = s.filtered_mean + jax.scipy.special.ndtri(levels)[:, None, None] * spread
        else:
            assert s.points is not None  # of finite states
            points = s.points
            flat = jnp.moveaxis(
                jax.vmap(lambda p: weighted_quantiles(points, p, levels))(s.filtered_probs), 1, 0
            )
        unknown = jnp.isnan(s.filtered_mean).any(1)
        return jax.vmap(lambda series: self.lowered.ordered_values(jax.vmap(self._state)(series, unknown)))(
            flat
        )

    def _state(self, flat, unknown) -> dict[str, jax.Array]:
        return lost(self.steps.unravel_state(flat), unknown)


def _on_own(step, lagged: Lagged):
    """A functional's step, which knows nothing of the copies of earlier states."""

    def run(x, before, particle):
        return step(x.own, before, Particle(particle.carry, lagged.own(particle.sites)))

    return run


def _choose(key, weights) -> jax.Array:
    return jax.random.categorical(key, jnp.log(weights))


def _normal(key, mean, covariance) -> jax.Array:
    return mean + root_of(covariance) @ jax.random.normal(key, mean.shape)


def _earlier(key, behind, later) -> jax.Array:
    """A draw of a state given the one after it."""
    given, gain, at = behind
    return _normal(key, given.mean + gain @ (later - at), given.covariance)


def _joint(mean_a, mean_b, cov_a, cov_b, cross):
    return jnp.concatenate([mean_a, mean_b]), jnp.block([[cov_a, cross], [cross.T, cov_b]])


def _refuse_curved(fn, point, inputs) -> None:
    """:raises ModelError: if a second derivative of a functional depends on the state."""
    closed, found = jax.make_jaxpr(jax.hessian(lambda z: fn(z, inputs)), return_shape=True)(point)
    names = [name for name, values in sorted(found.items()) for _ in jax.tree.leaves(values)]
    if curved := [name for name, moves in zip(names, depends(closed, [True]), strict=True) if moves]:
        raise ModelError(no_closed_form(curved[0]))


def no_closed_form(name: str) -> str:
    return (
        f"The functional '{name}' has no closed form: the model is linear-Gaussian, and it is no polynomial "
        "of degree two in the states before and after a step. Use another backward kernel, such as "
        "backward='mcmc'."
    )


def _quadratic(fn, mean, covariance, inputs) -> tuple[Any, dict[str, jax.Array]]:
    """The expectation of a functional, if it is a quadratic function of a Gaussian state, and by name whether
    it is not.
    """

    def with_value(z):
        found = fn(z, inputs)
        return found, found

    def with_slope(z):
        slope, value = jax.jacrev(with_value, has_aux=True)(z)
        return slope, (slope, value)

    curve, (slope, value) = jax.jacfwd(with_slope, has_aux=True)(mean)
    found = jax.tree.map(lambda v, h: v + 0.5 * jnp.tensordot(h, covariance, 2), value, curve)
    noise = jax.random.normal(jax.random.key(0), (8, len(mean))) * jnp.array([1.0, 3.0] * 4)[:, None]

    def differs(away):
        def leaf(there, v, g, h):
            parts = (v, g @ away, 0.5 * (h @ away) @ away)
            size = sum((jnp.abs(part) for part in parts), jnp.abs(there))
            return jnp.any(~(jnp.abs(there - sum(parts)) <= 1e-3 * size + 1e-6))

        leaves = jax.tree.map(leaf, fn(mean + away, inputs), value, slope, curve)
        return {name: jnp.any(jnp.stack(jax.tree.leaves(flags))) for name, flags in leaves.items()}

    wrong = jax.vmap(differs)(noise @ root_of(covariance).T)
    # of data that are impossible nothing is known, which is no fault of the functional
    known = ~jnp.isnan(mean).any()
    return found, {name: flags.any() & known for name, flags in wrong.items()}


def _beside(probs, values) -> jax.Array:
    return probs.reshape(probs.shape + (1,) * (values.ndim - probs.ndim))


def _begun(values: Any) -> Any:
    return jax.tree.map(lambda v: Sum(v, jnp.zeros_like(v)), values)


def _added(total: Any, values: Any) -> Any:
    """With compensation; what ``values`` lacks stays as it is."""
    if isinstance(total, Sum):
        return total if values is None else plus(total, values)
    if isinstance(total, dict):
        return {
            name: _added(part, None if values is None else values.get(name)) for name, part in total.items()
        }
    leaves, tree = jax.tree.flatten(total, is_leaf=lambda x: isinstance(x, Sum))
    given = [None] * len(leaves) if values is None else jax.tree.leaves(values)
    return jax.tree.unflatten(tree, [_added(part, value) for part, value in zip(leaves, given, strict=True)])


def _all_added(total: Any, values: Any) -> Any:
    """Those of all later steps at once, stacked."""
    if not len(jax.tree.leaves(values)[0]):
        return total
    return jax.tree.map(
        lambda so_far, v: two_sum(so_far, tree_sum(v)), total, values, is_leaf=lambda x: isinstance(x, Sum)
    )


def _sums(total: Any) -> Any:
    return jax.tree.map(lambda x: x.value, total, is_leaf=lambda x: isinstance(x, Sum))
