"""Positions without bounds for the continuous free sites of a target, and its density in parts there."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from ppl_ext.algorithms.held_sites import NothingHidden
from ppl_ext.algorithms.target import ImposeSome, RecordInside, Target, is_plain
from ppl_ext.densities.distributions import unmasked
from ppl_ext.densities.log_density import LogDensity, site_term
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ModelError
from ppl_ext.program import log_density
from ppl_ext.runtime.explain import explained, where_density
from ppl_ext.tracing.scan_bodies import run_in_scan_body

TIME = "time"  # what the steps of a scan are called, as in a report


class Free(NamedTuple):
    """The free sites of a target: ``continuous`` ones, in whose positions particles move, ``finite`` ones,
    summed out, and which of the former lie in a scan.
    """

    continuous: tuple[str, ...]
    finite: tuple[str, ...]
    in_scan: frozenset[str]


def free_sites(where: str, target: Target) -> Free:
    """:raises ModelError: for a discrete site without a finite list of values, or if none is continuous."""
    continuous, finite = [], []
    for name in target.free:
        fn = target.sites[name]["fn"]
        if not fn.support.is_discrete:
            continuous.append(name)
        elif fn.has_enumerate_support:
            finite.append(name)
        else:
            raise ModelError(
                f"{where} cannot move site '{name}' ({type(fn).__name__}): it is discrete, and has no finite "
                "list of values to be summed over. Marginalise it in the model, or use ImportanceSampling."
            )
    if not continuous:
        raise ModelError(
            f"{where} moves particles in continuous sites, and {listed(target.free)} are finite: use "
            "Enumeration, which is exact."
        )
    in_scan = frozenset(n for n in continuous if target.sites[n].get("_control_flow_done"))
    return Free(tuple(continuous), tuple(finite), in_scan)


class Constrain(ImposeSome):
    """Give the sites the values of unconstrained positions, each by the support that it has in this run, and
    sum the logs of the Jacobians.
    """

    def __init__(self, given: Mapping[str, Any], positions: Mapping[str, jax.Array], in_scan: Mapping):
        super().__init__(dict(given), set())
        self.positions, self.log_det = positions, jnp.zeros(())
        for name, transform in in_scan.items():
            self.values[name] = self._value(transform, name)

    def _value(self, transform, name: str) -> jax.Array:
        u = self.positions[name]
        x = transform(u)
        self.log_det = self.log_det + jnp.sum(transform.log_abs_det_jacobian(u, x))
        return x

    def _sample(self, msg, values):
        name = msg["name"]
        if name in self.positions and name not in self.values:
            self.values[name] = self._value(biject_to(msg["fn"].support), name)
        super()._sample(msg, self.values)


class _Mark(Messenger):
    """Mark finite sites, in a scan too, to be summed out."""

    def __init__(self, names: frozenset[str]):
        super().__init__()
        self.names = names

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Mark(self.names))
        elif msg["type"] == "sample" and msg["name"] in self.names and not msg["is_observed"]:
            msg["infer"] = {**msg["infer"], "enumerate": "parallel"}


class _OnlyDrawn(Messenger):
    """Leave of a density what a forward run draws from: nothing given, and each draw by its bare law."""

    def __init__(self, given: frozenset[str], exact: frozenset[str]):
        super().__init__()
        self.given, self.exact = given, exact

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _OnlyDrawn(self.given, self.exact))
        elif msg["type"] == "sample" and not msg.get("_control_flow_done") and msg["name"] not in self.exact:
            if msg["is_observed"] or msg["name"] in self.given:
                msg["fn"] = msg["fn"].mask(False)
            else:
                msg["fn"], msg["scale"] = unmasked(msg["fn"]), None


class Rows(NamedTuple):
    """Rows of a plate, or steps of a scan, that come in order: ``num`` of them in ``num_blocks`` blocks."""

    name: str
    num: int
    num_blocks: int

    def summed(self, rows: jax.Array, rest: jax.Array) -> jax.Array:
        """(num_blocks,): what has no rows comes with the first of them."""
        block = jnp.arange(self.num) * self.num_blocks // self.num
        return jnp.zeros(self.num_blocks, rows.dtype).at[block].add(rows).at[0].add(rest)


class Unconstrained:
    """The density of a target in unconstrained positions.

    :param where: who asks, for errors.
    :param rows: how the data come; None for all at once.
    :param from_prior: whether the density is needed in two parts, that of a forward run and what comes to it.
    """

    def __init__(self, where: str, target: Target, rows: Rows | None = None, from_prior: bool = True):
        self.where, self.target, self.rows, self.from_prior = where, target, rows, from_prior
        self.free = free_sites(where, target)
        self.given = frozenset(target.given)
        self.laws = frozenset(self._check_nested())  # factors that are the law of what is drawn
        self.in_scan = {n: self._transform_in_scan(n) for n in sorted(self.free.in_scan)}
        example = self.positions({n: target.sites[n]["value"] for n in self.free.continuous})
        flat, self.unravel = ravel_pytree(example)
        self.size, self.dtype = flat.size, flat.dtype

    def _check_nested(self) -> Iterator[str]:
        for name, site in self.target.sites.items():
            infer = site.get("infer", {})
            if (estimate := infer.get("_ppl_ext_estimate")) is None:
                continue
            if estimate.kind != "exact":
                raise ModelError(
                    f"{self.where} moves particles by the density itself, and '{name}' in the program is an "
                    "estimate of one. Use an exact algorithm there (Enumeration, ExactFilter), or "
                    "ImportanceSampling here."
                )
            if infer.get("_ppl_ext_normalised"):
                yield name
            elif self.from_prior:
                raise ModelError(
                    f"{self.where} cannot start from the prior: '{name}' in the program holds data, and its "
                    "density does not come apart. Start from a guide, initial=, or leave the sites that it "
                    f"sums out in the program: {self.where} sums finite ones out by itself."
                )

    def _transform_in_scan(self, name: str):
        support = self.target.sites[name]["fn"].support
        if any(isinstance(x, jax.Array) for x in jax.tree.leaves(support)):
            raise ModelError(
                f"{self.where}: the support of site '{name}' in a scan is made of arrays, which may change "
                "with other sites. Wrap the program in ppl_ext.handlers.fixed_support(program, "
                f"'{name}')."
            )
        return biject_to(support)

    def positions(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unconstrained positions of values, by site."""
        record = self._run(ImposeSome({**self.target.given, **values}, set()), None)
        return {
            n: biject_to(record.sites[n]["fn"].support).inv(jnp.asarray(record.sites[n]["value"], float))
            for n in self.free.continuous
        }

    def position(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """(D,) the unconstrained position of values."""
        return ravel_pytree(self.positions(values))[0]

    def values(self, position: jax.Array) -> dict[str, jax.Array]:
        """The continuous sites' values at a position (D,)."""
        return self._constrained(position)[0]

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """The continuous sites' values in a forward run of the program, the given ones imposed."""
        record = self._run(ImposeSome(self.target.given, set()), key)
        return {n: record.sites[n]["value"] for n in self.free.continuous}

    def prior_and_parts(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The log density of a forward run's draw at a position (D,), Jacobian included, and what the data
        add to it, (K,).
        """
        values, log_det, sites = self._constrained(position)
        if self.free.finite:
            return self._parts_summed(values, log_det)
        prior, rest = log_det, jnp.zeros(())
        rows = jnp.zeros(0 if self.rows is None else self.rows.num)
        for site in sites.values():
            if site["type"] != "sample" or site["infer"].get("_ppl_ext_kept"):
                continue
            with explained(self.target.program, partial(where_density, site["name"]), site):
                law, counted = split_density(site, self.given)
            if site["name"] in self.laws:
                law, counted = counted, None
            prior = prior if law is None else prior + jnp.sum(law)
            if counted is None:
                continue
            axis = None if self.rows is None else _axis(site, self.rows.name)
            if axis is None:
                rest = rest + jnp.sum(counted)
            else:
                rows = rows + _along(jnp.broadcast_to(counted, site["fn"].batch_shape), axis)
        return prior, jnp.reshape(rest, 1) if self.rows is None else self.rows.summed(rows, rest)

    def joint(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The log joint density at a position (D,), finite sites summed out, and the log Jacobian."""
        values, log_det, _ = self._constrained(position)
        return self.density(values).total, log_det

    def density(self, values: Mapping[str, jax.Array], only_drawn: bool = False) -> LogDensity:
        """The log density of the given and continuous sites' values, finite sites summed out."""
        names, given, laws = frozenset(self.free.finite), self.given, self.laws

        def program():
            with _Mark(names):
                if not only_drawn:
                    return self.target.program()
                with _OnlyDrawn(given, laws):
                    return self.target.program()

        with self.target.apart():
            return log_density(program, {**self.target.given, **values})

    def _parts_summed(self, values, log_det) -> tuple[jax.Array, jax.Array]:
        whole, prior = self.density(values), self.density(values, only_drawn=True)
        if self.rows is None:
            return prior.total + log_det, jnp.reshape((whole - prior).total, 1)
        rows, rest = jnp.zeros(self.rows.num), jnp.zeros(())
        difference = whole - prior
        if not any(p.name == self.rows.name for label in difference.labels for p in label.plates):
            raise ModelError(
                f"{self.where}: finite sites ({listed(self.free.finite)}) link what lies along "
                f"'{self.rows.name}', so that its rows have no densities of their own. Leave along= out, to "
                "temper the whole likelihood."
            )
        for term, label in zip(difference.terms, difference.labels, strict=True):
            plate = next((p for p in label.plates if p.name == self.rows.name), None)
            if plate is None:
                rest = rest + jnp.sum(term)
            else:
                rows = rows + _along(term, plate.dim)
        return prior.total + log_det, self.rows.summed(rows, rest)

    def _constrained(self, position: jax.Array):
        handler = Constrain(self.target.given, self.unravel(position.astype(self.dtype)), self.in_scan)
        record = self._run(handler, None)
        values = {n: record.sites[n]["value"] for n in self.free.continuous}
        return values, handler.log_det, record.sites

    def _run(self, handler: Messenger, key: jax.Array | None) -> RecordInside:
        with self.target.apart(key), (record := RecordInside()), self._nothing_hidden(key), handler:
            self.target.program()
        return record

    def _nothing_hidden(self, key: jax.Array | None):
        return nullcontext() if key is not None else NothingHidden(self.where, self.target.sites)


def split_density(site: dict, given: frozenset[str]) -> tuple[jax.Array | None, jax.Array | None]:
    """A site's log density in two parts, element by element: that of its draw in a forward run, and what it
    counts for beside that. None is no such part.
    """
    if site["is_observed"] or site["name"] in given:
        return None, site_term(site, {})[0]
    law = unmasked(site["fn"]).log_prob(site["value"])
    return law, None if is_plain(site) else site_term(site, {})[0] - law


def rows_of(where: str, target: Target, name: str, num_blocks: int | None) -> Rows:
    """How the data along a plate, or along ``"time"`` of a scan, come.

    :raises ModelError: if nothing that is given lies along it.
    """
    sizes, others = set(), set()
    for site in target.sites.values():
        if site["type"] != "sample" or site["infer"].get("_ppl_ext_kept"):
            continue
        if not site["is_observed"] and site["name"] not in target.given:
            continue
        others |= {f.name for f in site["cond_indep_stack"]}
        others |= {TIME} if site.get("_control_flow_done") else set()
        if (axis := _axis(site, name)) is not None:
            sizes.add(site["fn"].batch_shape[axis])
    if len(sizes) != 1:
        raise ModelError(
            f"{where}: along={name!r} names no plate of observed sites, nor the steps of a scan; there are "
            f"{listed(sorted(others))}. Leave it out to temper the whole likelihood."
        )
    [num] = sizes
    return Rows(name, num, num if num_blocks is None else min(num, num_blocks))


def _axis(site: dict, name: str) -> int | None:
    """Which axis of a site's batch shape lies along a plate, or a scan's time."""
    found: int | None = next((f.dim for f in site["cond_indep_stack"] if f.name == name), None)
    if found is None and name == TIME and site.get("_control_flow_done") and site["fn"].batch_shape:
        return -len(site["fn"].batch_shape)
    return found


def _along(term: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(term, axis, -1).reshape(-1, term.shape[axis]).sum(0)
