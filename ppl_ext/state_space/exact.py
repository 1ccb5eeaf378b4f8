r"""Exact evidence and smoothing of a state-space model, where its densities allow: finite states, or
linear-Gaussian ones.

Which of the two it is, is read off the model. Every latent site has a finite support: sums over the joint
states (forward-backward). Every latent site is real, and the second derivatives of the log density of a step
are *constants* of the traced program: then the step is linear and Gaussian, whatever distributions it was
written with, factors and missing observations included (:mod:`ppl_ext.state_space.kalman`); of normal
distributions it is taken as it is written (:mod:`ppl_ext.state_space.stated`).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from ppl_ext.errors import ModelError
from ppl_ext.state_space.compensated_sum import plus, zero
from ppl_ext.state_space.exact_score import later_evidences
from ppl_ext.state_space.forward_backward import smooth_finite
from ppl_ext.state_space.gaps import no_exact_answer
from ppl_ext.state_space.kalman import Law, Normal, Seen, behind, smoothed, step, updated
from ppl_ext.state_space.lagged import ORDERS, Lagged, lagged
from ppl_ext.state_space.lowering import Inputs
from ppl_ext.state_space.many_solves import mapped
from ppl_ext.state_space.model import Particle, StateSpace, Step
from ppl_ext.state_space.parallel_kalman import filtered_laws, smoothed_laws
from ppl_ext.state_space.prefixes import tree_sum
from ppl_ext.state_space.site_runs import SiteRun
from ppl_ext.state_space.smoothed import Smoothed
from ppl_ext.state_space.stated import law_and_seen
from ppl_ext.tracing.depends import depends


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


def smooth_exactly(ss: StateSpace, max_states: int = 4096, parallel: bool = False) -> Smoothed:
    """The exact evidence and the moments of the states given all data, by time in the order of the inputs.

    Of a chain whose steps read more than one state back the moments are those of the steps' own states, and
    the probabilities those of the joint states of as many steps.

    :param parallel: all times at once, in log T rounds: the same numbers to rounding, with more work.
    :raises ModelError: if the model is neither finite nor linear-Gaussian, or its joint states are more than
        ``max_states``.
    """
    form = exact_form(ss)
    found = smooth_run(ss, form, max_states, parallel)
    if isinstance(form[0], Lagged):
        found = _of_steps(found, form[0].own_columns())
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


def smooth_run(
    ss: StateSpace, of: tuple[StateSpace | Lagged, str | None], max_states: int, parallel: bool = False
) -> Smoothed:
    """Smooth exactly, by time in the order of the run, which for a reversed scan is the other way.

    :param of: its :func:`exact_form`, which costs three second derivatives of the model to find.
    """
    if not ss.num_steps:
        raise ModelError(
            "The series is empty, so there is nothing to smooth exactly. Use a particle method, which then "
            "says so much."
        )
    form, kind = of
    if kind == "finite":
        return _known(ss, form, smooth_finite(form, max_states, parallel))
    if kind == "gaussian" and isinstance(form, StateSpace):
        return _known(ss, form, _gaussian(form, parallel))
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
    return _told_where_lost(_nan_if_unserved(given, served, s))


def _nan_if_unserved(given: StateSpace, served: StateSpace | Lagged, found: Any) -> Any:
    if not given.imputed or served.imputed:
        return found
    unserved = given.has_gap()
    return jax.tree.map(lambda x: jnp.where(unserved, jnp.nan, x), found)


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


def exact_evidence(ss: StateSpace, max_states: int = 4096, parallel: bool = False) -> jax.Array:
    """The evidence alone, compiled as one: whoever asks outside of ``jit`` would wait for each operation to
    be compiled by itself.

    :raises ModelError: as :func:`smooth_exactly`.
    """

    def evidence():
        form, kind = exact_form(ss)
        if kind == "gaussian" and isinstance(form, StateSpace) and not parallel:
            return _nan_if_unserved(ss, form, _gaussian_evidence(form))
        return smooth_run(ss, (form, kind), max_states, parallel).log_evidence

    return jax.jit(evidence)()


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
        return _log_joint(self.first_step(a, b, x))

    def later(self, a, b, x_before: Inputs, x: Inputs):
        return _log_joint(self.later_step(a, b, x_before, x))

    def first_step(self, a, b, x: Inputs) -> Step:
        return self.ss.step(self.ss.placed(self.unravel_initial(a)), self.unravel_state(b), x)

    def later_step(self, a, b, x_before: Inputs, x: Inputs) -> Step:
        return self.ss.step(self.particle(a, x_before), self.unravel_state(b), x)

    def particle(self, a, x: Inputs) -> Particle:
        """The particle whose last step drew a: the carry before that step does not matter."""
        return self.ss.moved(self.ss.anywhere(), self.unravel_state(a), x)


def _counted(record: SiteRun, latent: Iterable[str]) -> dict[str, dict]:
    """The sites of a run that have a term in its density: no parameters."""
    return {n: site for n, site in record.sites.items() if n in latent or n not in record.latent}


def _log_joint(step: Step) -> jax.Array:
    return step.log_transition + step.log_emission


def _is_quadratic(ss: StateSpace) -> bool:
    """Whether no second derivative depends on the states, as far as the traced program shows."""
    steps, x = Steps(ss), ss.inputs(0)
    for fn, points in (
        (lambda a: steps.initial(a), (steps.zero_initial,)),
        (lambda a, b: steps.first(a, b, x), (steps.zero_initial, steps.zero_state)),
        (lambda a, b: steps.later(a, b, x, x), (steps.zero_state, steps.zero_state)),
    ):
        slope = jax.grad(fn, argnums=tuple(range(len(points))))
        # along a tangent that is not known: one derivative of the slope instead of one for each axis
        closed = jax.make_jaxpr(lambda at, along, slope=slope: jax.jvp(slope, at, along)[1])(points, points)
        if any(depends(closed, [True] * len(points) + [False] * len(points))):
            return False
    return True


# Linear-Gaussian


class _Read(NamedTuple):
    """A series as laws: of the initial sites given what is observed before the scan, the ``first`` step and
    the ``later`` ones, with what is seen at each; ``after`` is the law of the first state given its own.
    """

    steps: Steps
    pairs: tuple
    initial: Normal
    log_initial: jax.Array
    first: tuple[Law, Seen]
    later: tuple[Law, Seen]
    after: Normal
    increment: jax.Array

    def log_emissions(self, places: jax.Array) -> jax.Array:
        """Log densities of what the later steps observe, at states before and after each."""

        def log_emission(place, x, y):
            a, b = jnp.split(place, 2)
            return self.steps.later_step(a, b, x, y).log_emission

        return jax.vmap(log_emission)(places, *self.pairs)


def _read(ss: StateSpace) -> _Read:
    steps, x0 = Steps(ss), ss.inputs(0)
    a0, a = steps.zero_initial, steps.zero_state
    pairs = jax.tree.map(lambda v: v[:-1], ss.xs), jax.tree.map(lambda v: v[1:], ss.xs)

    def read(step, sites_of, before, after):
        sites_of = None if ss.is_scaled or ss.imputed else sites_of
        return law_and_seen(step, sites_of, sorted(ss.step_sites), before, after)

    def of_first(before, after):
        return steps.first_step(before, after, x0)

    def of_start(_, x):
        start = ss.initial(steps.unravel_initial(x))
        return Step(start.particle, start.log_initial, start.log_emission, start.each)

    start, seen = law_and_seen(
        of_start,
        lambda _, x: _counted(ss.run_initial(steps.unravel_initial(x), None), ss.initial_sites),
        sorted(ss.initial_sites),
        a0[:0],
        a0,
    )
    initial, rest = updated(Normal(start.offset, start.covariance), seen)
    log_initial = of_start(None, initial.mean).log_emission + start.excess + rest

    def sites(particle, after, x):
        return _counted(ss.run_step(particle, steps.unravel_state(after), x, None), ss.step_sites)

    first = read(of_first, lambda b, z: sites(ss.placed(steps.unravel_initial(b)), z, x0), a0, a)
    after, rest_first, place = step(initial, *first)
    increment = rest_first + of_first(place[: len(a0)], place[len(a0) :]).log_emission

    def of_later(x, y):
        return read(
            lambda b, z: steps.later_step(b, z, x, y), lambda b, z: sites(steps.particle(b, x), z, y), a, a
        )

    later = mapped(of_later, 2 * len(a))(*pairs)
    return _Read(steps, pairs, initial, log_initial, first, later, after, increment)


def _gaussian_evidence(ss: StateSpace) -> jax.Array:
    """The evidence that :func:`_gaussian` has, with derivatives that take less time."""
    of = _read(ss)
    rests, places, slopes = later_evidences(of.after, *of.later)
    increments = jnp.concatenate([of.increment[None], rests + of.log_emissions(places)])
    return _summed(of.log_initial, increments) + slopes


def _summed(log_initial: jax.Array, increments: jax.Array) -> jax.Array:
    def add(total, term):
        return plus(total, term), None

    return lax.scan(add, plus(zero(), log_initial), increments)[0].value


def _gaussian(ss: StateSpace, parallel: bool) -> Smoothed:
    of = _read(ss)
    a, first, later, log_first = of.steps.zero_state, of.after, of.later, of.log_initial

    def forth(law, given):
        new, rest, place = step(law, *given)
        return new, (new, rest, place)

    if parallel:
        _, (laws, rests, places) = mapped(forth, 2 * len(a))(filtered_laws(first, later), later)
    else:
        _, (laws, rests, places) = lax.scan(forth, first, later)

    increments = jnp.concatenate([of.increment[None], rests + of.log_emissions(places)])
    filtered = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, laws)
    if parallel:
        total = tree_sum(jnp.concatenate([log_first[None], increments])).value
    else:
        total = _summed(log_first, increments)
    # Of data that are impossible there is no posterior, though each law is a normal one all the same.
    nothing = jnp.where(log_first + increments.min() > -jnp.inf, 0.0, jnp.nan)
    last = jax.tree.map(lambda x: x[-1] + nothing, filtered)

    def back(after, before):
        state, cross = smoothed(after, before)
        return state, (state, cross)

    # all at once, and not at all where nobody asks for more than the evidence
    behind_first = behind(of.initial, *of.first)
    so_far = jax.tree.map(lambda x: x[:-1], filtered)
    behind_later = mapped(behind, 2 * len(a))(so_far, *later)
    if parallel:
        _, (before, cross) = jax.vmap(back)(smoothed_laws(last, behind_later), behind_later)
    else:
        _, (before, cross) = lax.scan(back, last, behind_later, reverse=True)
    states = jax.tree.map(lambda more, one: jnp.concatenate([more, one[None]]), before, last)
    at_0, first_cross = smoothed(jax.tree.map(lambda x: x[0], states), behind_first)
    return Smoothed(
        total,
        at_0.mean,
        at_0.covariance,
        first_cross,
        states.mean,
        states.covariance,
        cross,
        log_first,
        increments,
        filtered.mean,
        filtered.covariance,
        first_behind=behind_first,
        behind=behind_later,
    )
