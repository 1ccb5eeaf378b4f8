r"""One unbiased estimate of a program's expectation whose derivatives are unbiased too.

A program that samples is run once, and its cost L, a sum of terms, is turned into a *surrogate*: a number
whose value estimates :math:`\mathbb{E} L` and whose derivatives estimate those of :math:`\mathbb{E} L`:

.. math::

    \sum_t \sum_{\text{lanes}} \Big[\prod_{s \in \text{enumerated}, s \to t} q_s\Big] \; c_t \;
    \exp\Big(\sum_{s \in \text{scored}, s \to t} \log q_s - \overline{\log q_s}\Big)
    \; - \sum_{s \in \text{scored}} \big[\exp(\log q_s - \overline{\log q_s}) - 1\big]\, \overline{b_s}
    \; + \sum_{s \in \text{local}} \sum_b \big(a_{s,b} - \overline{a_{s,b}}\big)\, \overline{K_s(x_b)}

A bar stops gradients, :math:`s \to t` means that (an element of) cost t can feel (an element of) site s, as
:mod:`ppl_ext.tracing.credit` finds, :math:`b_s` is a baseline that does not depend on the draw, and
:math:`K_s(x_b)` the costs that feel s when it takes the alternative :math:`x_b` with coefficient
:math:`a_{s,b}` (Foerster et al. 2018 for the form, Mao et al. 2019 for the baseline, Becker et al. 2024 for
the mix). Reparameterised sites need no term. To enumerate, to compare alternatives, or to leave a particle
out, the same Python program is run again under the same keys with the sites' values or the particles' outputs
replaced, in one ``vmap``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.errors import ArgumentError, ArgumentTypeError, StrategyError
from ppl_ext.expectations.baselines import baselines, collected, others_mean
from ppl_ext.expectations.choices import Choice, ForkError
from ppl_ext.expectations.enumeration_plan import LocalLanes, plan_lanes
from ppl_ext.expectations.run import Run
from ppl_ext.expectations.stateful_baselines import moved, predictions, regression, targets
from ppl_ext.gradients import charged
from ppl_ext.gradients.default import AUTOMATIC_SUPPORT
from ppl_ext.tracing.credit import Deps, distrust, shared_sums, spread, trace_credit
from ppl_ext.tracing.inner_jits import past_inner_jits

_stop = lax.stop_gradient
LANES_AT_ONCE = 128  # of alternatives; more run in chunks

_NOT_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def estimate(
    fn: Callable[[], Any],
    rng_key: jax.Array,
    vectorize: bool | Callable = True,
    given: Mapping[str, Any] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """One unbiased estimate of ``E[fn()]``, differentiable as such, and the mutable state that the run left
    behind.

    :param given: the state that ``fn`` carries from step to step, if it may carry any.
    """

    def runner(concrete=None):
        def run(**options) -> tuple[list[jax.Array], Run]:
            with (
                r := Run(
                    rng_key, random.fold_in(rng_key, 0), vectorize=vectorize, concrete=concrete, **options
                )
            ):
                runs.append(r)
                r.given = given
                terms = _terms(fn())
                return (terms if concrete is None else [t * r.weight for t in terms]), r

        return run

    def attempt():
        try:
            return _estimate(runner())
        except _NOT_CONCRETE as error:
            if not any(r.can_fork for r in runs):
                raise
            return _fork(runner, error)

    runs: list[Run] = []
    return past_inner_jits(attempt)


def _fork(runner, error: Exception) -> tuple[jax.Array, dict[str, Any]]:
    """The program branches in Python on an enumerated value: run it once for each outcome, weighed by its
    probability.
    """
    leaves: list[tuple[jax.Array, dict[str, Any]]] = []
    open_ends: list[dict[str, Any]] = [{}]
    while open_ends:
        concrete = open_ends.pop()
        try:
            leaves.append(_estimate(runner(concrete)))
        except ForkError as fork:
            open_ends += [{**concrete, fork.id: outcome} for outcome in np.asarray(fork.support)[::-1]]
        except _NOT_CONCRETE as again:
            raise again from error
        if len(leaves) + len(open_ends) > AUTOMATIC_SUPPORT:
            raise StrategyError(
                "The program branches in Python on an enumerated value, and its enumerated sites have more "
                f"than {AUTOMATIC_SUPPORT} joint outcomes; each is a run of its own. Use "
                "numpyro.contrib.control_flow.cond or jnp.where, or 'score' for some of the sites."
            ) from error
    if any(mutable for _, mutable in leaves):
        raise StrategyError(
            "The program branches in Python on an enumerated value and has numpyro.mutable state, which "
            "would be another on each branch. Use numpyro.contrib.control_flow.cond or jnp.where instead."
        ) from error
    return sum((value for value, _ in leaves), start=jnp.zeros(())), {}


def _estimate(run) -> tuple[jax.Array, dict[str, Any]]:
    terms, base = run()
    if not base.choices:
        return _sum(terms), base.mutable
    credit, met = trace_credit(lambda: run(tracing=True)[0])
    distrust(credit, met, {c.id: len(base.laws[c.id].shape) for c in base.choices})
    plan = plan_lanes(base, credit)
    if not plan.joint.forced:
        local = _local(run, terms, base, credit, plan.local, lambda terms, run: terms, {})
        taken_off = baselines(run, plan.scored, terms, base, credit) | predictions(plan.scored, base)
        costs = targets(plan.scored, base, terms, credit)
        total = (
            _surrogate(terms, plan.scored, base, credit, taken_off)
            + local
            + regression(plan.scored, base, costs)
        )
        return total, moved(plan.scored, base, costs)

    def weighed(terms, r: Run):
        weights = plan.joint.weights(terms, r, credit)
        return [
            jnp.where((w == 0) & ~jnp.isfinite(c), 0.0, c) * w for c, w in zip(terms, weights, strict=True)
        ]

    def lane(forced):
        terms, r = run(forced=forced)
        terms = weighed(terms, r)
        local = _local(run, terms, r, credit, plan.local, weighed, forced)
        # The lanes' costs add up to what is predicted. Any share of it may be taken off in a lane that no
        # later draw decides: equal ones.
        share = {id: b / lanes for id, b in predictions(plan.scored, r).items()}
        costs = {id: c * lanes for id, c in targets(plan.scored, r, terms, credit).items()}
        taken_off = others_mean(plan.scored, r, terms, credit) | share
        total = (
            _surrogate(terms, plan.scored, r, credit, taken_off)
            + local
            + regression(plan.scored, r, costs) / lanes
        )
        return total, {id: c / lanes for id, c in costs.items()}

    lanes = plan.joint.total
    totals, costs = jax.vmap(lane)(plan.joint.forced)
    return totals.sum(), moved(plan.scored, base, {id: c.sum(0) for id, c in costs.items()})


def _terms(out) -> list[jax.Array]:
    if isinstance(out, LogDensity):
        if out.batch_ndim:
            raise ArgumentError(
                "The program returns one value per particle; reduce them, for example by `.mean()` or "
                "`log_mean_exp`."
            )
        return list(out.terms)
    if not isinstance(out, int | float | np.ndarray | np.generic | jax.Array):
        raise ArgumentTypeError(
            f"An expectation is taken of a number, but the program returned a {type(out).__name__}."
        )
    if jnp.shape(out) != ():
        raise ArgumentError(
            "An expectation is taken of a number, but the program returned an array of shape "
            f"{jnp.shape(out)}."
        )
    return [jnp.asarray(out)]


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum of everything: terms of one shape element by element first, since on a CPU each reduction costs
    more than an addition.
    """
    by_shape: dict[tuple[int, ...], jax.Array] = {}
    for t in terms:
        by_shape[t.shape] = by_shape[t.shape] + t if t.shape in by_shape else t
    sums = [jnp.sum(t) for t in by_shape.values()]
    return sum(sums[1:], start=sums[0]) if sums else jnp.zeros(())


def _surrogate(terms, choices: Sequence[Choice], run: Run, credit: list[Deps], baselines) -> jax.Array:
    log_probs = {c.id: run.laws[c.id].log_prob for c in choices}
    felt = [
        frozenset((c.id, deps[c.id], cost.ndim) for c in choices if c.id in deps)
        for cost, deps in zip(terms, credit, strict=True)
    ]
    exponents = shared_sums(felt, lambda id, relation, ndim: spread(log_probs[id], relation, ndim))
    alike: dict[tuple, jax.Array] = {}  # costs that feel the same draws share their likelihood ratio
    ratios = dict(zip(felt, exponents, strict=True))
    for cost, keys in zip(terms, felt, strict=True):
        same = (keys, cost.shape)
        alike[same] = alike[same] + cost if same in alike else cost
    total = _sum(
        cost if ratios[keys] is None else cost * _one(ratios[keys]) for (keys, _), cost in alike.items()
    )
    for choice in choices:
        if (b := baselines.get(choice.id)) is not None:
            # Without particle k the others may all be impossible (−inf): such a baseline is of no use, and
            # any constant is unbiased.
            total -= _taken_off(log_probs[choice.id], _stop(jnp.where(jnp.isfinite(b), b, 0.0)))
    return total


@jax.custom_jvp
def _one(exponent: jax.Array) -> jax.Array:
    """One; its derivatives of any order are those of a likelihood ratio. (log q may be −inf where a mask
    hides an element.)
    """
    return jnp.ones_like(exponent)


@_one.defjvp
def _one_jvp(primals, tangents):
    (exponent,), (change,) = primals, tangents
    one = _one(exponent)
    return one, one * jnp.where(jnp.isfinite(exponent), change, 0.0)


@jax.custom_jvp
def _taken_off(log_prob: jax.Array, baseline: jax.Array) -> jax.Array:
    """Zero, with the derivatives of the sum of ``(one(log_prob) - 1) * baseline``: nothing is left of it
    where no gradient is taken.
    """
    return jnp.zeros((), log_prob.dtype)


@_taken_off.defjvp
def _taken_off_jvp(primals, tangents):
    log_prob, baseline = primals
    change = _one_jvp((log_prob,), tangents[:1])[1]
    return _taken_off(log_prob, baseline), jnp.sum(change * baseline)


def _local(run, terms, base: Run, credit: list[Deps], lanes: LocalLanes, weighed, forced) -> jax.Array:
    """Zero, with the gradient that the local strategies' alternatives give."""
    if not lanes.choices:
        return jnp.zeros(())

    def felt(terms) -> dict[str, jax.Array]:
        sums = collected(lanes.choices, lanes.shapes, [_stop(t) for t in terms], credit)
        return {
            c.id: jnp.zeros(lanes.shapes[c.id]) if x is None else x
            for c, x in zip(lanes.choices, sums, strict=True)
        }

    def lane(number) -> dict[str, jax.Array]:
        """The costs that feel each site, at the elements and branches that this lane replaces; zero
        elsewhere.
        """
        replaced = lanes.replaced(number)
        costs = felt(weighed(*run(forced={**forced, **replaced})))
        return {
            id: jnp.where(replaced[id].branch == branches(id, cost.ndim), cost, 0.0)
            for id, cost in costs.items()
        }

    def branches(id, ndim):
        return 1 + jnp.arange(lanes.alternatives[id]).reshape(-1, *[1] * ndim)

    own, others = felt(terms), _sum_over_lanes(lane, lanes.total)
    total = jnp.zeros(())
    for c in lanes.choices:
        if lanes.counts[c.id]:  # of the others nothing is felt
            law, particles = base.laws[c.id], lanes.shapes[c.id][: c.num_nodes]
            num = (
                None  # they are no average over particles, or parts of a cost
                if forced or any(a < c.num_nodes and particles[a] > 1 for a in lanes.meets[c.id])
                else math.prod(particles)
            )
            values = c.strategy.worth(c.name, law.coefficients, [own[c.id], *others[c.id]], num, law.scale)
            total += charged(c.name, law.coefficients, values)
    return total


def _sum_over_lanes(lane, total: int):
    if total == 0:
        return {}
    chunks = math.ceil(total / LANES_AT_ONCE)
    size = math.ceil(total / chunks)

    def chunk(first):
        return jax.tree.map(lambda x: x.sum(0), jax.vmap(lane)(first + jnp.arange(size)))

    if chunks == 1:
        return chunk(0)
    return jax.tree.map(lambda x: x.sum(0), lax.map(chunk, size * jnp.arange(chunks)))
