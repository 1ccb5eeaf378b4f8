r"""Particles of parameters, each with a filter of its own: one step in time, moves, and more states.

.. math:: \hat p(y_t \mid y_{<t}) = \sum_i W^i_{t-1} \, \hat p(y_t \mid y_{<t}, \theta^i), \qquad
          W^i_t \propto W^i_{t-1} \, \hat p(y_t \mid y_{<t}, \theta^i)

The :math:`\hat p` of one parameter are the increments of its filter. A filter's evidence is unbiased, so that
this is importance sampling on the parameters and on all that their filters draw, whose marginal law is the
posterior of the parameters given :math:`y_{1:t}`, for every number of states.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from ppl_ext.algorithms.tempered.moves import Fitted, IndependentMoves, RandomWalk
from ppl_ext.algorithms.tempered.points import Points
from ppl_ext.infer.smc2.parameters import Parameters
from ppl_ext.runtime.random_choices import log_uniforms
from ppl_ext.state_space import filtering
from ppl_ext.state_space.compensated_sum import Sum, plus, zero
from ppl_ext.state_space.resampling import Scheme, shares


class Rules(NamedTuple):
    """How a run goes; ``states`` is the filter's rules, whose number of particles is that of the first
    filters. ``ess``: a share of the particles, 0 for no moves and 1 for moves at every step.
    """

    num_particles: int
    states: filtering.Rules
    moves: RandomWalk | IndependentMoves
    scheme: Scheme
    ess: float
    min_acceptance: float
    max_states: int

    def more(self, num_states: int) -> bool:
        """Whether the filters may have twice as many."""
        return self.min_acceptance > 0 and 2 * num_states <= self.max_states

    @property
    def is_fixed(self) -> bool:
        """Whether the particles decide nothing: no time of a move, no proposal, no number of states."""
        no_doubt = self.min_acceptance in (0.0, 1.0) or not self.more(self.states.num_particles)
        return self.ess in (0.0, 1.0) and no_doubt and (self.moves.is_fixed or self.ess == 0.0)


class Cloud(NamedTuple):
    """N parameters after ``time`` steps. ``position`` (N, D); ``log_prior`` (N,) with the Jacobian;
    ``filters`` of M states each, leaves (N, ...); ``log_weights`` (N,) normalised; ``log_evidence`` of all
    data so far. ``wants_more``: the last moves were taken so seldom that filters should be larger.
    """

    key: jax.Array
    position: jax.Array
    log_prior: jax.Array
    filters: filtering.State
    log_weights: jax.Array
    log_evidence: Sum
    fitted: Fitted
    time: jax.Array
    wants_more: jax.Array

    @property
    def num_states(self) -> int:
        return self.filters.log_weights.shape[1]


class Notes(NamedTuple):
    """A step in numbers: ``log_evidence`` after it, ``ess`` of the weights before moves, ``acceptance`` of
    these (-1: there were none), ``num_states`` of each filter, ``died``: how many parameters have no weight,
    and, by site, weighted means and standard deviations of the parameters and of the states.
    """

    log_evidence: jax.Array
    ess: jax.Array
    acceptance: jax.Array
    num_states: jax.Array
    died: jax.Array
    mean: dict[str, jax.Array]
    sd: dict[str, jax.Array]
    state_mean: dict[str, jax.Array]
    state_sd: dict[str, jax.Array]


def begin(key: jax.Array, parameters: Parameters, rules: Rules) -> Cloud:
    """Parameters from the prior, and their filters before the first step."""
    key, draw_key, filter_key = random.split(key, 3)
    num = rules.num_particles
    position, drawn = jax.vmap(parameters.draw)(random.split(draw_key, num))

    def one(key, position):
        space, log_prior, log_det = parameters.space(position)
        return log_prior, log_det, filtering.begin(space, rules.states, key)[0]

    log_prior, log_det, filters = jax.vmap(one)(random.split(filter_key, num), position)
    # A scale or a mask makes a prior another than the law that its site was drawn from.
    gain = jnp.where(log_prior == drawn, 0.0, log_prior - drawn) + filters.log_evidence.value
    log_weights, total, _ = filtering.normalised(gain - jnp.log(num))
    fitted = jax.tree.map(lambda x: jnp.asarray(x, float), rules.moves.begin(parameters.size))
    none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    log_prior, evidence = _number(log_prior + log_det), plus(zero(), total)
    return Cloud(key, position, log_prior, filters, log_weights, evidence, fitted, none, no)


def no_notes(cloud: Cloud, parameters: Parameters, num: int) -> Notes:
    """Room for the notes of ``num`` steps."""
    real = jnp.zeros(num, cloud.log_weights.dtype)
    whole = jnp.zeros(num, jnp.int32)
    moments = jax.eval_shape(lambda c: _moments(c, parameters), cloud)
    room = jax.tree.map(lambda s: jnp.zeros((num, *s.shape), s.dtype), moments)
    return Notes(real, real, real, whole, whole, *room)


def step(cloud: Cloud, parameters: Parameters, rules: Rules) -> tuple[Cloud, Notes]:
    """One observation more: filters advance, parameters are weighed, and moved if the weights are uneven."""

    def one(position, filter_):
        space = parameters.space(position)[0]
        return filtering.advance(space, rules.states, filter_, space.inputs(cloud.time))

    rules = sized(rules, cloud.num_states)
    filters, info = jax.vmap(one)(cloud.position, cloud.filters)
    increments = _number(info.log_increment)
    log_weights, total, _ = filtering.normalised(cloud.log_weights + increments)
    cloud = cloud._replace(
        filters=filters,
        log_weights=log_weights,
        log_evidence=plus(cloud.log_evidence, total),
        time=cloud.time + 1,
    )
    ess, possible = filtering.ess(log_weights), total > -jnp.inf
    is_due = possible & (jnp.asarray(rules.ess >= 1) | (ess < rules.ess * rules.num_particles))

    def still(cloud):
        return cloud, jnp.full((), -1.0)

    moved, acceptance = lax.cond(is_due, lambda c: moves(c, parameters, rules), still, cloud)
    if rules.more(cloud.num_states):
        low = (acceptance < rules.min_acceptance) | (rules.min_acceptance >= 1)
        moved = moved._replace(wants_more=low & is_due)
    died = jnp.isneginf(log_weights).sum(dtype=jnp.int32)
    num_states = jnp.asarray(cloud.num_states, jnp.int32)
    notes = Notes(cloud.log_evidence.value, ess, acceptance, num_states, died, *_moments(cloud, parameters))
    return moved, notes


def sized(rules: Rules, num_states: int) -> Rules:
    """The rules of filters of this size."""
    return rules._replace(states=rules.states._replace(num_particles=num_states))


def moves(cloud: Cloud, parameters: Parameters, rules: Rules) -> tuple[Cloud, jax.Array]:
    """Resample the parameters, with their filters, and move each by particle marginal Metropolis-Hastings.

    The proposal is fitted to the weighted particles; its scale is left as it is, so that a low acceptance
    tells of the noise in the filters' evidence.
    """
    key, ancestor_key, filter_key, move_key = random.split(cloud.key, 4)
    num = rules.num_particles
    points = Points(cloud.position, cloud.log_prior, cloud.filters.log_evidence.value[:, None])
    weights = shares(cloud.log_weights)
    fitted = rules.moves.fit(points, weights, cloud.fitted, jnp.full((), jnp.nan))
    ancestors = rules.scheme(ancestor_key, cloud.log_weights, num)
    position, log_prior, filters = jax.tree.map(
        lambda x: x[ancestors], (cloud.position, cloud.log_prior, cloud.filters)
    )
    cloud = cloud._replace(
        key=key,
        position=position,
        log_prior=log_prior,
        filters=filters._replace(key=random.split(filter_key, num)),  # copies go ways of their own
        log_weights=jnp.full(num, -jnp.log(num), cloud.log_weights.dtype),
        fitted=fitted,
    )

    def once(cloud, key):
        cloud, accepted = move(cloud, key, parameters, rules)
        return cloud, accepted.mean(dtype=float)

    cloud, accepted = lax.scan(once, cloud, random.split(move_key, rules.moves.num_steps))
    return cloud, accepted.mean()


def move(cloud: Cloud, key: jax.Array, parameters: Parameters, rules: Rules) -> tuple[Cloud, jax.Array]:
    r"""Each parameter once, with a new filter of all data so far:

    .. math:: \alpha = \min\Big(1, \frac{p(\theta')\, \hat Z_t(\theta')\, q(\theta \mid \theta')}
        {p(\theta)\, \hat Z_t(\theta)\, q(\theta' \mid \theta)}\Big)
    """
    noise_key, filter_key, coin_key = random.split(key, 3)
    proposed, log_ratio = rules.moves.propose(noise_key, cloud.position, cloud.fitted)
    log_prior, filters = filtered(filter_key, proposed, cloud.time, parameters, rules)
    log_ratio = log_ratio + log_prior + filters.log_evidence.value
    log_ratio = _number(log_ratio - cloud.log_prior - cloud.filters.log_evidence.value)
    accepted = log_uniforms(coin_key, log_ratio.shape) < log_ratio

    def chosen(new, old):
        return jnp.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    new = proposed.astype(cloud.position.dtype), log_prior, filters
    old = cloud.position, cloud.log_prior, cloud.filters
    position, log_prior, filters = jax.tree.map(chosen, new, old)
    return cloud._replace(position=position, log_prior=log_prior, filters=filters), accepted


def exchange(cloud: Cloud, parameters: Parameters, rules: Rules, num_states: int) -> Cloud:
    r"""New filters of ``num_states`` states, weighed against the old ones.

    .. math:: W^i \leftarrow W^i \, \hat Z'_t(\theta^i) / \hat Z_t(\theta^i), \qquad
        \hat p(y_{1:t}) \leftarrow \hat p(y_{1:t}) \sum_i W^i \, \hat Z'_t(\theta^i) / \hat Z_t(\theta^i)

    The ratio's mean is one, whatever the numbers of states (Chopin, Jacob, Papaspiliopoulos 2013, section
    3.6.1).
    """
    key, filter_key = random.split(cloud.key)
    _, filters = filtered(filter_key, cloud.position, cloud.time, parameters, sized(rules, num_states))
    log_ratio = _number(filters.log_evidence.value - cloud.filters.log_evidence.value)
    log_weights, total, _ = filtering.normalised(cloud.log_weights + log_ratio)
    return cloud._replace(
        key=key,
        filters=filters,
        log_weights=log_weights,
        log_evidence=plus(cloud.log_evidence, total),
        wants_more=jnp.zeros((), bool),
    )


def filtered(
    key: jax.Array, position: jax.Array, time: jax.Array, parameters: Parameters, rules: Rules
) -> tuple[jax.Array, filtering.State]:
    """At positions (N, D), the log prior with the Jacobian, (N,), and filters of the first ``time`` steps."""

    def one(key, position):
        space, log_prior, log_det = parameters.space(position)
        start = filtering.begin(space, rules.states, key)[0]

        def forward(t, state):
            return filtering.advance(space, rules.states, state, space.inputs(t))[0]

        return _number(log_prior + log_det), lax.fori_loop(0, time, forward, start)

    return jax.vmap(one)(random.split(key, len(position)), position)


def _number(x: jax.Array) -> jax.Array:
    """NaN counts as a density of zero."""
    return jnp.where(jnp.isnan(x), -jnp.inf, x)


def _moments(cloud: Cloud, parameters: Parameters) -> tuple[Any, Any, Any, Any]:
    """Weighted means and standard deviations of parameters and of states, by site."""
    weights = shares(cloud.log_weights)
    mean, sd = _weighted(jax.vmap(parameters.values)(cloud.position), weights)
    inner = jax.vmap(shares)(cloud.filters.log_weights)
    # A filter without survivors has no states, and its parameter no weight.
    inner = jnp.where(jnp.isnan(inner), 0.0, inner) * weights[:, None]
    sites = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), cloud.filters.particles.sites)
    return mean, sd, *_weighted(sites, inner.reshape(-1))


def _weighted(values: Any, weights: jax.Array) -> tuple[Any, Any]:
    def around(x):
        rows = weights.reshape(-1, *(1,) * (x.ndim - 1))
        x = jnp.where(rows > 0, x.astype(float), 0.0)
        mean = (rows * x).sum(0)
        return mean, jnp.sqrt((rows * jnp.square(x - mean)).sum(0))

    both = {n: around(x) for n, x in values.items()}
    return {n: m for n, (m, _) in both.items()}, {n: s for n, (_, s) in both.items()}
