r"""Stages of a tempered run: weigh, resample, move; with temperatures that are given or found.

.. math:: \hat Z = \prod_t \frac1N \sum_i \frac{\pi_{\tau_t}(x^i_{t-1})}{\pi_{\tau_{t-1}}(x^i_{t-1})}

All shapes are fixed: a run has room for ``max_stages`` stages and ends when it is at temperature one. Given
temperatures and fits of the moves, :math:`\mathbb{E} \hat Z = Z` for every N (Del Moral, Doucet, Jasra 2006,
section 3); where they come from these same particles it is consistent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from ppl_ext.algorithms.tempered.moves import Fitted, Moves
from ppl_ext.algorithms.tempered.points import Path, Points, log_gain, points_at
from ppl_ext.densities.log_density import log_mean_exp
from ppl_ext.runtime.random_bits import split
from ppl_ext.runtime.sharding import along
from ppl_ext.state_space.compensated_sum import Sum, plus, zero
from ppl_ext.state_space.resampling import Scheme, shares, weights_of

HALVINGS = 30  # of the logarithm of a step in temperature
SMALLEST = 1e-9  # of steps in temperature that are tried, next to what is left


class Rules(NamedTuple):
    """How a run goes. ``waste_free``: every place of a chain is a particle."""

    num_particles: int
    moves: Moves
    scheme: Scheme
    ess: float
    max_stages: int
    waste_free: bool = False
    mesh: Mesh | None = None

    @property
    def num_chains(self) -> int:
        """How many ancestors there are at each stage."""
        return self.num_particles // (self.moves.num_steps + 1) if self.waste_free else self.num_particles


class Plan(NamedTuple):
    """Temperatures (S,), the last ones 1, of which ``num_stages`` are used, and what moves are fitted with
    at each, (S, ...).
    """

    temperatures: jax.Array
    fits: Fitted
    num_stages: jax.Array


class Trace(NamedTuple):
    """By stage (S,): log mean weight, effective sample size before resampling, mean acceptance."""

    increments: jax.Array
    ess: jax.Array
    acceptance: jax.Array


class State(NamedTuple):
    """A run after ``stage`` stages. ``log_evidence`` is a compensated sum, ``num_nan`` counts densities."""

    points: Points
    tau: jax.Array
    stage: jax.Array
    log_evidence: Sum
    fitted: Fitted
    acceptance: jax.Array
    plan: Plan
    trace: Trace
    num_nan: jax.Array
    key: jax.Array


def effective(log_weights: jax.Array) -> jax.Array:
    """Effective sample size; 0 if all weights are zero."""
    weights = weights_of(log_weights) * jnp.isfinite(log_weights).any()
    return jnp.square(weights.sum()) / jnp.maximum(jnp.square(weights).sum(), jnp.finfo(weights.dtype).tiny)


def next_temperature(path: Path, points: Points, tau: jax.Array, ess: float) -> jax.Array:
    """The farthest temperature at which the effective sample size is the share ``ess`` of the particles whose
    weight is not zero, by bisection on the logarithm of the step.
    """
    left = 1.0 - tau
    wanted = ess * (log_gain(path, points, tau, tau + 1e-3 * left) > -jnp.inf).sum()

    def enough(step):
        return effective(log_gain(path, points, tau, jnp.minimum(tau + step, 1.0))) >= wanted

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        is_enough = enough(left * jnp.exp(middle))
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

    low, _ = lax.fori_loop(0, HALVINGS, halve, (jnp.log(SMALLEST), jnp.zeros(())))
    found = jnp.maximum(tau + left * jnp.exp(low), jnp.nextafter(tau, 1.0))
    return jnp.where(enough(left), 1.0, jnp.minimum(found, 1.0))


def begun(key: jax.Array, path: Path, rules: Rules) -> State:
    """All particles drawn from the law at 0."""
    draw_key, key = split(key, (2,))
    position = jax.vmap(path.draw)(split(draw_key, (rules.num_particles,)))
    points, num_nan = points_at(path, position)
    return first_state(key, path, rules, points, num_nan)


def first_state(key, path: Path, rules: Rules, points: Points, num_nan) -> State:
    fitted, num = rules.moves.begin(path.size), rules.max_stages
    fitted = jax.tree.map(lambda x: jnp.asarray(x, float), fitted)
    fits = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), fitted)
    plan = Plan(jnp.ones(num), fits, jnp.zeros((), jnp.int32))
    nothing = jnp.full(num, jnp.nan)
    trace = Trace(nothing, nothing, nothing)
    start, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    points = along(rules.mesh, points)
    return State(points, start, none, zero(), fitted, jnp.full((), jnp.nan), plan, trace, num_nan, key)


def found_stage(path: Path, rules: Rules, state: State, given: jax.Array | None = None) -> State:
    """One more stage, whose temperature (unless ``given``) and fit come from the particles themselves."""
    if given is None:
        tau = next_temperature(path, state.points, state.tau, rules.ess)
    else:
        tau = given[state.stage]
    tau = jnp.where(state.stage == rules.max_stages - 1, 1.0, tau)
    log_weights = log_gain(path, state.points, state.tau, tau)
    fitted = rules.moves.fit(
        state.points, jnp.nan_to_num(shares(log_weights)), state.fitted, state.acceptance
    )
    plan = Plan(
        state.plan.temperatures.at[state.stage].set(tau),
        jax.tree.map(lambda all, x: all.at[state.stage].set(x), state.plan.fits, fitted),
        state.stage + 1,
    )
    return _stage(path, rules, state._replace(plan=plan), tau, fitted, None)


def planned_stage(path: Path, rules: Rules, state: State, plan: Plan, kept: Points | None = None) -> State:
    """One more stage of a plan; ``kept``: particles that go first and are not drawn, (1, ...) or, waste-free,
    a whole chain of them.
    """
    fitted = jax.tree.map(lambda x: x[state.stage], plan.fits)
    tau = plan.temperatures[state.stage]
    return _stage(path, rules, state._replace(plan=plan), tau, fitted, kept)


def _stage(path: Path, rules: Rules, state: State, tau, fitted: Fitted, kept: Points | None) -> State:
    key, ancestor_key, move_key = split(state.key, (3,))
    log_weights = log_gain(path, state.points, state.tau, tau)
    num = rules.num_chains - (kept is not None)
    ancestors = rules.scheme(ancestor_key, log_weights, num)
    start = jax.tree.map(lambda x: x[ancestors], state.points)
    places, tally = rules.moves.run(move_key, path, tau, start, fitted, rules.waste_free)
    if rules.waste_free:
        places = jax.tree.map(
            lambda x, more: jnp.concatenate([x[None], more]).reshape(-1, *x.shape[1:]), start, places
        )
    if kept is not None:
        places = jax.tree.map(lambda x, more: jnp.concatenate([x, more]), kept, places)
    increment = log_mean_exp(log_weights)
    stage, trace = state.stage, state.trace
    trace = Trace(
        trace.increments.at[stage].set(increment),
        trace.ess.at[stage].set(effective(log_weights)),
        trace.acceptance.at[stage].set(tally.acceptance),
    )
    evidence = plus(state.log_evidence, increment)
    # Where every weight is zero nothing that follows changes that.
    tau = jnp.where(jnp.isneginf(increment), 1.0, tau)
    return state._replace(
        points=along(rules.mesh, places),
        tau=tau,
        stage=stage + 1,
        log_evidence=evidence,
        fitted=fitted,
        acceptance=tally.acceptance,
        trace=trace,
        num_nan=state.num_nan + tally.num_nan,
        key=key,
    )


def is_under_way(state: State, rules: Rules) -> jax.Array:
    return (state.tau < 1.0) & (state.stage < rules.max_stages)


def run_found(key: jax.Array, path: Path, rules: Rules, given: jax.Array | None = None) -> State:
    """A whole run that finds its temperatures (or takes those ``given``) and its fits as it goes."""
    return lax.while_loop(
        lambda state: is_under_way(state, rules),
        lambda state: found_stage(path, rules, state, given),
        begun(key, path, rules),
    )


def run_planned(key: jax.Array, path: Path, rules: Rules, plan: Plan) -> State:
    """A whole run of a plan that does not come from its particles: the evidence is unbiased."""
    return lax.while_loop(
        lambda state: is_under_way(state, rules),
        lambda state: planned_stage(path, rules, state, plan),
        begun(key, path, rules),
    )
