"""What an algorithm works on: a program with some of its sites given, an unnormalised density over the
others.
"""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import Delta, Distribution, ExpandedDistribution, Independent, MaskedDistribution
from numpyro.distributions.util import is_identically_one
from numpyro.primitives import _PYRO_STACK

from ppl_ext.algorithms.hidden_sites import Inner, find_run, has_strategies, run_of_its_own, unused_run
from ppl_ext.densities.bound_direction import averaged
from ppl_ext.densities.distributions import unmasked
from ppl_ext.densities.log_density import LogDensity, site_term
from ppl_ext.densities.recording import Impose, Record, listed, whole_message
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.expectations.replicate import replicated
from ppl_ext.expectations.run import Run
from ppl_ext.program import Draw, Program, log_density, simulate
from ppl_ext.runtime.arguments import check_call
from ppl_ext.tracing.vmapped_sites import sent_out


class Particle(NamedTuple):
    """One setting of the free sites.

    ``log_density`` is log p(given, values). ``log_weight`` is that less the log density of the program's own
    forward draw of the values.
    """

    values: dict[str, jax.Array]
    log_density: jax.Array
    log_weight: jax.Array


class Retained(NamedTuple):
    """A particle for a conditional run. Its forward weight is computed only on demand: not every program has
    one.
    """

    values: dict[str, jax.Array]
    log_density: jax.Array
    log_weight: Callable[[], jax.Array]


class RecordInside(Record):
    """The sites of a run inside a transformation: keys are not its concern, nor what handlers outside do for
    a kept site.
    """

    def process_message(self, msg):
        sent_out(self, self.state, msg)

    def postprocess_message(self, msg):
        if not msg.get("_ppl_ext_foreign"):
            super().postprocess_message(msg)


class PriorRecord(RecordInside):
    """A run that is only weighed by :func:`forward_weight`: nested marginals need not estimate their
    densities.
    """


class ImposeSome(Impose):
    """Give values to some sites; the others are drawn."""

    strict = False

    def _sample(self, msg, values):
        if msg["name"] in values:
            super()._sample(msg, values)


def only_forward() -> bool:
    """Whether the innermost run going on is a :class:`PriorRecord`."""
    return isinstance(
        next((h for h in reversed(_PYRO_STACK) if isinstance(h, RecordInside)), None), PriorRecord
    )


def forward_weight(sites: dict[str, dict], given: frozenset[str]) -> jax.Array:
    r"""The log weight of a forward run in which ``given`` sites had values and the others were drawn.

    .. math:: \sum_{s \text{ given or observed}} \log p(x_s \mid x_{<s})

    A nested marginal or normalize answers for its own sites.
    """
    total = jnp.zeros(())
    for name, site in sites.items():
        if site["type"] != "sample" or site["infer"].get("_ppl_ext_kept"):
            continue
        if (nested := site["infer"].get("_ppl_ext_forward")) is not None:
            total = total + nested(given)
        elif site["is_observed"] or name in given:
            total = total + jnp.sum(site_term(site, {})[0])
        elif not is_plain(site):  # drawn from its law, but it counts for more or less than that
            total = (
                total
                + jnp.sum(site_term(site, {})[0])
                - jnp.sum(unmasked(site["fn"]).log_prob(site["value"]))
            )
    return total


def is_normalised(sites: dict[str, dict]) -> bool:
    """Whether a forward run draws from the very density that it scores: nothing observed, masked or
    rescaled.
    """
    samples = [s for s in sites.values() if s["type"] == "sample" and not s["infer"].get("_ppl_ext_kept")]
    return all(s["infer"].get("_ppl_ext_normalised", not s["is_observed"] and is_plain(s)) for s in samples)


def is_estimated(sites: dict[str, dict]) -> bool:
    """Whether a density inside is itself an estimate."""
    return any(
        s["infer"]["_ppl_ext_estimate"].kind != "exact"
        for s in sites.values()
        if "_ppl_ext_estimate" in s.get("infer", {})
    )


def is_plain(site) -> bool:
    """Whether a site is scored by the very law that it is drawn from."""
    return unmasked(site["fn"]) is site["fn"] and (site["scale"] is None or is_identically_one(site["scale"]))


class Target:
    """The free sites of a program whose other sites are ``given``. Algorithms draw and score through it, so
    that nothing leaks out.
    """

    def __init__(
        self,
        program: Program,
        given: dict[str, jax.Array],
        free: tuple[str, ...],
        pilot: Inner,
        sites: dict[str, dict],
    ):
        self.program, self.given, self.free = program, given, free
        self.scope, self.run, self.params, self.sites = pilot.scope, pilot.run, pilot.params, sites
        self.possible: jax.Array | None = None  # whether the last draw was: see pick
        self.absent_drawn = False  # see absent_sites

    @contextmanager
    def _inside(self, run: Run | None = None):
        run = find_run() if run is None else run
        with Inner(self.scope, self.run if run is None else run, self.params):
            yield

    def replicate(self, fn: Callable[[], Any], num: int):
        """``fn`` for each of ``num`` particles at once, stacked; as :func:`ppl_ext.replicate`."""
        run = find_run()
        return replicated(self.run if run is None else run, fn, num)

    def sample(self, name: str, fn: Distribution) -> jax.Array:
        """A site of the algorithm's own, such as an index; it has a gradient strategy like any other."""
        with self._inside():
            return numpyro.sample(name, fn)

    def key(self) -> jax.Array:
        """A random key of the run's."""
        with self._inside():
            return numpyro.prng_key()

    @property
    def has_strategies(self) -> bool:
        """Whether an expectation goes on, so that the algorithm's random choices should be sites."""
        run = find_run()
        return has_strategies(self.run if run is None else run)

    def annotations(self, name: str, fn: Distribution, infer: dict) -> dict:
        """``infer`` of a hidden site after the handlers outside."""
        msg = whole_message(f"{self.scope}/{name}", fn, dict(infer))
        for handler in reversed(_PYRO_STACK):
            if getattr(handler, "reaches_inner", False):
                getattr(handler, "annotate", handler.process_message)(msg)
        return {k: v for k, v in msg["infer"].items() if not k.startswith("_ppl_ext")}

    @contextmanager
    def inside(self):
        """Where the program's and the algorithm's own sites are hidden."""
        with self._inside():
            yield

    @contextmanager
    def unused(self):
        """Run the program for draws on which nothing depends."""
        with Inner(self.scope, unused_run(), self.params, frozenset()):
            yield

    @contextmanager
    def apart(self, key: jax.Array | None = None):
        """Run the program by this key, out of sight of an expectation; without one, where all of its sites
        have values.
        """
        with self._inside(unused_run() if key is None else run_of_its_own(key)):
            yield

    def pick(self, log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One index with probability proportional to its weight, and whether any weight was positive;
        otherwise any index will do.
        """
        possible = self.possible = jnp.isfinite(log_weights).any()
        return self.sample("index", dist.Categorical(logits=jnp.where(possible, log_weights, 0.0))), possible

    def forward(self, values: dict[str, jax.Array] | None = None) -> Particle:
        """Run the program with the given sites (and ``values``) imposed and the others drawn as the program
        does.
        """
        with self._inside(), (record := PriorRecord()), ImposeSome(self.given | (values or {}), set()):
            self.program()
        given = frozenset(self.given)
        everything = given.union(self.free)
        values = {n: record.sites[n]["value"] for n in self.free}
        return Particle(values, forward_weight(record.sites, everything), forward_weight(record.sites, given))

    def log_density(self, values: dict[str, jax.Array], run: Run | None = None) -> LogDensity:
        """log p(given, values), all free sites among the values; what is drawn to estimate it, by ``run``."""
        with self._inside(run):
            return log_density(self.program, {**self.given, **values})

    def propose(self, proposal: Callable) -> Draw:
        """Draw the free sites from another program, which is called with the given values before the
        program's own arguments.
        """
        with self._inside():
            return simulate(self._proposal(proposal))

    def log_proposal(self, proposal: Callable, values: dict[str, jax.Array]) -> LogDensity:
        with self._inside():
            return log_density(self._proposal(proposal), values)

    def _proposal(self, proposal: Callable) -> Program:
        return Program(proposal, (dict(self.given), *self.program.args), self.program.kwargs)

    def only(self, free: tuple[str, ...], more: dict[str, jax.Array] | None = None) -> "Target":
        """The target of fewer free sites, with ``more`` given ones."""
        fewer = copy.copy(self)
        fewer.free, fewer.given = free, self.given | (more or {})
        return fewer

    def admit(self, proposal: Callable) -> dict[str, dict]:
        """Run a proposal once, outside of any ``vmap``: NumPyro learns its parameters, and we that it
        proposes what it should. The sites that it proposes are returned.
        """
        program = self._proposal(proposal)
        try:
            check_call(f"The proposal of {self.scope}", proposal, program.args, program.kwargs)
        except ArgumentError as error:
            raise ArgumentError(
                f"{error} It is called with a dict of what is given, and then with the program's arguments. "
                "A guide does without the first: for particles give its params=, too; elsewhere wrap it, "
                "lambda given, *args: guide(*args)."
            ) from None
        with Inner(self.scope, unused_run(), self.params, frozenset()), (record := RecordInside()):
            program()
        proposed = {n: s for n, s in record.sites.items() if s["type"] == "sample" and not s["is_observed"]}
        if missed := [n for n in self.free if n not in proposed]:
            raise ModelError(
                f"The proposal of {self.scope} misses {listed(missed)}; it must draw {listed(self.free)}."
            )
        if extra := [n for n in proposed if n not in self.free]:
            raise ModelError(
                f"The proposal of {self.scope} draws {listed(extra)}, which the program does not leave "
                f"free; it must draw {listed(self.free)}. Sum an auxiliary site out by "
                "ppl_ext.marginal(proposal, keep=...)."
            )
        if points := [n for n in self.free if is_point(proposed[n]) and not is_point(self.sites[n])]:
            raise ModelError(
                f"The proposal of {self.scope} draws {listed(points)} at a single point, in whole or in "
                "part, which has no density to weigh by. Take one with a spread, such as a fitted AutoNormal."
            )
        return proposed


def is_point(site: dict) -> bool:
    """Whether a site's law holds its value, or elements of it, at a point."""
    fn = site["fn"]
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, Delta) or getattr(fn, "holds_points", False)


def log_ratio(above: LogDensity, below: LogDensity) -> jax.Array:
    """The log of an importance weight whose densities may be estimates, in the directions that keep it
    unbiased.
    """
    ratio = above - below
    averaged((label.site, label.estimate) for label in ratio.labels)
    return ratio.total


def log_quotient(log_density: jax.Array, log_evidence: jax.Array, possible: jax.Array) -> jax.Array:
    """log(p/w); where no draw was possible w is zero, and so is a bound made of p/(p/w), if only this number
    is finite and not NaN.
    """
    return jnp.where(
        possible, jnp.where(possible, log_density, 0.0) - jnp.where(possible, log_evidence, 0.0), 0.0
    )
