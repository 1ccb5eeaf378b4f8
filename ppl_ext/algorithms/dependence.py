"""Which quantities of a state-space model depend on which, found once from the data flow of one step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.algorithms.lowering import Before, Scan, run_step
from ppl_ext.jaxprs import uses


class Uses(NamedTuple):
    """What depends on what, as far as the traced program shows."""

    reaches_init: frozenset[str]  # initial sites that the first carry depends on
    leaks: frozenset[str]  # initial sites that a step uses without the carry, or parameters' laws use
    carry: bool  # the new carry depends on the old carry, beyond the step's sites
    emission: bool  # the emission does
    handed_on: frozenset[str]  # observed sites whose value the new carry or another site depends on


def find_uses(rerun: Callable, first: Before, free: list[str]) -> Uses:
    """From the run up to the scan and one step, by eliminating what an output does not need. ``free`` are the sites without a value."""
    assert first.scan is not None and first.step is not None
    x = jax.tree.map(lambda a: a[0] if len(a) else jnp.zeros(a.shape[1:], a.dtype), first.scan.xs)
    latent, seen = frozenset(first.step.latent), first.step.may_hand_on()

    def flow(free_values, carry, values, seen):
        before = rerun(free_values, None)
        scan: Scan = before.scan._replace(imputed=frozenset(seen))
        prior = before.terms(frozenset(n for n in first.latent if n not in free), {}).latent
        carry, _, step = run_step(scan, carry, x, {**values, **seen})
        terms = step.as_given().terms(latent, {})
        return {"init": scan.init, "rest": (scan.xs, prior, terms.latent), "carry": carry, "emission": terms.observed}

    ins = (
        {n: first.sites[n]["value"] for n in free},
        first.scan.init,
        {n: first.step.sites[n]["value"] for n in first.step.latent},
        seen,
    )
    closed, out = jax.make_jaxpr(flow, return_shape=True)(*ins)
    owners = [n for n in sorted(free) for _ in jax.tree.leaves(ins[0][n])]
    owners += ["carry/"] * len(jax.tree.leaves(ins[1])) + ["values/"] * len(jax.tree.leaves(ins[2])) + [f"seen/{n}" for n in sorted(seen)]
    which = [name for name in sorted(out) for _ in jax.tree.leaves(out[name])]

    def used_by(*names: str) -> frozenset[str]:
        used = uses(closed, [name in names for name in which])
        return frozenset(owner for owner, is_used in zip(owners, used, strict=True) if is_used)

    by_carry, by_emission = used_by("carry"), used_by("emission")
    return Uses(
        used_by("init") & frozenset(free),
        (used_by("rest") | by_carry | by_emission) & frozenset(free),
        "carry/" in by_carry,
        "carry/" in by_emission,
        frozenset(n for n in seen if f"seen/{n}" in used_by("carry", "rest", "emission")),
    )
