"""Which sites are enumerated jointly, which are compared with alternatives, and in how many lanes: reruns of
the program in one ``vmap``.

Elements of a site whose costs never meet (a plate's slices, particles of a linear objective) share lanes;
only those that meet multiply (joint enumeration) or come one after another (alternatives).
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import StrategyError
from ppl_ext.expectations.choices import Assigned, Choice, Replaced
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import Enumerate, LocalStrategy
from ppl_ext.gradients.default import AUTOMATIC_SUPPORT
from ppl_ext.tracing.credit import Deps, Relation, spread


class Plan(eqx.Module):
    """How each choice of a run is differentiated."""

    joint: "JointLanes"
    local: "LocalLanes"
    scored: list[Choice] = eqx.field(static=True)


class JointLanes(eqx.Module):
    """Joint assignments of the enumerated sites: ``forced`` has one row of support indices per lane."""

    forced: dict[str, Assigned]
    sizes: dict[str, int] = eqx.field(static=True)
    joint: dict[str, tuple[int, ...]] = eqx.field(static=True)

    @property
    def total(self) -> int:
        return math.prod(self.sizes.values())

    def weights(self, terms, run: Run, credit: list[Deps]) -> list[jax.Array]:
        """For each cost, the probability of this lane's assignment of the sites it feels; the others are
        averaged over.
        """
        out = []
        for cost, deps in zip(terms, credit, strict=True):
            # A product and not a sum of logarithms: at probability 0 its derivative is right.
            weight = jnp.ones((1,) * cost.ndim)
            for id in self.forced:
                if id in deps:
                    relation = tuple(None if axis in self.joint[id] else r for axis, r in enumerate(deps[id]))
                    weight = weight * spread(run.laws[id].prob, relation, cost.ndim, times=True)
                else:
                    weight = weight / self.sizes[id]
            out.append(weight)
        return out


class LocalLanes(eqx.Module):
    """Lanes in which one site takes one alternative: in all elements at once, or in one where their costs
    meet.
    """

    choices: list[Choice] = eqx.field(static=True)
    shapes: dict[str, tuple[int, ...]] = eqx.field(static=True)
    meets: dict[str, tuple[int, ...]] = eqx.field(static=True)
    counts: dict[str, int] = eqx.field(static=True)
    alternatives: dict[str, int] = eqx.field(static=True)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def replaced(self, lane: jax.Array) -> dict[str, Replaced]:
        """The branch that each element of each site takes in a lane; lanes beyond the last leave everything
        as it was drawn.
        """
        out, first = {}, 0
        for c in self.choices:
            shape, count = self.shapes[c.id], self.counts[c.id]
            mine, first = lane - first, first + count
            branch, element = mine % self.alternatives[c.id] + 1, mine // self.alternatives[c.id]
            here = (mine >= 0) & (mine < count)
            stride = 1
            for axis in self.meets[c.id]:
                along = jnp.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
                here = here & (along == element // stride % shape[axis])
                stride *= shape[axis]
            out[c.id] = Replaced(jnp.broadcast_to(jnp.where(here, branch, 0), shape))
        return out


def plan_lanes(base: Run, credit: list[Deps]) -> Plan:
    joint = [c for c in base.choices if isinstance(c.strategy, Enumerate) and c.support_size]
    fixed = _count_lanes([c for c in joint if not c.automatic], base, credit)
    everything = _count_lanes(joint, base, credit)
    if everything.total > AUTOMATIC_SUPPORT and len(everything.sizes) > len(fixed.sizes):
        everything, joint = fixed, [c for c in joint if not c.automatic]
    limit = min((c.strategy.max_lanes for c in joint if isinstance(c.strategy, Enumerate)), default=0)
    if everything.total > limit and joint:
        counts = ", ".join(f"'{c.name}': {everything.sizes[c.id]}" for c in joint)
        raise StrategyError(
            f"Enumerating jointly needs {everything.total} assignments ({counts}), more than "
            f"max_lanes={limit}. Elements whose costs meet (particles of a nonlinear objective, a site "
            "summed over its plate, the steps of a scan) multiply. Use 'enumerate_locally' or 'score' for "
            "some of these sites, fewer particles, or Enumerate(max_lanes=...)."
        )
    rest = [c for c in base.choices if c not in joint]
    local = _local_lanes(rest, base, credit)
    return Plan(_joint_lanes(joint, everything, base), local, [c for c in rest if c not in local.choices])


def _joint_lanes(chosen: list[Choice], lanes: "_Count", base: Run) -> JointLanes:
    forced, stride = {}, 1
    for c in chosen:
        shape, size, joint = base.laws[c.id].shape, lanes.sizes[c.id], lanes.joint[c.id]
        code = np.arange(lanes.total) // stride % size
        stride *= size
        elements = [n if axis in joint else 1 for axis, n in enumerate(shape)]
        digits = code[:, None] // c.support_size ** np.arange(math.prod(elements)) % c.support_size
        forced[c.id] = Assigned(
            jnp.broadcast_to(jnp.asarray(digits).reshape(-1, *elements), (lanes.total, *shape))
        )
    return JointLanes(forced, lanes.sizes, lanes.joint)


def _local_lanes(choices: Sequence[Choice], base: Run, credit: list[Deps]) -> LocalLanes:
    """All that ask for it, and of the others that can be enumerated the cheapest, while the lanes are few."""
    asked = [c for c in choices if isinstance(c.strategy, LocalStrategy)]
    able = [c for c in choices if c.automatic and c.support_size]
    meets: dict[str, tuple[int, ...]] = {}
    counts: dict[str, int] = {}
    alternatives: dict[str, int] = {}
    for c in [*asked, *able]:
        law = base.laws[c.id]
        shape: tuple[int, ...] = law.shape
        meets[c.id] = _meeting_axes(c, shape, credit)
        alternatives[c.id] = len(law.coefficients) - 1
        felt = any(c.id in deps for deps in credit)
        counts[c.id] = (
            alternatives[c.id] * math.prod(shape[a] for a in meets[c.id]) if felt and 0 not in shape else 0
        )
    budget = AUTOMATIC_SUPPORT
    for c in sorted(able, key=lambda c: counts[c.id]):
        budget -= counts[c.id]
        if budget >= 0:
            asked.append(c)
    asked = [c for c in choices if c in asked]  # in the order of the program
    ids = [c.id for c in asked]
    return LocalLanes(
        asked,
        {id: base.laws[id].shape for id in ids},
        {id: meets[id] for id in ids},
        {id: counts[id] for id in ids},
        {id: alternatives[id] for id in ids},
    )


class _Count(eqx.Module):
    sizes: dict[str, int]
    joint: dict[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        return math.prod(self.sizes.values())


def _aligned(relation: Relation) -> bool:
    return relation is not None and relation[0] == "at"


def _meeting_axes(choice: Choice, shape: tuple[int, ...], credit: list[Deps]) -> tuple[int, ...]:
    relations = [deps[choice.id] for deps in credit if choice.id in deps]
    return tuple(a for a in range(len(shape)) if any(not _aligned(r[a]) for r in relations))


def _count_lanes(chosen: list[Choice], base: Run, credit: list[Deps]) -> _Count:
    sizes, joint = {}, {}
    for c in chosen:
        shape = base.laws[c.id].shape
        felt = any(c.id in deps for deps in credit)
        joint[c.id] = _meeting_axes(c, shape, credit)
        sizes[c.id] = c.support_size ** math.prod(shape[a] for a in joint[c.id]) if felt else 1
    return _Count(sizes, joint)
