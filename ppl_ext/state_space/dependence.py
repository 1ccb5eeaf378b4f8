"""Which quantities of a state-space model depend on which, found once from the data flow of one step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.densities.distributions import element_mask
from ppl_ext.state_space.lowering import RunUpToScan, Scan, run_step
from ppl_ext.tracing.jaxprs import uses


class Uses(NamedTuple):
    """What depends on what, as far as the traced program shows. Entries of the carry are numbered as JAX
    flattens it.
    """

    reaches_init: frozenset[str]  # initial sites that the first carry depends on
    leaks: frozenset[str]  # initial sites that a step uses without the carry, or parameters' laws use
    carry: bool  # the new carry depends on the old carry, beyond the step's sites and what is known
    emission: bool  # the emission does
    handed_on: frozenset[str]  # observed sites whose value the new carry or another site depends on
    # entries of the carry that no latent value reaches: at each time the same for all particles
    known: tuple[int, ...]


def find_uses(rerun: Callable, first: RunUpToScan, free: list[str], is_drawn: Callable[[str], bool]) -> Uses:
    """From the run up to the scan and one step, by eliminating what an output does not need. ``free`` are the
    sites without a value.

    :param is_drawn: whether an observed site that is handed on may have gaps, which are drawn.
    """
    assert first.scan is not None and first.step is not None
    x = jax.tree.map(lambda a: a[0] if len(a) else jnp.zeros(a.shape[1:], a.dtype), first.scan.xs)
    latent, seen = frozenset(first.step.latent), first.step.may_hand_on()

    def flow(free_values, carry, values, seen):
        before = rerun(free_values, None)
        scan: Scan = before.scan._replace(imputed=frozenset(seen))
        prior = before.terms(frozenset(n for n in first.latent if n not in free), {}).latent
        carry, _, step = run_step(scan, carry, x, {**values, **seen})
        terms = step.as_given().terms(latent, {})
        inits, carries = (
            {f"{what}/{i}.": leaf for i, leaf in enumerate(jax.tree.leaves(c))}
            for what, c in (("init", scan.init), ("new", carry))
        )
        return {"rest": (scan.xs, prior, terms.latent), "emission": terms.observed, **inits, **carries}

    ins = (
        {n: first.sites[n]["value"] for n in free},
        first.scan.init,
        {n: first.step.sites[n]["value"] for n in first.step.latent},
        seen,
    )
    num = len(jax.tree.leaves(first.scan.init))
    closed, out = jax.make_jaxpr(flow, return_shape=True)(*ins)
    owners = [n for n in sorted(free) for _ in jax.tree.leaves(ins[0][n])]
    owners += [f"carry/{i}" for i in range(num)]
    owners += ["values/"] * len(jax.tree.leaves(ins[2])) + [f"seen/{n}" for n in sorted(seen)]
    which = [name for name in sorted(out) for _ in jax.tree.leaves(out[name])]

    def used_by(*names: str) -> frozenset[str]:
        used = uses(closed, [name.startswith(names) for name in which])
        return frozenset(owner for owner, is_used in zip(owners, used, strict=True) if is_used)

    init, new, rest, emission = used_by("init/"), used_by("new/"), used_by("rest"), used_by("emission")
    free_sites, of_steps = frozenset(free), rest | emission | new
    handed_on = frozenset(n for n in seen if f"seen/{n}" in of_steps)
    drawn = {"values/", *(f"seen/{n}" for n in sorted(handed_on) if is_drawn(n))}
    carries = {f"carry/{i}" for i in range(num)}
    known: tuple[int, ...] = ()
    if carries & (new | emission):  # else nothing is there to be told apart
        inits, news = ([used_by(f"{what}/{i}.") for i in range(num)] for what in ("init", "new"))
        known = _known(inits, news, free_sites, drawn)
        carries -= {f"carry/{i}" for i in known}
        new = frozenset[str]().union(*(used for i, used in enumerate(news) if i not in known))
    return Uses(
        init & free_sites,
        of_steps & free_sites,
        bool(carries & new),
        bool(carries & emission),
        handed_on,
        known,
    )


def idle_sites(rerun: Callable, first: RunUpToScan, candidates: list[str]) -> tuple[str, ...]:
    """Sites before the scan that reach nothing of it, and that no other site's law depends on either; their
    own laws sum to one.
    """
    counted = [
        n
        for n in candidates
        if first.sites[n]["scale"] is None and element_mask(first.sites[n]["fn"]) is None
    ]
    if not counted:
        return ()

    others = {n: first.sites[n]["value"] for n in first.latent if n not in counted and n not in first.fixed}

    def laws(values):
        before = rerun({**others, **values}, None)
        return {n: before.law(n) for n in before.sites}

    closed, out = jax.make_jaxpr(laws, return_shape=True)({n: first.sites[n]["value"] for n in counted})
    elsewhere: set[str] = set()
    for i, name in enumerate(sorted(out)):
        used = uses(closed, [j == i for j in range(len(out))])
        elsewhere |= {n for n, is_used in zip(sorted(counted), used, strict=True) if is_used and n != name}
    return tuple(n for n in counted if n not in elsewhere)


def _known(inits: list, news: list, free: frozenset[str], drawn: set[str]) -> tuple[int, ...]:
    """The largest set of entries that begin without a free site, and follow without a drawn value from
    themselves alone. (A free site that a step uses without the carry is refused.)"""
    known = {i for i, used in enumerate(inits) if not used & free}
    while True:
        others = drawn | {f"carry/{i}" for i in range(len(news)) if i not in known}
        kept = {i for i in known if not news[i] & others}
        if kept == known:
            return tuple(sorted(known))
        known = kept
