r"""A NumPyro model with one ``scan`` as a state-space model: what a filter or smoother needs of it, one
particle at a time.

.. math:: p(x_0) \prod_t \underbrace{m(x_t \mid c_{t-1})}_{\text{latent sites of a step}} \;
          \underbrace{g(y_t \mid c_{t-1}, x_t)}_{\text{observed sites, factors}}, \qquad c_t = \text{the new
          carry}

:func:`lower` runs the model up to the scan and returns a :class:`StateSpace`. It works inside ``jit`` and
``grad``: the result is a closure over the traced parameters and data, made anew in every trace; do not pass
it into a jitted function, but what it is made from.

- A *particle* is a :class:`Particle`: the carry, and the values of the step's latent sites that led to it
  (zeros at time 0).
- Sites before the scan are *parameters*, which have one value for all particles, or *initial sites*, which
  each particle draws. A given value makes a site a parameter; of the others, those that reach the first carry
  are initial sites, and a value is missing for the rest.
- A site before the scan that a handler inside the model gives a value (``substitute``, ``replay``) is a
  parameter; one that ``condition`` does, or that stands in the step, is an observed one, and counts in g.
  What nothing depends on needs no value; ``do`` leaves such sites.
- ``reparam`` in the step is not heeded: it leaves the law of a site as it is, and the state is the site's
  value.
- Handlers around the scan are heeded: ``scope`` in the names, ``scale`` and ``mask`` by a number in the
  densities. A seed, or a key of a site's own, is not: each particle draws by itself.
- NaN in an observed site means "not seen" (:mod:`ppl_ext.state_space.missing`); a mask on observations works
  too. Where the step hands the observed value on, to its carry or to another site, what was not seen is part
  of the state: the site is then among the latent ones (``imputed``), its value what was seen and, in the
  gaps, what was drawn. Data that are known to have no gap make no such site.
- A mask on a *latent* site of a step is lifted: what it hides is drawn from its law, so that padded series
  and ``obs_mask`` do what they should. If the site is finite, the draw is weighed: each of its outcomes
  counts one where it is masked, as in ``log_density``.
- ``scan`` steps once through its inputs. With ``reverse=True`` it begins at the last of them:
  :attr:`StateSpace.xs` and what is computed here stand in the order of the run, and
  :meth:`StateSpace.ordered` turns results into the order of the inputs, as NumPyro stacks them.
- Another scan, a scan or ``cond`` inside, subsampled plates and sites after the scan are refused.

Everything below works on one particle; ``jax.vmap`` makes N of it::

    ss = lower(model, (y,), {}, {"phi": 0.9})
    start = jax.vmap(lambda key: ss.initial(ss.draw_initial(key)))(random.split(key, N))  # a Start
    x_t = ss.inputs(t)  # or jax.lax.scan over ss.xs
    particles, log_weights = jax.vmap(lambda key, p: ss.propagate(key, p, x_t))(keys, start.particle)
    step = ss.step(particle, values, x_t)  # a Step: log densities at given values

For streaming, see :mod:`ppl_ext.state_space.streams`.
"""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from numpyro.handlers import block

from ppl_ext.densities.recording import listed
from ppl_ext.errors import ModelError
from ppl_ext.runtime.arguments import check_call, check_program, check_values
from ppl_ext.runtime.explain import explained
from ppl_ext.state_space.dependence import Uses, find_uses, idle_sites
from ppl_ext.state_space.gaps import gap_of, refuse_known
from ppl_ext.state_space.lowering import Inputs, Reached, RunUpToScan, backwards, run_step
from ppl_ext.state_space.site_runs import Terms

NO_SCAN = "The model has no numpyro.contrib.control_flow.scan, so there is no series to filter."


class Particle(NamedTuple):
    """The state after a step: the carry of the scan, and the latent sites of the step by name."""

    carry: Any
    sites: dict[str, jax.Array]


class Start(NamedTuple):
    """A particle at time 0. ``log_initial`` is the density of its initial sites, ``log_emission`` that of
    what is observed before the scan, and ``each`` the terms of this."""

    particle: Particle
    log_initial: jax.Array
    log_emission: jax.Array
    each: tuple[jax.Array, ...] = ()


class Step(NamedTuple):
    """A particle after a step with given latent values, their density m, and the density g of what the step
    observes, of which ``each`` are the terms.
    """

    particle: Particle
    log_transition: jax.Array
    log_emission: jax.Array
    each: tuple[jax.Array, ...] = ()


class Site(NamedTuple):
    """A site as it looks at one time: ``fn`` is its law in the first run (for its kind and support),
    ``plates`` its plate frames.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    fn: Any
    plates: tuple


class StateSpace:
    """A NumPyro model with one scan, one particle at a time (see the module); made by :func:`lower`.

    ``parameters``: values by name. ``parameter_sites``, ``initial_sites``, ``step_sites`` (latent ones),
    ``initial_observed``, ``step_observed``: :class:`Site` by name. ``xs``: inputs of all steps (a pytree with
    a leading time axis, for ``lax.scan``), ``num_steps``: how many, ``reverse``: whether the last inputs come
    first. ``log_prior``: log density of the parameters. ``imputed``: observed sites whose gaps are drawn, and
    whether there is one (``None``: not known yet).
    """

    def __init__(
        self,
        rerun: Callable,
        first: RunUpToScan,
        initial: tuple[str, ...],
        uses: Uses,
        imputed: dict[str, bool | None],
        idle: tuple[str, ...] = (),
    ):
        assert first.scan is not None and first.step is not None
        self._rerun, self._scan, self._uses = (
            rerun,
            first.scan._replace(imputed=frozenset(imputed), known=uses.known),
            uses,
        )
        self.imputed = imputed
        self.num_steps, self.xs, self.reverse = first.scan.length, first.scan.xs, first.scan.reverse
        before, step = first.sites, first.step.sites
        given = [n for n, s in before.items() if not s["is_observed"] and n not in (*initial, *idle)]
        self.parameters = {n: before[n]["value"] for n in given}
        self.parameter_sites = {n: _site(before[n]) for n in given}
        self.initial_sites = {n: _site(before[n]) for n in initial}
        self.initial_observed = {n: _site(s) for n, s in before.items() if s["is_observed"]}
        self.step_sites = {n: _site(step[n]) for n in (*first.step.latent, *imputed)}
        self.step_observed = {n: _site(s) for n, s in step.items() if n not in first.step.latent}
        self.log_prior = first.terms(frozenset(given), {}, bare=False).latent

    def inputs(self, t) -> Inputs:
        """The inputs of step t of the run, counted from 0."""
        return jax.tree.map(lambda a: a[t], self.xs)

    def ordered(self, series: Any) -> Any:
        """Series by step of the run, leaves (T, ...), in the order of the inputs; and back again."""
        return backwards(series) if self.reverse else series

    def ordered_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Order the latent sites of a trajectory: those of the steps are turned, initial ones are as
        they are. Imputed sites, which the model has as observed ones, are left out."""
        return {
            n: self.ordered(v) if n in self.step_sites else v
            for n, v in values.items()
            if n not in self.imputed
        }

    def anywhere(self) -> Particle:
        """A particle of the right shapes: its values are those of the first run."""
        return Particle(self._scan.init, {n: jnp.zeros(s.shape, s.dtype) for n, s in self.step_sites.items()})

    def draw_initial(self, key) -> dict[str, jax.Array]:
        """The initial sites of one particle, from their laws."""
        before = self._rerun({}, key)
        return {n: before.sites[n]["value"] for n in self.initial_sites}

    def run_initial(self, values: Mapping[str, Any], key) -> RunUpToScan:
        """The record of the sites before the scan; those without a value are drawn."""
        return self._rerun(values, key)

    def run_step(self, particle: Particle, values: Mapping[str, Any], x_t: Inputs, key):
        """The record of the sites of one step; those without a value are drawn."""
        return run_step(self._scan, particle.carry, x_t, dict(values), key)[2]

    def initial(self, values: Mapping[str, Any]) -> Start:
        """The particle at time 0 whose initial sites have these values."""
        return self._start(self._rerun(values, None))[0]

    def placed(self, values: Mapping[str, Any]) -> Particle:
        """The particle of :meth:`initial`, without its densities."""
        return self.anywhere()._replace(carry=self._rerun(values, None).scan.init)

    def initial_terms(self, values: Mapping[str, Any]) -> tuple[Particle, Terms]:
        """The start, as :meth:`initial`, with the parts of the density that a weight is made of."""
        start, terms = self._start(self._rerun(values, None))
        return start.particle, terms

    def start(self, key) -> tuple[Particle, dict[str, jax.Array], jax.Array]:
        """A particle at time 0 drawn from the laws of its initial sites, their values, and its log weight
        (see :meth:`propagate`).
        """
        before = self._rerun({}, key)
        start, terms = self._start(before)
        values = {n: before.sites[n]["value"] for n in self.initial_sites}
        return start.particle, values, terms.observed + terms.rescaled

    def _start(self, before: RunUpToScan) -> tuple[Start, Terms]:
        assert before.scan is not None
        terms = before.terms(frozenset(self.initial_sites), {})
        return (
            Start(self.anywhere()._replace(carry=before.scan.init), terms.latent, terms.observed, terms.each),
            terms,
        )

    def propagate(self, key, particle: Particle, x_t: Inputs) -> tuple[Particle, jax.Array]:
        """One step with the latent sites drawn from their laws, and the log weight g. (Where
        ``handlers.scale`` makes a latent site count for more or less than its law, the weight makes up for
        that.)"""
        carry, _, step = run_step(self._scan, particle.carry, x_t, {}, key)
        terms = step.terms(frozenset(self.step_sites), self._scan.scales)
        return self._particle(carry, step), terms.observed + terms.rescaled

    def run_from(self, carry: Any, x_t: Inputs, key) -> tuple[Any, Any]:
        """The new carry and the record of a step whose latent sites are drawn."""
        new, _, record = run_step(self._scan, carry, x_t, {}, key)
        return new, record

    def as_observed(self) -> "StateSpace":
        """The model with nothing imputed: a gap that is handed on is NaN."""
        other = copy.copy(self)
        other._scan, other.imputed = self._scan._replace(imputed=frozenset()), {}
        other.step_sites = {n: s for n, s in self.step_sites.items() if n not in self.imputed}
        return other

    def for_sums(self) -> "StateSpace":
        """The model for sums over all values of the latent sites: of imputed ones, what was seen has a
        density that sums to one. What is known of the carry is computed ahead, so that a step's state follows
        from its sites and inputs alone."""
        other = copy.copy(self)
        other._scan = self._scan._replace(idle=True)
        if self._uses.known and self.num_steps:
            latent = {n: jnp.zeros(s.shape, s.dtype) for n, s in self.step_sites.items()}

            def ahead(carry, x):
                new = self._particle(*run_step(self._scan, carry, x, latent)[::2]).carry
                return new, tuple(jax.tree.leaves(carry)[i] for i in self._uses.known)

            other.xs = self.xs._replace(known=jax.lax.scan(ahead, self._scan.init, self.xs)[1])
        return other

    def has_gap(self) -> jax.Array:
        """Whether an imputed site has a gap that another step could ask for: all but the last of the run."""
        carry = self._scan.init
        latent = {n: jnp.zeros(s.shape, s.dtype) for n, s in self.step_sites.items() if n not in self.imputed}

        def gaps(x):
            sites = run_step(self._scan._replace(imputed=frozenset()), carry, x, latent)[2].sites
            return jnp.stack([jnp.isnan(sites[n]["value"]).any() for n in self.imputed]).any()

        return (
            jax.vmap(gaps)(jax.tree.map(lambda a: a[:-1], self.xs)).any()
            if self.num_steps > 1
            else jnp.zeros((), bool)
        )

    def step(self, particle: Particle, values: Mapping[str, Any], x_t: Inputs) -> Step:
        """One step from a particle's carry with given values of the latent sites."""
        particle, terms = self.step_terms(particle, values, x_t)
        return Step(particle, terms.latent, terms.observed, terms.each)

    def step_terms(
        self, particle: Particle, values: Mapping[str, Any], x_t: Inputs
    ) -> tuple[Particle, Terms]:
        """A step, as :meth:`step`, with the parts of the density that a weight is made of."""
        carry, _, step = run_step(self._scan, particle.carry, x_t, dict(values))
        return self._particle(carry, step), step.terms(frozenset(self.step_sites), self._scan.scales)

    def moved(self, particle: Particle, values: Mapping[str, Any], x_t: Inputs) -> Particle:
        """The particle of :meth:`step`, without its densities, whose derivatives take long to trace."""
        carry, _, step = run_step(self._scan, particle.carry, x_t, dict(values))
        return self._particle(carry, step)

    def laws(self, particle: Particle, values: Mapping[str, Any], x_t: Inputs) -> dict[str, Any]:
        """The distributions of the latent sites of a step to these values."""
        step = run_step(self._scan, particle.carry, x_t, dict(values))[2]
        return {name: step.sites[name]["fn"] for name in self.step_sites}

    @property
    def is_scaled(self) -> bool:
        """Whether a handler around the scan makes its sites count for more or less than their laws."""
        return bool(self._scan.scales)

    def _particle(self, carry, step) -> Particle:
        carry = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), carry, self._scan.init)
        return Particle(carry, {n: step.sites[n]["value"] for n in self.step_sites})

    @cached_property
    def not_markov(self) -> str | None:
        """Why the latent sites of a step do not determine the state after it; ``None`` if they do, beside
        what no latent value reaches (a counter, a running mean of data) and all particles share.

        Then m(x_t | c_{t−1}) alone says whether a particle can follow another, and backward kernels may be
        used.
        """
        if not self._uses.carry:
            return None
        return (
            "The new carry depends on the old one beyond the step's latent sites "
            f"({listed(self.step_sites)}): part of the state follows from the past without noise, so no "
            "other past leads to it."
        )

    @property
    def emission_uses_carry(self) -> bool:
        """Whether the emission density depends on the previous state as well; then a backward kernel weighs m
        g and not m alone.
        """
        return self._uses.emission


def _site(msg: dict) -> Site:
    value = jnp.asarray(msg["value"])
    return Site(msg["name"], value.shape, value.dtype, msg["fn"], tuple(msg["cond_indep_stack"]))


def lower(
    model: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    initial: tuple[str, ...] | Literal["rest"] | None = None,
    gaps: Literal["draw", "refuse"] = "draw",
    whole: bool = False,
) -> StateSpace:
    """The state-space form of a NumPyro model with one ``scan``.

    :param parameters: constrained values of sites before the scan, one for all particles. Values for sites of
        the step, with a time axis, are taken as given there: such a site counts in g.
    :param initial: names of sites before the scan that each particle draws; ``"rest"`` for all that have no
        value; by default those of them that reach the first carry.
    :param gaps: what to do where an observed value that was not seen is handed on: draw it, as a site of the
        step, or refuse it.
    :param whole: data that are not known yet, inside a trace, have no gaps. By default they may have some.
    :raises ModelError: if the model has no state-space form, a parameter has no value, or a value has no
        site. The message says which.

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> ss = lower(model, (jnp.zeros(5),), {}, {"phi": 0.9})
    >>> list(ss.initial_sites), list(ss.step_sites), list(ss.step_observed), ss.num_steps, ss.not_markov
    (['x0'], ['x'], ['y'], 5, None)
    """
    kwargs, values = dict(kwargs or {}), dict(parameters or {})
    check_program("lower: model", model)
    check_call("lower: model", model, tuple(args), kwargs)
    check_values("lower: parameters", values)
    values = {n: jnp.asarray(v) for n, v in values.items()}
    params: dict[str, Any] = {}
    first = RunUpToScan(values, random.key(0), params, first=True)
    with explained(model, lambda: first.stands), first:
        model(*args, **kwargs)
    if first.scan is None:
        raise ModelError(NO_SCAN)
    assert first.step is not None
    if unknown := [n for n in values if n not in first.latent and n not in first.step.given]:
        raise ModelError(
            f"No latent site {listed(unknown)} to give a value; there is {listed(first.latent)} before the "
            f"scan, and {listed([*first.step.latent, *first.step.given])} in its step."
        )

    def rerun(more: Mapping[str, Any], key) -> RunUpToScan:
        with block(), (before := RunUpToScan({**values, **more}, key, params)):
            try:
                model(*args, **kwargs)
            except Reached:
                return before
        raise ModelError(
            "The model came to its scan the first time and not the second; it must run the same way every "
            "time."
        )

    if both := [n for n in first.fixed if n in values]:
        raise ModelError(
            f"Parameter {listed(both)} has a value from a handler inside the model already; leave out one "
            "of the two."
        )
    free = [n for n in first.latent if n not in values and n not in first.fixed]
    if initial not in (None, "rest") and (unknown := [n for n in initial or () if n not in free]):
        raise ModelError(
            f"initial names {listed(unknown)}; of the sites before the scan {listed(free)} have no given "
            "value."
        )
    found: dict[str, bool | None] = {}

    def is_drawn(name: str) -> bool:
        found[name] = gap_of(first, name, whole)
        return found[name] is not False

    uses = find_uses(rerun, first, free, is_drawn)
    wanted = uses.reaches_init if initial is None else free if initial == "rest" else initial
    chosen = tuple(n for n in free if n in wanted)
    # Such as handlers.do leaves behind need no value.
    idle = idle_sites(rerun, first, [n for n in free if n not in (*chosen, *uses.reaches_init, *uses.leaks)])
    values |= {n: first.sites[n]["value"] for n in idle}
    if missing := [n for n in free if n not in (*chosen, *idle)]:
        shown = ", ".join(f"'{n}': ..." for n in missing)
        raise ModelError(
            f"Parameter {listed(missing)} has no value: give one, {{{shown}}}, among the parameters (the "
            f"initial state is {listed(chosen)})."
        )
    if leaks := [n for n in chosen if n in uses.leaks]:
        raise ModelError(
            f"Site {listed(leaks)} has a value of its own for each particle, but the step uses it without "
            "the carry. Give it a value as a parameter, or carry it through the scan."
        )
    if gaps == "refuse":
        refuse_known(n for n, has in found.items() if has)
        found = {}
    return StateSpace(
        rerun, first, chosen, uses, {n: has for n, has in found.items() if has is not False}, idle
    )


class Shape(NamedTuple):
    """The shape of a model's scan: its steps, whether it runs backward, and the latent sites of a step.
    ``fixed``: sites before it that a handler inside the model gives a value. ``rewritten``: whether a scope
    lies around it, or ``reparam`` is open in a step."""

    num_steps: int
    reverse: bool
    latent: tuple[str, ...]
    fixed: tuple[str, ...]
    rewritten: bool


def scan_shape(model: Callable, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Shape:
    """What the scan of a model is like with these arguments.

    :raises ModelError: if it has no scan, or one without a state-space form.
    """
    first = RunUpToScan({}, random.key(0), {}, first=True)
    with explained(model, lambda: first.stands), first:
        model(*args, **(kwargs or {}))
    if first.scan is None:
        raise ModelError(NO_SCAN)
    assert first.step is not None
    rewritten = bool(first.scan.scopes or first.step.reparametrised)
    return Shape(
        first.scan.length, first.scan.reverse, tuple(first.step.latent), tuple(first.fixed), rewritten
    )
