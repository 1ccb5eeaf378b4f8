"""What is taken off the cost of a scored draw without changing the mean of its gradient: what other particles
or elements cost.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ppl_ext.expectations.choices import Choice
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import LeaveOneOut
from ppl_ext.tracing.credit import Deps, collect, shared_sums
from ppl_ext.tracing.inner_jits import rolled

_stop = jax.lax.stop_gradient
LEFT_OUT_AT_ONCE = 128  # of the particles of a nonlinear objective; more are left out chunk by chunk


def baselines(run, choices: Sequence[Choice], terms, base: Run, credit: list[Deps]) -> dict[str, jax.Array]:
    """Leave-one-out baselines of the scored sites that want one, by id."""
    out = others_mean(choices, base, terms, credit)
    by_node: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice.id not in out and choice.node is not None and _leaves_out(choice, base):
            by_node.setdefault(choice.node, []).append(choice)
    for node, inside in by_node.items():
        num, without = base.laws[inside[0].id].shape[0], _without(run, node, base.replicates[node])

        def one(k, inside=inside, without=without):
            sums = collected(inside, _shapes(base), without(k), credit)
            return [
                jnp.zeros(base.laws[c.id].shape)[k] if x is None else x[k]
                for c, x in zip(inside, sums, strict=True)
            ]

        # Each of the K runs holds the outputs of all K particles; all at once, thousands of particles would
        # fill the memory.
        every = (
            partial(lax.map, batch_size=LEFT_OUT_AT_ONCE)
            if num > LEFT_OUT_AT_ONCE
            else lambda f, ks: jax.vmap(f)(ks)
        )
        out |= {c.id: b for c, b in zip(inside, rolled(every, one, jnp.arange(num)), strict=True)}
    return out


def others_mean(choices: Sequence[Choice], run: Run, terms, credit: list[Deps]) -> dict[str, jax.Array]:
    """Mean cost of the other particles, element by element, for sites of which every cost belongs to one
    particle.

    With a single particle, of the other elements of the same site, where their costs do not meet (slices of a
    plate).
    """
    particles = [c for c in choices if _leaves_out(c, run) and 0 in _apart(c, run, credit)]
    single = {
        c.id: _apart(c, run, credit) for c in choices if _wants_others(c, run) and not _leaves_out(c, run)
    }
    mine = particles + [c for c in choices if single.get(c.id)]
    out = {}
    for c, cost in zip(mine, collected(mine, _shapes(run), [_stop(t) for t in terms], credit), strict=True):
        if cost is None:
            continue
        if c.id in single:
            # Elements are not alike as particles are. Dividing by n and not n - 1 shrinks towards zero: where
            # the others say nothing about this one, the noise then grows by a quarter at worst (n = 2), not
            # twofold.
            axes = single[c.id]
            out[c.id] = (cost.sum(axes, keepdims=True) - cost) / math.prod(cost.shape[a] for a in axes)
        else:
            out[c.id] = (cost.sum(0, keepdims=True) - cost) / (cost.shape[0] - 1)
    return out


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    return {id: law.shape for id, law in run.laws.items()}


def _wants_others(choice: Choice, run: Run) -> bool:
    return isinstance(choice.baseline, LeaveOneOut) and run.laws[choice.id].baseline is None


def _leaves_out(choice: Choice, run: Run) -> bool:
    return _wants_others(choice, run) and choice.num_nodes > 0 and run.laws[choice.id].shape[0] > 1


def _apart(choice: Choice, run: Run, credit: list[Deps]) -> tuple[int, ...]:
    """The axes of a site along which no cost feels two elements."""
    relations = [deps[choice.id] for deps in credit if choice.id in deps]
    shape = run.laws[choice.id].shape
    return tuple(
        a
        for a in range(len(shape))
        if shape[a] > 1 and all((r[a] or ("lost",))[0] == "at" for r in relations)
    )


def collected(
    choices: Sequence[Choice], shapes: dict[str, tuple[int, ...]], terms, credit: list[Deps]
) -> list[jax.Array | None]:
    """For each element of each site, the sum of the costs that feel it."""
    # costs that feel the same sites in the same way go together
    alike: dict[tuple, tuple[jax.Array, Deps]] = {}
    for cost, deps in zip(terms, credit, strict=True):
        same = (jnp.shape(cost), tuple((c.id, deps[c.id]) for c in choices if c.id in deps))
        alike[same] = (alike[same][0] + cost if same in alike else cost, deps)
    costs = list(alike.values())
    wanted = [
        frozenset((n, deps[c.id], shapes[c.id]) for n, (_, deps) in enumerate(costs) if c.id in deps)
        for c in choices
    ]
    return shared_sums(wanted, lambda n, relation, shape: collect(costs[n][0], relation, shape))


def _without(run, node: str, outputs) -> Callable[[jax.Array], list[jax.Array]]:
    """From k to the program's terms with particle k's output replaced by the mean of the others'."""

    def without(k):
        def replaced(x):
            num = x.shape[0]
            mine = jnp.arange(num).reshape((num,) + (1,) * (x.ndim - 1)) == k
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                # integers have no mean: another particle's will do
                return jnp.where(mine, jnp.roll(x, 1, axis=0), x)
            others = jnp.where(mine, 0.0, x).sum(0) / (num - 1)
            return jnp.where(mine, others, x)

        return run(outputs={node: jax.tree.map(replaced, _stop(outputs))})[0]

    return without
