"""Baselines that are known before the draw: stated at the site, learned, or an average over earlier steps;
and how the latter two go on.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ppl_ext.errors import StrategyError
from ppl_ext.expectations.baselines import collected
from ppl_ext.expectations.choices import Choice
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import LearnedBaseline, MovingAverage
from ppl_ext.gradients.baseline import SUFFIX
from ppl_ext.tracing.credit import Deps

_stop = jax.lax.stop_gradient


def predictions(choices: Sequence[Choice], run: Run) -> dict[str, jax.Array]:
    """By id, for the sites that have one, in the shape of the site's elements."""
    out = {}
    for c in choices:
        law = run.laws[c.id]
        if isinstance(c.baseline, MovingAverage):
            out[c.id] = jnp.broadcast_to(c.baseline.value(_state(c, run, law.shape)), law.shape)
        elif law.baseline is not None:
            out[c.id] = jnp.broadcast_to(law.baseline, law.shape)
        elif isinstance(c.baseline, LearnedBaseline):
            raise _undeclared(c)
    return out


def _state(choice: Choice, run: Run, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    state = run.mutable.get(choice.name + SUFFIX)
    if state is None:
        raise _undeclared(choice)
    kept = state["average"].shape
    if len(kept) > len(shape) or any(
        k not in (1, n) for k, n in zip(reversed(kept), reversed(shape), strict=False)
    ):
        raise StrategyError(
            f"Site '{choice.name}' has elements of shape {shape[len(shape) - len(kept) :]}, and the "
            f"averages of its baseline are of shape {kept}: the site's shape changed between steps. Use "
            "batches of one size, or a plate with subsample_size."
        )
    return state


def _undeclared(choice: Choice) -> StrategyError:
    kind = type(choice.baseline).__name__
    return StrategyError(
        f"The baseline {kind} of site '{choice.name}' keeps numbers between steps, and nobody declared "
        f"them. Put ppl_ext.handlers.gradient(guide, {{'{choice.name}': "
        f"ScoreFunction(baseline={kind}(...))}}) around the whole guide, outside of any scan."
    )


def targets(choices: Sequence[Choice], run: Run, terms, credit: list[Deps]) -> dict[str, jax.Array]:
    """What each element was charged with in this step, for the baselines that learn from it."""
    learning = [c for c in choices if isinstance(c.baseline, MovingAverage | LearnedBaseline)]
    shapes = {id: law.shape for id, law in run.laws.items()}
    costs = collected(learning, shapes, [_stop(t) for t in terms], credit)
    return {c.id: jnp.zeros(shapes[c.id]) if x is None else x for c, x in zip(learning, costs, strict=True)}


def regression(choices: Sequence[Choice], run: Run, costs: dict[str, jax.Array]) -> jax.Array:
    """Zero, with the gradient of minus half the squared errors of the learned baselines: summed over
    elements, averaged over particles.
    """
    total = jnp.zeros(())
    for c in choices:
        if isinstance(c.baseline, LearnedBaseline):
            error = jnp.where(jnp.isfinite(costs[c.id]), costs[c.id] - run.laws[c.id].baseline, 0.0)
            half = -0.5 * jnp.sum(jnp.mean(error**2, axis=tuple(range(c.num_nodes))))
            total += half - _stop(half)
    return total


def moved(
    choices: Sequence[Choice], run: Run, costs: dict[str, jax.Array]
) -> dict[str, dict[str, jax.Array]]:
    """The mutable state after this step: of sites that share a name, each adds its cost in turn."""
    states = dict(run.mutable)
    for c in choices:
        if isinstance(c.baseline, MovingAverage):
            state, cost = states[c.name + SUFFIX], costs[c.id]
            kept = state["average"].shape
            over = [a for a in range(cost.ndim) if a < cost.ndim - len(kept) or kept[a - cost.ndim] == 1]
            mean = jnp.mean(cost, axis=tuple(over)).reshape(kept) if cost.size else state["average"]
            states[c.name + SUFFIX] = c.baseline.moved(state, _stop(mean))
    return states
