r"""Particle filters, one step at a time: what all of them share.

With weights W before the step (normalised), first-stage weights V, proposal q, transition m and emission g, a step with resampling is

.. math:: A_i \sim V, \quad x_i \sim q(\cdot \mid c_{A_i}), \quad
          \omega_i = \frac{W_{A_i}}{N V_{A_i}} \, \frac{m(x_i \mid c_{A_i})\, g(y \mid c_{A_i}, x_i)}{q(x_i \mid c_{A_i})}, \quad
          \hat p(y_t \mid y_{<t}) = \sum_i \omega_i

and :math:`\hat Z`, the product of these sums, has mean Z for every N. Without resampling the first factor is :math:`W_i`. The bootstrap
filter has q = m and V = W, the guided filter another q, the auxiliary filter :math:`V \propto W \eta` with a look-ahead η (Pitt and
Shephard 1999).

:class:`State` is all that a filter remembers, of size O(N). :func:`begin` makes it, :func:`advance` takes one step, and the batch form
(:func:`run_filter`) scans that. Gradients: with :class:`Keyed` draws, the derivative of log Ẑ is Fisher's identity on the particles' own
paths,

.. math:: \nabla \log \hat Z = \sum_i W_i \nabla \log p(x^i_{0:T}, y), \qquad \mathbb{E} \nabla \hat Z = \nabla Z,

since draws are held fixed, and weights keep the factors m / (m held fixed) and W / (V held fixed) that are 1 in value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.special import logsumexp

from ppl_ext.algorithms.compensated import Sum, plus, zero
from ppl_ext.algorithms.lowering import Inputs, Terms, draw_sites
from ppl_ext.algorithms.resampling import Scheme
from ppl_ext.algorithms.state_space import Particle, StateSpace

_stop = lax.stop_gradient


class State(NamedTuple):
    """A filter after t steps. ``particles`` have a leading axis N; ``log_weights`` (N,) are normalised; ``log_evidence`` is log Ẑ so far.
    ``num_nan`` counts particles whose density was NaN: they have weight zero."""

    key: jax.Array
    particles: Particle
    log_weights: jax.Array
    log_evidence: Sum
    num_nan: jax.Array
    time: jax.Array


class Info(NamedTuple):
    """A step in numbers: ``ancestors`` (N,), ``log_increment`` = log p̂(y_t | y_<t), ``ess`` of the weights after it, ``resampled`` or
    not."""

    ancestors: jax.Array
    log_increment: jax.Array
    ess: jax.Array
    resampled: jax.Array


class Rules(NamedTuple):
    """What kind of filter: see :class:`~ppl_ext.algorithms.particle_filter.ParticleFilter`, which checks the parts."""

    num_particles: int
    scheme: Scheme
    threshold: float
    proposal: Callable | None = None
    initial_proposal: Callable | None = None
    look_ahead: Callable | None = None


class Draws(Protocol):
    """Who makes a filter's random choices, and which of its terms carry gradients."""

    fixed: bool  # draws are held fixed, and weights carry the gradient of their law

    def ancestors(self, key, log_weights: jax.Array, num: int) -> jax.Array: ...

    def values(self, one: Callable, keys, names: tuple[str, ...], *particles) -> tuple[dict[str, jax.Array], jax.Array]: ...


class Keyed:
    """Draws from keys, held fixed."""

    fixed = True

    def __init__(self, scheme: Scheme):
        self.scheme = scheme

    def ancestors(self, key, log_weights, num):
        return self.scheme(key, log_weights, num)

    def values(self, one, keys, names, *particles):
        """``one(key, *particle)`` gives a lane's values and the log density that they were drawn with."""
        values, log_q = jax.vmap(one)(keys, *particles)
        return _stop(values), log_q


@jax.custom_jvp
def only_gradient(x: jax.Array) -> jax.Array:
    """Zero, with the derivatives of x. (``x - stop_gradient(x)`` would be computed where nothing is differentiated.)"""
    return jnp.zeros_like(x)


only_gradient.defjvp(lambda primals, tangents: (jnp.zeros_like(primals[0]), tangents[0]))


def begin(ss: StateSpace, rules: Rules, key, draws: Draws | None = None) -> tuple[State, dict[str, jax.Array], Info]:
    """A filter before its first step, the initial sites of its particles, and the numbers of what is observed before the scan."""
    draws = Keyed(rules.scheme) if draws is None else draws
    key, sub = random.split(key)
    keys = random.split(sub, rules.num_particles)
    names = tuple(ss.initial_sites)

    def one(key):
        if rules.initial_proposal is None:
            values = ss.draw_initial(key)
            return values, jnp.zeros(())
        return draw_sites("initial_proposal", rules.initial_proposal, (ss.parameters,), key, ss.initial_sites)

    values, log_q = draws.values(one, keys, names)
    particles, terms = jax.vmap(ss.initial_terms, axis_size=rules.num_particles)(values)
    log_ratio = _log_ratio(terms, log_q, rules.initial_proposal is not None, draws.fixed)
    log_uniform = jnp.full(rules.num_particles, -jnp.log(rules.num_particles))
    log_weights, increment, num_nan = normalised(log_uniform + log_ratio)
    state = State(key, particles, log_weights, plus(zero(), increment), num_nan, jnp.zeros((), jnp.int32))
    return state, values, Info(jnp.arange(rules.num_particles), increment, ess(log_weights), jnp.zeros((), bool))


def advance(ss: StateSpace, rules: Rules, state: State, x_t: Inputs, draws: Draws | None = None) -> tuple[State, Info]:
    """One step of the filter: resample if need be, propose, weigh. Pure: the same state and inputs give the same step to the last bit."""
    draws = Keyed(rules.scheme) if draws is None else draws
    num = rules.num_particles
    key, for_ancestors, for_lanes = random.split(state.key, 3)
    log_first = first_stage(ss, rules, state, x_t)
    resampled, ancestors, log_before = resample(rules, draws, for_ancestors, state.log_weights, log_first, num)
    old = jax.tree.map(lambda x: x[ancestors], state.particles)
    particles, log_ratio = propose(ss, rules, draws, random.split(for_lanes, num), old, x_t)
    log_weights, increment, num_nan = normalised(log_before + log_ratio)
    new = State(key, particles, log_weights, plus(state.log_evidence, increment), state.num_nan + num_nan, state.time + 1)
    return new, Info(ancestors, increment, ess(log_weights), resampled)


def first_stage(ss: StateSpace, rules: Rules, state: State, x_t: Inputs) -> jax.Array:
    """log V, normalised."""
    if rules.look_ahead is None:
        return state.log_weights
    look = rules.look_ahead
    log_first = state.log_weights + jax.vmap(lambda p: look(ss.parameters, p.carry, x_t.x))(state.particles)
    return normalised(log_first)[0]


def resample(rules: Rules, draws: Draws, key, log_weights, log_first, num: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether, whom, and log(W / N V) of the chosen."""
    if rules.threshold >= 1:
        resampled = jnp.ones((), bool)
        ancestors = draws.ancestors(key, log_first, num)
    else:
        resampled = ess(log_first) < rules.threshold * num
        ancestors = lax.cond(resampled, lambda: draws.ancestors(key, log_first, num), lambda: jnp.arange(num, dtype=jnp.int32))
    below = _stop(log_first) if draws.fixed else log_first
    # Where no weight is positive the draw is of no use, and minus infinity less itself would be NaN.
    ratio = jnp.where(jnp.isfinite(log_weights) & jnp.isfinite(below), log_weights - below, 0.0)
    return resampled, ancestors, jnp.where(resampled, ratio[ancestors] - jnp.log(num), log_weights)


def propose(ss: StateSpace, rules: Rules, draws: Draws, keys, old: Particle, x_t: Inputs) -> tuple[Particle, jax.Array]:
    """New particles and log(m g / q)."""

    def one(key, particle):
        if rules.proposal is None:
            return ss.propagate(key, particle, x_t)[0].sites, jnp.zeros(())
        return draw_sites("proposal", rules.proposal, (ss.parameters, particle.carry, x_t.x), key, ss.step_sites)

    values, log_q = draws.values(one, keys, tuple(ss.step_sites), old)
    particles, terms = jax.vmap(lambda p, v: ss.step_terms(p, v, x_t))(old, values)
    return particles, _log_ratio(terms, log_q, rules.proposal is not None, draws.fixed)


def _log_ratio(terms: Terms, log_q, proposed: bool, fixed: bool) -> jax.Array:
    if proposed:
        return terms.observed + terms.latent - (_stop(log_q) if fixed else log_q)
    return terms.observed + terms.rescaled + (only_gradient(terms.drawn) if fixed else 0.0)


def normalised(log_weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised log weights, the log of their sum, and how many were NaN. If none is positive, all count the same from here on."""
    wrong = jnp.isnan(log_weights)
    log_weights = jnp.where(wrong, -jnp.inf, log_weights)
    possible = log_weights.max() > -jnp.inf
    safe = jnp.where(possible, log_weights, 0.0)
    total = logsumexp(safe)
    return safe - total, jnp.where(possible, total, -jnp.inf), wrong.sum(dtype=jnp.int32)


def ess(log_weights: jax.Array) -> jax.Array:
    """Effective sample size of normalised weights, between 1 and N."""
    return jnp.exp(-logsumexp(2 * _stop(log_weights)))


class Run(NamedTuple):
    """A filter over a whole series. ``info`` has a leading axis of T + 1 times, the first being that before the scan; ``history`` the
    particles and their log weights at these times, if asked for."""

    state: State
    initial: dict[str, jax.Array]
    info: Info
    history: tuple[Particle, jax.Array] | None


def run_filter(ss: StateSpace, rules: Rules, key, *, keep_history: bool = False) -> Run:
    """The batch form: :func:`begin`, then :func:`advance` scanned over the inputs."""
    state, initial, first = begin(ss, rules, key)

    def step(state: State, x_t: Inputs):
        new, info = advance(ss, rules, state, x_t)
        return new, (info, (new.particles, new.log_weights) if keep_history else None)

    start = (first, (state.particles, state.log_weights) if keep_history else None)
    state, later = lax.scan(step, state, ss.xs)
    info, history = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a, b.dtype)[None], b]), start, later)
    return Run(state, initial, info, history)


def paths(ss: StateSpace, run: Run, index: jax.Array) -> dict[str, Any]:
    """The series of the latent sites that led to particle ``index``: initial sites as they are, step sites with a time axis."""
    assert run.history is not None

    def back(i, at):
        ancestors, sites = at
        return ancestors[i], jax.tree.map(lambda x: x[i], sites)

    sites = jax.tree.map(lambda x: x[1:], run.history[0].sites)
    first, series = lax.scan(back, index, (run.info.ancestors[1:], sites), reverse=True)
    return {**jax.tree.map(lambda x: x[first], run.initial), **series}
