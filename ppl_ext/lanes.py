"""Exact enumeration as lanes: one run of the program for each joint assignment of the enumerated sites.

Elements of a site whose costs never meet (a plate's slices, particles of a linear objective) are enumerated side by side in the same lanes;
only those that meet multiply.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.choices import AUTOMATIC_SUPPORT, Choice, Run
from ppl_ext.credit import Deps, Relation, spread
from ppl_ext.errors import StrategyError
from ppl_ext.gradients import Enumerate


class Lanes(eqx.Module):
    """Joint assignments of the enumerated sites: ``forced`` has one row of support indices per lane."""

    forced: dict[str, jax.Array]
    sizes: dict[str, int] = eqx.field(static=True)
    joint: dict[str, tuple[int, ...]] = eqx.field(static=True)

    def weights(self, terms, run: Run, credit: list[Deps]) -> list[jax.Array]:
        """For each cost, the probability of this lane's assignment of the sites it feels; the others are averaged over."""
        out = []
        for cost, deps in zip(terms, credit, strict=True):
            log_weight = jnp.zeros((1,) * cost.ndim)
            for id in self.forced:
                if id in deps:
                    relation = tuple(None if axis in self.joint[id] else r for axis, r in enumerate(deps[id]))
                    log_weight = log_weight + spread(run.log_probs[id], relation, cost.ndim)
                else:
                    log_weight = log_weight - math.log(self.sizes[id])
            out.append(jnp.exp(log_weight))
        return out


def plan_lanes(base: Run, credit: list[Deps]) -> Lanes:
    chosen = [c for c in base.choices if isinstance(c.strategy, Enumerate) and c.support_size]
    fixed = _count_lanes([c for c in chosen if not c.automatic], base, credit)
    everything = _count_lanes(chosen, base, credit)
    if everything.total > AUTOMATIC_SUPPORT and len(everything.sizes) > len(fixed.sizes):
        everything, chosen = fixed, [c for c in chosen if not c.automatic]
    limit = min((c.strategy.max_lanes for c in chosen if isinstance(c.strategy, Enumerate)), default=0)
    if everything.total > limit and chosen:
        counts = ", ".join(f"'{c.name}': {everything.sizes[c.id]}" for c in chosen)
        raise StrategyError(
            f"Enumerating jointly needs {everything.total} assignments ({counts}), more than max_lanes={limit}. Elements whose costs meet "
            "(particles of a nonlinear objective, a site summed over its plate, the steps of a scan) multiply. Use 'score' for some of "
            "these sites, fewer particles, or Enumerate(max_lanes=...)."
        )
    forced, stride = {}, 1
    for c in chosen:
        shape, size, joint = base.log_probs[c.id].shape, everything.sizes[c.id], everything.joint[c.id]
        code = np.arange(everything.total) // stride % size
        stride *= size
        elements = [n if axis in joint else 1 for axis, n in enumerate(shape)]
        digits = code[:, None] // c.support_size ** np.arange(math.prod(elements)) % c.support_size
        forced[c.id] = jnp.broadcast_to(jnp.asarray(digits).reshape(-1, *elements), (everything.total, *shape))
    return Lanes(forced, everything.sizes, everything.joint)


class _Count(eqx.Module):
    sizes: dict[str, int]
    joint: dict[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        return math.prod(self.sizes.values())


def _aligned(relation: Relation) -> bool:
    return relation is not None and relation[0] == "at"


def _count_lanes(chosen: list[Choice], base: Run, credit: list[Deps]) -> _Count:
    sizes, joint = {}, {}
    for c in chosen:
        shape = base.log_probs[c.id].shape
        relations = [deps[c.id] for deps in credit if c.id in deps]
        meets = tuple(a for a in range(len(shape)) if any(not _aligned(r[a]) for r in relations))
        joint[c.id] = meets
        sizes[c.id] = c.support_size ** math.prod(shape[a] for a in meets) if relations else 1
    return _Count(sizes, joint)
