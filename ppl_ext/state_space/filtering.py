r"""Particle filters, one step at a time: what all of them share.

With weights W before the step (normalised), first-stage weights V, proposal q, transition m and emission g, a
step with resampling is

.. math:: A_i \sim V, \quad x_i \sim q(\cdot \mid c_{A_i}), \quad
          \omega_i = \frac{W_{A_i}}{N V_{A_i}} \, \frac{m(x_i \mid c_{A_i})\, g(y \mid c_{A_i}, x_i)}{q(x_i
          \mid c_{A_i})}, \quad \hat p(y_t \mid y_{<t}) = \sum_i \omega_i

and :math:`\hat Z`, the product of these sums, has mean Z for every N. Without resampling the first factor is
:math:`W_i`. The bootstrap filter has q = m and V = W, the guided filter another q, the auxiliary filter
:math:`V \propto W \eta` with a look-ahead η (Pitt and Shephard 1999).

:class:`State` is all that a filter remembers, of size O(N). :func:`begin` makes it, :func:`advance` takes one
step, and the batch form (:func:`run_filter`) scans that. Gradients: with :class:`Keyed` draws, the derivative
of log Ẑ is Fisher's identity on the particles' own paths,

.. math:: \nabla \log \hat Z = \sum_i W_i \nabla \log p(x^i_{0:T}, y), \qquad \mathbb{E} \nabla \hat Z =
    \nabla Z,

since draws are held fixed, and weights keep the factors m / (m held fixed) and W / (V held fixed) that are 1
in value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.special import logsumexp
from jax.sharding import Mesh

from ppl_ext.runtime.sharding import along, gathered
from ppl_ext.state_space.compensated_sum import Sum, plus, zero
from ppl_ext.state_space.lowering import Inputs
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.particle_keys import LaneKeys
from ppl_ext.state_space.resampling import Scheme, independent
from ppl_ext.state_space.site_runs import Terms, run_proposal

_stop = lax.stop_gradient


class State(NamedTuple):
    """A filter after t steps. ``particles`` have a leading axis N; ``log_weights`` (N,) are normalised;
    ``log_evidence`` is log Ẑ so far. ``num_nan`` counts particles whose density was NaN: they have weight
    zero. ``died`` is t after the first step that no particle survived, 0 if that is what is observed before
    the scan, and -1 while there are survivors: then all weights are zero, and after that step they are
    NaN."""

    key: jax.Array
    particles: Particle
    log_weights: jax.Array
    log_evidence: Sum
    num_nan: jax.Array
    time: jax.Array
    died: jax.Array


class Info(NamedTuple):
    """A step in numbers: ``ancestors`` (N,), ``log_increment`` = log p̂(y_t | y_<t), ``ess`` of the weights
    after it, ``resampled`` or not. Where no particle survives the increment is minus infinity and ``ess`` is
    0; later ones are NaN."""

    ancestors: jax.Array
    log_increment: jax.Array
    ess: jax.Array
    resampled: jax.Array


class Rules(NamedTuple):
    """What kind of filter: see :class:`~ppl_ext.algorithms.particle_filter.ParticleFilter`, which checks the
    parts.
    """

    num_particles: int
    scheme: Scheme
    threshold: float
    proposal: Callable | None = None
    initial_proposal: Callable | None = None
    look_ahead: Callable | None = None
    params: dict[str, Any] = {}  # values of numpyro.param sites in the proposals
    mesh: Mesh | None = None  # devices over which the particles are spread


class Draws(Protocol):
    """Who makes a filter's random choices, and which of its terms carry gradients."""

    fixed: bool  # draws are held fixed, and weights carry the gradient of their law

    def ancestors(self, key, log_weights: jax.Array, num: int) -> jax.Array: ...

    def values(
        self, one: Callable, keys: LaneKeys, names, *particles, frozen=None
    ) -> tuple[dict[str, jax.Array], jax.Array]: ...


class Keyed:
    """Draws from keys, held fixed."""

    fixed = True

    def __init__(self, scheme: Scheme):
        self.scheme = scheme

    def ancestors(self, key, log_weights, num):
        return self.scheme(key, log_weights, num)

    def values(self, one, keys, names, *particles, frozen=None):
        """The lanes' values, and the log density that they were drawn with. ``one(given, key, *particle)``
        runs a lane and returns both and the sites of the run; ``frozen`` holds the values that the first lane
        gets instead."""
        values, log_q = keys.each(lambda *lane: one({}, *lane)[:2], *particles)
        if frozen is not None:
            values = jax.tree.map(
                lambda x, z: jnp.concatenate([jnp.asarray(z, x.dtype)[None], x[1:]]), values, frozen
            )
            log_q = keys.each(lambda key, given, *particle: one(given, key, *particle)[1], values, *particles)
        return _stop(values), log_q


@jax.custom_jvp
def only_gradient(x: jax.Array) -> jax.Array:
    """Zero, with the derivatives of x. (``x - stop_gradient(x)`` would be computed where nothing is
    differentiated.)
    """
    # Not a bare zeros_like: under vmap it has no batch axis where its tangent has one, which JAX 0.10 cannot
    # join in a scan.
    return jnp.where(jnp.ones_like(x, bool), jnp.zeros_like(x), x)


only_gradient.defjvp(lambda primals, tangents: (only_gradient(primals[0]), tangents[0]))


def begin(
    ss: StateSpace, rules: Rules, key, draws: Draws | None = None, frozen=None
) -> tuple[State, dict[str, jax.Array], Info]:
    """A filter before its first step, the initial sites of its particles, and the numbers of what is observed
    before the scan.

    :param frozen: initial sites of the first lane, in a conditional run."""
    draws, num, program = draws or Keyed(rules.scheme), rules.num_particles, rules.initial_proposal
    key, sub = random.split(key)

    def one(given, key):
        if program is None:
            return _ran(ss.run_initial(given, key), ss.initial_sites)
        args = (ss.parameters,), given, key, ss.initial_sites, rules.params
        return _ran(run_proposal("initial_proposal", program, *args), ss.initial_sites)

    values, log_q = draws.values(one, LaneKeys(sub, num), tuple(ss.initial_sites), frozen=frozen)
    particles, terms = jax.vmap(ss.initial_terms, axis_size=num)(values)
    particles, log_ratio = _spread(
        rules, particles, _log_ratio(terms, log_q, program is not None, draws.fixed)
    )
    log_weights, increment, num_nan = normalised(jnp.full(num, -jnp.log(num)) + log_ratio)
    died = jnp.where(jnp.isneginf(increment), 0, -1).astype(jnp.int32)
    state = State(
        key, particles, log_weights, plus(zero(), increment), num_nan, jnp.zeros((), jnp.int32), died
    )
    return state, values, Info(jnp.arange(num), increment, ess(log_weights), jnp.zeros((), bool))


def _propose(ss: StateSpace, rules: Rules, particle: Particle, x_t: Inputs, given: dict[str, Any], key):
    """One lane's latent sites of a step, drawn but where ``given``; the log density they were drawn with, and
    the sites of the run.
    """
    if rules.proposal is None:
        return _ran(ss.run_step(particle, given, x_t, key), ss.step_sites)
    args, own = (
        (ss.parameters, particle.carry, x_t.x),
        {n: s for n, s in ss.step_sites.items() if n not in ss.imputed},
    )
    proposed = {n: v for n, v in given.items() if n in own}
    values, log_q, sites = _ran(
        run_proposal("proposal", rules.proposal, args, proposed, key, own, rules.params), own
    )
    if not ss.imputed:
        return values, log_q, sites
    # What was not seen is drawn from its law at the proposed states, whatever the proposal says of these.
    record = ss.run_step(particle, {**given, **values}, x_t, None if key is None else key.apart(0x6A9))
    drawn = {n: record.sites[n]["value"] for n in ss.imputed}
    log_q = log_q + sum((record.imputed_law(n) for n in ss.imputed), jnp.zeros(()))
    return {**values, **drawn}, log_q, {**sites, **{n: record.sites[n] for n in ss.imputed}}


def _ran(record, wanted):
    values = {n: record.sites[n]["value"] for n in wanted}
    return values, record.terms(frozenset(wanted), {}).drawn, {n: record.sites[n] for n in wanted}


def advance(
    ss: StateSpace,
    rules: Rules,
    state: State,
    x_t: Inputs,
    draws: Draws | None = None,
    frozen: dict[str, jax.Array] | None = None,
) -> tuple[State, Info]:
    """One step of the filter: resample if need be, propose, weigh. Pure: the same state and inputs give the
    same step to the last bit.

    :param frozen: latent sites of the first lane, in a conditional run: it is its own ancestor, and the
        others are drawn independently, whatever the scheme, as the law of a conditional run
        wants (Andrieu, Doucet, Holenstein 2010, § 4.3).
    """
    draws = draws or Keyed(rules.scheme if frozen is None else independent)
    num = rules.num_particles
    state = whole_weights(rules, state)
    key, for_ancestors, for_lanes = random.split(state.key, 3)
    log_first = first_stage(ss, rules, state, x_t)
    resampled, ancestors, log_before = resample(
        rules, draws, for_ancestors, state.log_weights, log_first, num, frozen is not None
    )
    ancestors, log_before = gathered(rules.mesh, (ancestors, log_before))
    old = jax.tree.map(lambda x: x[ancestors], state.particles)
    particles, log_ratio = propose(ss, rules, draws, LaneKeys(for_lanes, num), old, x_t, frozen)
    alive = state.died < 0
    log_weights, increment, num_nan = normalised(log_before + log_ratio, alive)
    time, num_nan = state.time + 1, state.num_nan + jnp.where(alive, num_nan, 0)
    died = jnp.where(alive & jnp.isneginf(increment), time, state.died)
    # What has become zero stays so, though the later terms are NaN.
    log_evidence = plus(state.log_evidence, jnp.where(alive, increment, 0.0))
    new = State(key, particles, log_weights, log_evidence, num_nan, time, died)
    return new, Info(ancestors, increment, ess(log_weights), resampled)


def whole_weights(rules: Rules, state: State) -> State:
    """With all of the weights on each device. What a loop carries lies where the compiler thinks best, for
    what is done after the loop, say; spread, every running sum that ancestors are read off would send its
    parts from device to device."""
    return state._replace(log_weights=gathered(rules.mesh, state.log_weights))


def first_stage(ss: StateSpace, rules: Rules, state: State, x_t: Inputs) -> jax.Array:
    """log V, normalised."""
    if rules.look_ahead is None:
        return state.log_weights
    look = rules.look_ahead
    log_first = state.log_weights + jax.vmap(lambda p: look(ss.parameters, p.carry, x_t.x))(state.particles)
    log_first, total, _ = normalised(log_first)
    # a guess that excludes everyone is none
    return jnp.where(jnp.isneginf(total), -jnp.log(rules.num_particles), log_first)


def resample(rules: Rules, draws: Draws, key, log_weights, log_first, num: int, through: bool = False):
    """Whether, whom, and log(W / N V) of the chosen. ``through``: the first lane keeps its ancestor, the
    first.
    """

    def drawn():
        if not through:
            return draws.ancestors(key, log_first, num)
        rest = draws.ancestors(key, log_first, num - 1) if num > 1 else jnp.zeros(0, jnp.int32)
        return jnp.concatenate([jnp.zeros(1, jnp.int32), rest])

    if rules.threshold >= 1:
        resampled, ancestors = jnp.ones((), bool), drawn()
    elif rules.threshold <= 0:
        return jnp.zeros((), bool), jnp.arange(num, dtype=jnp.int32), log_weights
    else:
        resampled = ess(log_first) < rules.threshold * num
        ancestors = lax.cond(resampled, drawn, lambda: jnp.arange(num, dtype=jnp.int32))
    below = _stop(log_first) if draws.fixed else log_first
    # Where no weight is positive the draw is of no use, and minus infinity less itself would be NaN.
    ratio = jnp.where(jnp.isfinite(log_weights) & jnp.isfinite(below), log_weights - below, 0.0)
    return resampled, ancestors, jnp.where(resampled, ratio[ancestors] - jnp.log(num), log_weights)


def propose(
    ss: StateSpace, rules: Rules, draws: Draws, keys: LaneKeys, old: Particle, x_t: Inputs, frozen=None
) -> tuple[Particle, jax.Array]:
    """New particles and log(m g / q)."""

    def one(given, key, particle):
        return _propose(ss, rules, particle, x_t, given, key)

    values, log_q = draws.values(one, keys, tuple(ss.step_sites), old, frozen=frozen)
    particles, terms = jax.vmap(lambda p, v: ss.step_terms(p, v, x_t))(old, values)
    return _spread(rules, particles, _log_ratio(terms, log_q, rules.proposal is not None, draws.fixed))


def _spread(rules: Rules, particles: Particle, log_ratio: jax.Array) -> tuple[Particle, jax.Array]:
    """Each device moves and weighs its own particles. Every one gets all of the weights, N numbers, so that
    their sum and the ancestors are worked out alike wherever the particles lie."""
    return along(rules.mesh, particles), gathered(rules.mesh, log_ratio)


def _log_ratio(terms: Terms, log_q, proposed: bool, fixed: bool) -> jax.Array:
    if proposed:
        return terms.observed + terms.latent - (_stop(log_q) if fixed else log_q)
    return terms.observed + terms.rescaled + (only_gradient(terms.drawn) if fixed else 0.0)


def normalised(
    log_weights: jax.Array, alive: jax.Array | bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised log weights, the log of their sum, and how many were NaN. If none is positive all stay zero;
    where none was before (not ``alive``), there is nothing to weigh, and weights and sum are NaN."""
    wrong = jnp.isnan(log_weights)
    log_weights = jnp.where(wrong, -jnp.inf, log_weights)
    possible = log_weights.max() > -jnp.inf
    safe = jnp.where(possible, log_weights, 0.0)
    total = logsumexp(safe)
    shift, total = jnp.where(possible, total, jnp.inf), jnp.where(possible, total, -jnp.inf)
    return (
        safe - jnp.where(alive, shift, jnp.nan),
        jnp.where(alive, total, jnp.nan),
        wrong.sum(dtype=jnp.int32),
    )


def ess(log_weights: jax.Array) -> jax.Array:
    """Effective sample size of normalised weights, between 1 and N; 0 where all are zero."""
    squares = jnp.sum(jnp.exp(2 * _stop(log_weights)))  # the largest is at least 1/N, and its square no zero
    return jnp.where(squares == 0, 0.0, 1 / squares)


class FilterRun(NamedTuple):
    """A filter over a whole series. ``info`` has a leading axis of T + 1 times, the first being that before
    the scan; ``history`` the particles and their log weights at these times, if asked for. Times are those of
    the run, for a reversed scan as well."""

    state: State
    initial: dict[str, jax.Array]
    info: Info
    history: tuple[Particle, jax.Array] | None


def run_filter(
    ss: StateSpace,
    rules: Rules,
    key,
    *,
    keep_history: bool = False,
    draws: Draws | None = None,
    through: dict[str, jax.Array] | None = None,
    loop: Callable = lax.scan,
) -> FilterRun:
    """The batch form: :func:`begin`, then :func:`advance` scanned over the inputs.

    :param through: a path (initial sites, and step sites in the order of the inputs) that the first lane
        follows: a conditional run.
    :param loop: ``jax.lax.scan``, or NumPyro's, where the draws are sites.
    """
    start_at, series = apart(ss, through)
    state, initial, first = begin(ss, rules, key, draws, start_at)

    def step(state: State, inputs):
        x_t, frozen = inputs
        new, info = advance(ss, rules, state, x_t, draws, frozen)
        return new, (info, (new.particles, new.log_weights) if keep_history else None)

    start = (first, (state.particles, state.log_weights) if keep_history else None)
    state, later = loop(step, state, (ss.xs, ss.ordered(series)))
    info, history = jax.tree.map(
        lambda a, b: jnp.concatenate([jnp.asarray(a, b.dtype)[None], b]), start, later
    )
    return FilterRun(state, initial, info, history)


def apart(ss: StateSpace, path: dict[str, jax.Array] | None) -> tuple[Any, Any]:
    """The initial sites of a path, and those of its steps; None of none."""
    if path is None:
        return None, None
    return {n: path[n] for n in ss.initial_sites}, {n: path[n] for n in ss.step_sites}


def paths(ss: StateSpace, run: FilterRun, index: jax.Array) -> dict[str, Any]:
    """The series of the latent sites that led to particle ``index``: initial sites as they are, step sites in
    the order of the inputs.
    """
    assert run.history is not None

    def back(i, at):
        ancestors, sites = at
        return ancestors[i], jax.tree.map(lambda x: x[i], sites)

    sites = jax.tree.map(lambda x: x[1:], run.history[0].sites)
    ancestors = run.info.ancestors[1:]
    first, series = lax.scan(back, jnp.asarray(index, ancestors.dtype), (ancestors, sites), reverse=True)
    return {**jax.tree.map(lambda x: x[first], run.initial), **ss.ordered(series)}
