"""One run of a program inside an expectation: who draws each random site, with which key, and what is kept of it.

:class:`Run` is the Messenger that an expectation opens. It draws the sites (so that a rerun with the same key repeats them), marks or
imposes those whose gradient is not pathwise, and keeps their unscaled, unmasked log probabilities. Subsampling plates draw the same
indices in every particle and in model and guide alike: the key is made from the plate's name.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.handlers import block
from numpyro.primitives import _PYRO_STACK, Messenger, prng_key

from ppl_ext.arguments import check_count, check_flag, check_function
from ppl_ext.credit import mark
from ppl_ext.density import LogDensity
from ppl_ext.errors import ArgumentError, HandlerError, StrategyError
from ppl_ext.explain import InsideError, rolled, trace_state
from ppl_ext.gradients import (
    Constant,
    Enumerate,
    EnumerateLocally,
    Learned,
    LeaveOneOut,
    LocalStrategy,
    MeasureValued,
    Reparameterize,
    ScoreFunction,
    Strategy,
    as_strategy,
    finite_support,
)
from ppl_ext.gradients.baseline import SUFFIX, Baseline, fitted
from ppl_ext.laws import elements, log_prob, prob, unmasked
from ppl_ext.program import run_in_scan_body, scan_length
from ppl_ext.vmapped import control_flow_inside, sent_out, was_sent

AUTOMATIC_SUPPORT = 64  # by default larger supports are not enumerated, nor is a joint of more lanes than this


class Choice(NamedTuple):
    """A random site whose gradient is not pathwise, as one run met it."""

    id: str
    name: str
    strategy: Strategy
    automatic: bool  # nobody chose the strategy, so joint enumeration may be replaced by local, and that by the score function
    support_size: int  # 0 if not to be enumerated
    node: str | None  # the outermost ``replicate`` around it
    num_nodes: int  # how many replicates are around it: its leading axes

    @property
    def baseline(self) -> Baseline | None:
        """What is left to score is a ScoreFunction, or was to be enumerated only if that was cheap."""
        return self.strategy.baseline if isinstance(self.strategy, ScoreFunction) else LeaveOneOut()


class Law(NamedTuple):
    """What a random site's gradient needs of the law that it was drawn from, element by element; ``None`` where its strategy needs none."""

    log_prob: Any
    prob: Any = None
    coefficients: Any = None  # of a local strategy, one array for each branch
    baseline: Any = None  # one that was known before the draw: given at the site, or learned

    @property
    def shape(self) -> tuple[int, ...]:
        return self.coefficients[0].shape if self.log_prob is None else self.log_prob.shape


class Assigned(NamedTuple):
    """Elements of a site get these outcomes, by their place in the support."""

    outcome: jax.Array


class Replaced(NamedTuple):
    """Elements of a site get this branch of their local strategy: 0 is their own draw, others are alternatives."""

    branch: jax.Array


class ForkError(Exception):
    """A run met an enumerated site that must have one concrete outcome, since the program branches on it in Python."""

    def __init__(self, id: str, name: str, support):
        self.id, self.name, self.support = id, name, support


class Run(Messenger):
    """See the module.

    ``forced`` maps a choice's id to :class:`Assigned` or :class:`Replaced`, ``outputs`` a replicate's id to what it shall return.
    ``concrete`` is ``None``, or maps the ids of enumerated sites to outcomes that Python can branch on; a further such site raises
    :class:`ForkError`. ``given`` holds the state that an objective carries from step to step (``None``: it cannot), and ``started``,
    if it is a dict, collects what such state begins with.
    """

    brings_keys = True
    given: Mapping[str, Any] | None = None
    started: dict[str, Any] | None = None

    def __init__(self, key, plate_key, *, forced=None, outputs=None, concrete=None, tracing=False, vectorize=True, path=""):
        super().__init__()
        self.key, self.plate_key, self.state = key, plate_key, trace_state()
        self.forced = {} if forced is None else forced
        self.outputs = {} if outputs is None else outputs
        self.concrete, self.weight, self.can_fork = concrete, jnp.ones(()), False
        self.tracing, self.vectorize, self.path = tracing, vectorize, path
        self.nodes: tuple[str, ...] = ()
        self.lanes_around = False  # several particles run this code at once
        self.choices: list[Choice] = []
        self.laws: dict[str, Law] = {}
        self.replicates: dict[str, Any] = {}
        self.mutable: dict[str, Any] = {}
        self.carries: dict[str, Any] = {}  # of the mutable state, what the objective itself writes to: particles neither see nor copy it
        self.pending: dict[str, tuple] = {}
        self.series: dict[str, jax.Array] = {}  # baselines that a scan's body stated, step by step
        self.drawn: dict[str, Any] = {}  # latent sites so far, for baselines that are functions of them
        self.counts: dict[str, int] = {}
        self.num_keys = 0

    def next_key(self):
        self.num_keys += 1
        return random.fold_in(self.key, self.num_keys)

    def unique(self, name: str) -> str:
        n = self.counts[name] = self.counts.get(name, 0) + 1
        return self.path + (name if n == 1 else f"{name}#{n}")

    def process_message(self, msg):
        kind = msg["type"]
        if "_ppl_ext_run" in msg:
            return  # a run of particles, or of another expectation, inside this one has dealt with it
        if trace_state() != self.state and self._from_inside(msg):
            return
        if kind in ("sample", "deterministic", "prng_key", "control_flow"):
            msg["_ppl_ext_run"] = self
        if kind == "sample":
            if msg.get("_control_flow_done"):
                self._after_scan(msg)
            elif msg["value"] is None and not msg["is_observed"]:
                key = msg["kwargs"]["rng_key"]
                self.draw(msg, self.unique(msg["name"]), self.next_key() if key is None else key, self.forced)
        elif kind == "plate" and msg["value"] is None:
            msg["value"] = msg["fn"](*msg["args"], rng_key=random.fold_in(self.plate_key, zlib.crc32(msg["name"].encode())))
        elif kind == "prng_key" and msg["kwargs"]["rng_key"] is None:  # the key of a scan's step wins: this one is the same at all steps
            msg["kwargs"]["rng_key"] = self.next_key()
        elif kind == "control_flow":
            self._control_flow(msg)
        elif kind == "mutable" and msg["name"] in self.mutable:
            value = self.mutable[msg["name"]]
            msg["value"] = value.copy() if isinstance(value, dict) else value
        elif kind == "mutable" and _PYRO_STACK[-1] is self and self.given is not None:  # of the objective itself
            msg["value"] = self.carry(msg["name"], msg["value"])

    def _from_inside(self, msg) -> bool:
        """Whether a message from inside a ``vmap`` needs no more: its site is drawn out here, or has its value."""
        kind = msg["type"]
        if kind == "prng_key" or (kind == "sample" and msg["value"] is None and not msg["is_observed"]):
            return sent_out(self, self.state, msg)
        if kind == "control_flow" and not msg["kwargs"]["substitute_stack"]:
            run_in_scan_body(msg, lambda _: _NothingToDraw())
        if kind in ("sample", "deterministic", "control_flow"):
            msg["_ppl_ext_run"] = None
            return True
        return False

    def postprocess_message(self, msg):
        kind = msg["type"]
        if was_sent(self, msg) or msg.get("_ppl_ext_run", self) is not self:
            return
        if kind == "mutable":
            self.mutable[msg["name"]] = msg["value"]
        elif kind == "deterministic":
            self._learned(msg["name"], msg["value"])
        elif kind == "sample" and not msg["is_observed"] and not msg.get("_control_flow_done"):
            self.drawn[msg["name"]] = msg["value"]
        elif kind == "control_flow" and isinstance(msg["fn"], partial):  # a scan, as below
            out, (trace, (ys, self.series)) = msg["value"]
            msg["value"] = out, (trace, ys)

    def _learned(self, name: str, value) -> None:
        for c in self.choices:
            if c.name + SUFFIX == name and isinstance(c.baseline, Learned) and self.laws[c.id].baseline is None:
                self.laws[c.id] = self.laws[c.id]._replace(baseline=fitted(c.name, value, self.laws[c.id].shape))

    def draw(self, msg, id, key, forced) -> None:
        """Give a site its value, and keep what its gradient needs."""
        fn, sample_shape = msg["fn"], msg["kwargs"]["sample_shape"]
        msg["intermediates"] = []  # also says that the site was drawn here and not given a value
        if getattr(unmasked(fn), "draws_itself", False):
            # Other random sites determine it, and those have the strategies; only "held fixed" means something here.
            fixed = isinstance(msg["infer"].get("gradient"), Constant)
            msg["value"] = lax.stop_gradient(fn(rng_key=None)) if fixed else fn(rng_key=None)
            return
        strategy, automatic, support = _resolve(msg)
        if isinstance(strategy, Reparameterize):
            msg["value"], msg["intermediates"] = fn(rng_key=key, sample_shape=sample_shape, sample_intermediates=True)
            return
        if isinstance(strategy, Constant):
            msg["value"] = lax.stop_gradient(fn(rng_key=key, sample_shape=sample_shape))
            return
        law = elements(fn if not sample_shape else fn.expand((*sample_shape, *fn.batch_shape)))
        inside = bool(msg["infer"].get("_ppl_ext_body"))
        forkable = support is not None and isinstance(strategy, Enumerate) and not (law.batch_shape or self.lanes_around or inside)
        self.can_fork |= forkable
        if forkable and self.concrete is not None:
            if id not in self.concrete:
                raise ForkError(id, msg["name"], support)
            msg["value"] = self.concrete[id]
            self.weight = self.weight * prob(law, msg["value"])
            return
        given = forced.get(id)
        if isinstance(given, Assigned):
            value = jnp.take(jnp.asarray(support), given.outcome, axis=0)
        else:
            value = lax.stop_gradient(fn(rng_key=key, sample_shape=sample_shape))
        if isinstance(given, Replaced):
            local = strategy if isinstance(strategy, LocalStrategy) else EnumerateLocally()
            branch = given.branch.reshape(given.branch.shape + (1,) * law.event_dim)
            for number, other in enumerate(local.alternatives(law, random.fold_in(key, 1), value), 1):
                value = jnp.where(branch == number, lax.stop_gradient(other), value)
        msg["value"] = mark(value, id, len(law.batch_shape)) if self.tracing else value
        size = 0 if support is None else support.shape[0]
        choice = Choice(id, msg["name"], strategy, automatic, size, self.nodes[0] if self.nodes else None, len(self.nodes))
        if inside:  # its law comes with the stacked site
            self.pending[id] = (choice,)
            msg["infer"] = {**msg["infer"], "_ppl_ext_id": id}
        else:
            stated = msg["infer"].get("baseline")
            self._keep(choice, law, value, None if stated is None else _stated(msg, stated, law, self.drawn))

    def _keep(self, choice: Choice, law, value, baseline=None) -> None:
        strategy = choice.strategy
        local = (
            strategy if isinstance(strategy, LocalStrategy) else EnumerateLocally() if choice.support_size and choice.automatic else None
        )
        self.choices.append(choice)
        self.laws[choice.id] = Law(
            None if isinstance(strategy, LocalStrategy) else log_prob(law, value),
            prob(law, value) if choice.support_size else None,
            None if local is None else local.coefficients(choice.name, law, value),
            baseline if isinstance(choice.baseline, LeaveOneOut) else None,
        )

    def _after_scan(self, msg) -> None:
        id = msg["infer"].get("_ppl_ext_id")
        if id in self.pending and not msg["is_observed"]:
            (choice,) = self.pending.pop(id)
            self._keep(choice, elements(msg["fn"]), msg["value"], self.series.get(id))

    def _control_flow(self, msg) -> None:
        prefix = self.unique("scan") + "/"
        if msg["kwargs"].get("rng_key") is None:
            msg["kwargs"]["rng_key"] = self.next_key()
        forced = {i: v for i, v in self.forced.items() if i.startswith(prefix)}
        if scan_length(msg) is None:
            run_in_scan_body(msg, lambda _: _Body(self, prefix, forced))
            return
        given: dict[str, jax.Array] = {}  # baselines that the body states: they leave it beside its outputs
        run_in_scan_body(msg, lambda slices: _Body(self, prefix, slices, given), forced)
        body, *rest = msg["args"]

        def with_baselines(carry, x):
            given.clear()
            carry, y = body(carry, x)
            return carry, (y, dict(given))

        msg["fn"], msg["args"] = partial(rolled, msg["fn"]), (with_baselines, *rest)

    def replicate(self, fn: Callable, num: int, vectorize: bool | None):
        if trace_state() != self.state:
            raise InsideError("replicate is called inside jax.vmap, jax.jit or another transformation within the program; put that inside.")
        node = self.unique("replicate")
        key = self.next_key() if num > 1 else self.key
        if node in self.outputs:
            return self.outputs[node]
        forced = {i: v for i, v in self.forced.items() if i.startswith(node + "/")}
        kept: list[Choice] = []
        drawn = dict(self.drawn)

        def body(key, forced):
            inner = self._inside(node, key, forced, num)
            with inner:
                out = fn()
            kept[:] = inner.choices
            if num == 1:
                self.num_keys = inner.num_keys
            self.can_fork |= inner.can_fork
            return out, inner.laws, inner.mutable, inner.weight

        if num == 1 and not self.tracing:
            single = body(key, jax.tree.map(lambda x: x[0], forced))
            out, laws, mutable, weight = jax.tree.map(lambda x: jnp.asarray(x)[None], single)
        elif self.tracing or not (self.vectorize if vectorize is None else vectorize):
            # While tracing for credit, too: a scan without a carry shows the data flow that particles are independent.
            keys = key[None] if num == 1 else random.split(key, num)
            out, laws, mutable, weight = rolled(lax.map, lambda args: body(*args), (keys, forced))
        else:
            out, laws, mutable, weight = jax.vmap(body)(random.split(key, num), forced)
        self.choices += kept
        self.laws |= laws
        self.drawn = drawn
        self.weight = self.weight * weight.prod()  # of one particle: among several nothing forks
        merged = jax.tree.map(lambda x: x.mean(0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[0], mutable)
        self.mutable = {**merged, **self.carries}
        out = _with_particle_axis(out)
        self.replicates[node] = out
        return out

    def carry(self, name: str, init):
        """See :func:`carried`."""
        if self.given is None:
            raise HandlerError(f"carried({name!r}) keeps state between the steps of an objective; an expectation has no steps.")
        if self.nodes:
            raise HandlerError(f"carried({name!r}) is inside replicate: particles have no steps. Keep the state outside of it.")
        if name not in self.mutable:
            if name in self.given:
                value = self.given[name]
            elif self.started is not None:
                value = self.started[name] = init() if callable(init) else init
            else:
                raise ArgumentError(
                    f"The objective carries '{name}' from step to step, and no value of it is given. ppl_ext.infer.fit starts it; with "
                    "NumPyro, write SVI(model, objective.carried_by(guide, model), optim, objective). SVI.evaluate passes no state on: "
                    "call objective.loss(rng_key, svi.get_params(state) | state.mutable_state, model, guide, *args) instead."
                )
            self.mutable[name] = self.carries[name] = dict(value) if isinstance(value, dict) else value
        return self.mutable[name]

    def _inside(self, node: str, key, forced, num: int) -> "Run":
        run = Run(
            key, self.plate_key, forced=forced, concrete=self.concrete, tracing=self.tracing, vectorize=self.vectorize, path=node + "/"
        )
        run.nodes, run.mutable, run.drawn = (
            (*self.nodes, node),
            {k: v for k, v in self.mutable.items() if k not in self.carries},
            dict(self.drawn),
        )
        run.given, run.started = self.given, self.started
        run.lanes_around = self.lanes_around or num > 1
        if key is self.key:  # a single particle goes on with the same stream of keys
            run.num_keys = self.num_keys
        return run


class _Body(Messenger):
    """A :class:`Run` inside the body of a scan, where a site's key comes from the scan."""

    def __init__(self, run: Run, prefix: str, forced, given: dict[str, jax.Array] | None = None):
        super().__init__()
        self.run, self.prefix, self.forced, self.given, self.state = run, prefix, forced, given, trace_state()

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            raise StrategyError("A scan inside a scan is not supported by NumPyro; move the inner loop into jax.lax.scan without sites.")
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "plate" and msg["value"] is None:
            self.run.process_message(msg)
        elif msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            key = msg["kwargs"]["rng_key"]
            stated = msg["infer"].get("baseline")
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "baseline"} | {"_ppl_ext_body": True}
            id = self.prefix + msg["name"]
            self.run.draw(msg, id, prng_key() if key is None else key, self.forced)
            if stated is not None and id in self.run.pending:
                if self.given is None:
                    raise StrategyError(f"Site '{msg['name']}' states a baseline inside cond, from which it cannot leave; use another one.")
                law = elements(msg["fn"])
                self.given[id] = _stated(msg, stated, law, self.run.drawn)


class _NothingToDraw(Messenger):
    """Inside a scan inside a ``vmap``: sites may be scored and not drawn."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            raise control_flow_inside()


def _stated(msg, baseline, law, drawn: dict[str, Any]) -> jax.Array:
    """The baseline that a site states, element by element. (A time axis in front comes with the scan.)"""
    value = baseline(dict(drawn)) if callable(baseline) else baseline
    return lax.stop_gradient(fitted(msg["name"], value, law.batch_shape, len(msg["fn"].batch_shape) + len(msg["kwargs"]["sample_shape"])))


def _with_particle_axis(out):
    def add_axis(x):
        return LogDensity(x.terms, x.labels, x.batch_ndim + 1) if isinstance(x, LogDensity) else x

    return jax.tree.map(add_axis, out, is_leaf=lambda x: isinstance(x, LogDensity))


def _resolve(msg) -> tuple[Strategy, bool, jax.Array | None]:
    """The strategy of a site (handler, then annotation, then default) and its support if it is to be enumerated jointly."""
    fn, name, spec = msg["fn"], msg["name"], msg["infer"].get("gradient")
    if spec is not None:
        strategy = as_strategy(spec, name)
        strategy.check(name, fn)
        finite = isinstance(strategy, Enumerate | EnumerateLocally) or (isinstance(strategy, MeasureValued) and strategy.enumerates(fn))
        support = _support(fn, name) if finite else None
        return strategy, False, support if isinstance(strategy, Enumerate) else None
    if Reparameterize.serves(fn):
        return Reparameterize(), True, None
    if Enumerate.serves(fn):
        try:
            support = _support(fn, name)
        except StrategyError:
            support = None
        if support is not None and support.shape[0] <= AUTOMATIC_SUPPORT:
            return Enumerate(), True, support
    strategy = ScoreFunction()
    strategy.check(name, fn)
    return strategy, True, None


def _support(fn, name: str) -> jax.Array:
    try:
        return finite_support(elements(fn))
    except (NotImplementedError, TypeError, jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise StrategyError(
            f"Site '{name}' cannot be enumerated: its support is not one known list for every element ({type(error).__name__}: {reason}). "
            "Use 'score', or make its total_count one Python integer."
        ) from error


def current_run() -> Run:
    """The innermost expectation that is being evaluated."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, Run):
            return handler
        if isinstance(handler, block) and handler.hide_fn({"type": "sample", "name": ""}):
            break
    raise HandlerError("replicate works inside an objective or an expectation only: wrap the function in ppl_ext.expectation(...).")


def carried(name: str, init: Any) -> dict[str, Any]:
    """State that an objective carries from one step to the next, through the mutable state of NumPyro's ``SVI``.

    It returns a dict, as ``numpyro.mutable`` does: what the objective writes into it is what the next step reads. An unbiased estimate may
    depend on the state of the steps before, and must not depend on what this step's own draws make of it.

    :param name: its name among the mutable state; no parameter may have the same.
    :param init: what it starts from: a dict of arrays, or a function that returns one and may sample.
    :raises ArgumentError: if nobody started the state: see :meth:`ppl_ext.expectation.Objective.carried_by`.
    :raises HandlerError: outside an objective, or inside :func:`replicate`.

    >>> import jax, numpyro, optax, numpyro.distributions as dist, ppl_ext
    >>> @ppl_ext.objective
    ... def Counted(model, guide):
    ...     count = carried("count", {"steps": jnp.zeros(())})
    ...     count["steps"] += 1.0
    ...     return -simulate(guide).log_density
    >>> from ppl_ext import simulate
    >>> program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> result = ppl_ext.infer.fit(jax.random.key(0), program, program, Counted(), optax.sgd(0.1), 5, progress_bar=False)
    >>> float(result.params["count"]["steps"][0])
    5.0
    """
    return current_run().carry(name, init)


def replicate(fn: Callable, num_particles: int, *, vectorize: bool | None = None):
    r"""Run ``fn`` independently ``num_particles`` times and stack what it returns along a new first axis.

    :param fn: a function without arguments, with :func:`~ppl_ext.simulate`, :func:`~ppl_ext.log_density` or NumPyro sites inside.
    :param num_particles: at least 1.
    :param vectorize: by ``vmap``, or one after another to save memory; by default as the objective's ``vectorize_particles`` says: by
        ``vmap``.
    :return: ``fn``'s output with a leading axis; a :class:`~ppl_ext.density.LogDensity` over particles if it returns one.
    :raises HandlerError: outside an expectation.

    >>> import jax, ppl_ext, numpyro, numpyro.distributions as dist
    >>> mean = ppl_ext.expectation(lambda: replicate(lambda: numpyro.sample("z", dist.Normal(3.0, 0.1)), 500).mean())
    >>> bool(abs(mean.value(jax.random.key(0)) - 3.0) < 0.1)
    True
    """
    check_function("replicate: fn", fn)
    check_count("replicate: num_particles", num_particles)
    if vectorize is not None:
        check_flag("replicate: vectorize", vectorize)
    return current_run().replicate(fn, num_particles, vectorize)
