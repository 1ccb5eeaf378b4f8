"""One run of a program inside an expectation: who draws each random site, with which key, and what is kept of
it.

:class:`Run` is the Messenger that an expectation opens. It draws the sites (so that a rerun with the same key
repeats them), marks or imposes those whose gradient is not pathwise, and keeps their unscaled, unmasked log
probabilities. Subsampling plates draw the same indices in every particle and in model and guide alike: the
key is made from the plate's name.
"""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.primitives import _PYRO_STACK, Messenger, prng_key

from ppl_ext.densities.distributions import check_draw, elements, prob, unmasked
from ppl_ext.densities.recording import hides_all
from ppl_ext.errors import ArgumentError, HandlerError, StrategyError
from ppl_ext.expectations.choices import Assigned, Choice, ForkError, Law, Replaced, law_of
from ppl_ext.gradients import (
    Constant,
    Enumerate,
    EnumerateLocally,
    LearnedBaseline,
    LocalStrategy,
    Reparameterize,
)
from ppl_ext.gradients.baseline import SUFFIX, fitted
from ppl_ext.gradients.default import resolve
from ppl_ext.runtime.random_bits import sampled, split
from ppl_ext.tracing.credit import mark
from ppl_ext.tracing.inner_jits import rolled, trace_state
from ppl_ext.tracing.scan_bodies import run_in_scan_body, scan_length
from ppl_ext.tracing.vmapped_sites import control_flow_inside, sent_out, was_sent


class NotStartedError(ArgumentError):
    """An objective carries state from step to step, and nobody has started it."""


class Run(Messenger):
    """A handler that draws the random sites of one run of a program, and keeps their laws.

    ``forced`` maps a choice's id to :class:`Assigned` or :class:`Replaced`, ``outputs`` a replicate's id to
    what it shall return. ``concrete`` is ``None``, or maps the ids of enumerated sites to outcomes that
    Python can branch on; a further such site raises :class:`ForkError`. ``given`` holds the state that an
    objective carries from step to step (``None``: it cannot), and ``started``, if it is a dict, collects what
    such state begins with.
    """

    brings_keys = True
    given: Mapping[str, Any] | None = None
    started: dict[str, Any] | None = None

    def __init__(
        self,
        key,
        plate_key,
        *,
        forced=None,
        outputs=None,
        concrete=None,
        tracing=False,
        vectorize=True,
        path="",
    ):
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
        # of the mutable state, what the objective itself writes to: particles neither see nor copy it
        self.carries: dict[str, Any] = {}
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
                try:
                    self.draw(
                        msg, self.unique(msg["name"]), self.next_key() if key is None else key, self.forced
                    )
                except Exception as error:
                    error._ppl_ext_drawn = msg["name"]  # type: ignore[attr-defined]
                    raise
        elif kind == "plate" and msg["value"] is None:
            msg["value"] = msg["fn"](
                *msg["args"], rng_key=random.fold_in(self.plate_key, zlib.crc32(msg["name"].encode()))
            )
        # the key of a scan's step wins: this one is the same at all steps
        elif kind == "prng_key" and msg["kwargs"]["rng_key"] is None:
            msg["kwargs"]["rng_key"] = self.next_key()
        elif kind == "control_flow":
            self._control_flow(msg)
        elif kind == "mutable" and msg["name"] in self.mutable:
            value = self.mutable[msg["name"]]
            msg["value"] = value.copy() if isinstance(value, dict) else value
        # of the objective itself
        elif kind == "mutable" and _PYRO_STACK[-1] is self and self.given is not None:
            msg["value"] = self.carry(msg["name"], msg["value"])

    def _from_inside(self, msg) -> bool:
        """Whether a message from inside a ``vmap`` needs no more: its site is drawn out here, or has its
        value.
        """
        kind = msg["type"]
        if kind == "prng_key" or (kind == "sample" and msg["value"] is None and not msg["is_observed"]):
            return sent_out(self, self.state, msg)
        if kind == "control_flow" and not msg["kwargs"]["substitute_stack"]:
            run_in_scan_body(self, msg, lambda _: _NothingToDraw())
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
            if (
                c.name + SUFFIX == name
                and isinstance(c.baseline, LearnedBaseline)
                and self.laws[c.id].baseline is None
            ):
                self.laws[c.id] = self.laws[c.id]._replace(
                    baseline=fitted(c.name, value, self.laws[c.id].shape)
                )

    def draw(self, msg, id, key, forced) -> None:
        """Give a site its value, and keep what its gradient needs."""
        fn, sample_shape = msg["fn"], msg["kwargs"]["sample_shape"]
        msg["intermediates"] = []  # also says that the site was drawn here and not given a value
        if getattr(unmasked(fn), "draws_itself", False):
            # Other random sites determine it, and those have the strategies; only "held fixed" means
            # something here.
            fixed = isinstance(msg["infer"].get("gradient"), Constant)
            msg["value"] = lax.stop_gradient(fn(rng_key=None)) if fixed else fn(rng_key=None)
            return
        strategy, automatic, support = resolve(msg)
        if isinstance(strategy, Reparameterize):
            msg["value"], msg["intermediates"] = strategy.draw(fn, key, sample_shape)
            check_draw(msg["name"], fn, msg["value"], sample_shape)
            return
        if isinstance(strategy, Constant):
            msg["value"] = lax.stop_gradient(fn(rng_key=key, sample_shape=sample_shape))
            return
        law = elements(fn if not sample_shape else fn.expand((*sample_shape, *fn.batch_shape)))
        inside = bool(msg["infer"].get("_ppl_ext_body"))
        forkable = (
            support is not None
            and isinstance(strategy, Enumerate)
            and not (law.batch_shape or self.lanes_around or inside)
        )
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
            value = sampled(fn, key, sample_shape) if inside else fn(rng_key=key, sample_shape=sample_shape)
            value = value if strategy.pathwise else lax.stop_gradient(value)
            check_draw(msg["name"], fn, value, sample_shape)
        if isinstance(given, Replaced):
            local = strategy if isinstance(strategy, LocalStrategy) else EnumerateLocally()
            branch = given.branch.reshape(given.branch.shape + (1,) * law.event_dim)
            for number, other in enumerate(local.alternatives(law, random.fold_in(key, 1), value), 1):
                value = jnp.where(branch == number, lax.stop_gradient(other), value)
        msg["value"] = mark(value, id, len(law.batch_shape)) if self.tracing else value
        size = 0 if support is None else support.shape[0]
        choice = Choice(
            id, msg["name"], strategy, automatic, size, self.nodes[0] if self.nodes else None, len(self.nodes)
        )
        if inside:  # its law comes with the stacked site
            self.pending[id] = (choice,)
            msg["infer"] = {**msg["infer"], "_ppl_ext_id": id}
        else:
            stated = msg["infer"].get("baseline")
            self._keep(
                choice, msg, law, value, None if stated is None else _stated(msg, stated, law, self.drawn)
            )

    def _keep(self, choice: Choice, msg, law, value, baseline=None) -> None:
        self.choices.append(choice)
        self.laws[choice.id] = law_of(choice, law, value, baseline, _scale(msg, law))

    def _after_scan(self, msg) -> None:
        id = msg["infer"].get("_ppl_ext_id")
        if id in self.pending and not msg["is_observed"]:
            (choice,) = self.pending.pop(id)
            self._keep(choice, msg, elements(msg["fn"]), msg["value"], self.series.get(id))

    def _control_flow(self, msg) -> None:
        prefix = self.unique("scan") + "/"
        if msg["kwargs"].get("rng_key") is None:
            msg["kwargs"]["rng_key"] = self.next_key()
        forced = {i: v for i, v in self.forced.items() if i.startswith(prefix)}
        length = scan_length(msg)
        if length is None:
            run_in_scan_body(self, msg, lambda _: _Body(self, prefix, forced))
            return
        given: dict[str, jax.Array] = {}  # baselines that the body states: they leave it beside its outputs
        # The keys of all steps at once: for each that of its first draw, and one for those that follow.
        # NumPyro's scan would split its key twice at each step, one split after the other, which a chain of
        # coins feels.
        keys, msg["kwargs"]["rng_key"] = split(msg["kwargs"]["rng_key"], (length, 2)), None
        run_in_scan_body(self, msg, lambda step: _Body(self, prefix, step[0], given, step[1]), (forced, keys))
        body, *rest = msg["args"]

        def with_baselines(carry, x):
            given.clear()
            carry, y = body(carry, x)
            return carry, (y, dict(given))

        msg["fn"], msg["args"] = partial(rolled, msg["fn"]), (with_baselines, *rest)

    def carry(self, name: str, init):
        """Start, or hand on, what :func:`ppl_ext.expectations.objective.carried` carries."""
        if self.given is None:
            raise HandlerError(
                f"carried({name!r}) keeps state between the steps of an objective; an expectation has no "
                "steps."
            )
        if self.nodes:
            raise HandlerError(
                f"carried({name!r}) is inside replicate: particles have no steps. Keep the state outside of "
                "it."
            )
        if name not in self.mutable:
            if name in self.given:
                value = self.given[name]
            elif self.started is not None:
                value = self.started[name] = init() if callable(init) else init
            else:
                raise NotStartedError(
                    f"The objective carries '{name}' from step to step, and no value of it is given. "
                    "ppl_ext.infer.fit starts it; with NumPyro, write SVI(model, "
                    "objective.carried_by(guide, model), optim, objective). SVI.evaluate passes no state "
                    "on: call objective.loss(rng_key, svi.get_params(state) | state.mutable_state, model, "
                    "guide, *args) instead."
                )
            self.mutable[name] = self.carries[name] = dict(value) if isinstance(value, dict) else value
        return self.mutable[name]

    def inside(self, node: str, key, forced, num: int) -> "Run":
        """A run of particles within this one."""
        run = Run(
            key,
            self.plate_key,
            forced=forced,
            concrete=self.concrete,
            tracing=self.tracing,
            vectorize=self.vectorize,
            path=node + "/",
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
    """A :class:`Run` inside the body of a scan, whose step has its own ``keys``, or in a branch of a
    ``cond``, which NumPyro seeds.
    """

    def __init__(
        self,
        run: Run,
        prefix: str,
        forced,
        given: dict[str, jax.Array] | None = None,
        keys: jax.Array | None = None,
    ):
        super().__init__()
        self.run, self.prefix, self.forced, self.given, self.keys, self.state = (
            run,
            prefix,
            forced,
            given,
            keys,
            trace_state(),
        )

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            inner, outer = (
                "cond" if none else "scan" for none in (scan_length(msg) is None, self.keys is None)
            )
            raise StrategyError(
                f"A {inner} inside a {outer} is not supported; use jax.lax.{inner} for the inner one, "
                "without sites."
            )
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "plate" and msg["value"] is None:
            self.run.process_message(msg)
        elif msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None and self.keys is not None:
            msg["kwargs"]["rng_key"], self.keys = self.keys[0], random.split(self.keys[1])
        elif msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            key = msg["kwargs"]["rng_key"]
            stated = msg["infer"].get("baseline")
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "baseline"} | {
                "_ppl_ext_body": True
            }
            id = self.prefix + msg["name"]
            self.run.draw(msg, id, prng_key() if key is None else key, self.forced)
            if stated is not None and id in self.run.pending:
                if self.given is None:
                    raise StrategyError(
                        f"Site '{msg['name']}' states a baseline inside cond, from which it cannot leave; "
                        "use another one."
                    )
                law = elements(msg["fn"])
                self.given[id] = _stated(msg, stated, law, self.run.drawn)


class _NothingToDraw(Messenger):
    """Inside a scan inside a ``vmap``: sites may be scored and not drawn."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None and not msg["is_observed"]:
            raise control_flow_inside()


def _scale(msg, law) -> jax.Array | None:  # of each element of the site
    return (
        None
        if (scale := msg["scale"]) is None
        else jnp.broadcast_to(
            jnp.expand_dims(scale, [*range(law.event_dim - msg["fn"].event_dim, 0)]), law.batch_shape
        )
    )


def _stated(msg, baseline, law, drawn: dict[str, Any]) -> jax.Array:
    """The baseline that a site states, element by element. (A time axis in front comes with the scan.)"""
    value = baseline(dict(drawn)) if callable(baseline) else baseline
    return lax.stop_gradient(
        fitted(
            msg["name"],
            value,
            law.batch_shape,
            len(msg["fn"].batch_shape) + len(msg["kwargs"]["sample_shape"]),
        )
    )


def current_run() -> Run:
    """The innermost expectation that is being evaluated."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, Run):
            return handler
        if hides_all(handler):
            break
    raise HandlerError(
        "replicate works inside an objective or an expectation only: wrap the function in "
        "ppl_ext.expectation(...)."
    )
