"""Sites that a transformation of a program keeps to itself.

``marginal`` and ``normalize`` run a program whose sites nobody outside should see: NumPyro's handlers, traces
and :func:`ppl_ext.simulate` meet the kept sites only. Inside an expectation the hidden sites are drawn by its
:class:`~ppl_ext.expectations.run.Run` all the same, so that each has its gradient strategy; handlers of this
library that annotate sites reach them under a scoped name, ``"marginal/u"``.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import random
from numpyro.distributions import Distribution, constraints
from numpyro.primitives import _PYRO_STACK, Messenger, plate, prng_key

from ppl_ext.densities.recording import hides_all
from ppl_ext.errors import ModelError
from ppl_ext.expectations.run import Run
from ppl_ext.tracing.inner_jits import trace_state
from ppl_ext.tracing.vmapped_sites import sent_out, was_sent


class Inner(Messenger):
    """Hide the sites of a program, except the kept ones, which leave with log density zero: their density is
    estimated as a whole.

    :param scope: prefix of the hidden sites' names; ``""`` for none.
    :param run: who draws them.
    :param params: values of ``param`` and ``mutable`` sites. A pilot run (``keep`` is not ``None``) fills it
        and lets them out; later runs may be inside a ``vmap`` and only read it.
    :param keep: sites that leave; ``None`` once the pilot run is over.
    :param scans: whether a scan may stand inside: its sites are then all hidden.
    """

    def __init__(
        self,
        scope: str,
        run: Run,
        params: dict[str, Any],
        keep: frozenset[str] | None = None,
        scans: bool = True,
    ):
        super().__init__()
        self.scope, self.run, self.params, self.keep, self.scans = scope, run, params, keep, scans
        self.brings_keys = keep is None
        self.leaving, self.state = False, trace_state()
        self.drawn: dict[str, bool] = {}
        self.outward: dict[str, str] = {}
        self.blocked: dict[str, bool] = {}

    def process_message(self, msg):
        kind = msg["type"]
        if self.leaving:
            # a handler outside speaks, while it deals with a kept site: NUTS adds a Jacobian, for example
            return
        if sent_out(self, self.state, msg):
            return
        if kind == "sample" and self.keep and msg["name"] in self.keep:
            self._let_out(msg)
            return
        if kind == "control_flow":
            self._control_flow(msg)
            return
        if kind == "plate" and msg["args"][1] not in (None, msg["args"][0]):
            raise ModelError(
                f"Plate '{msg['name']}' is subsampled inside {self.scope}: a minibatch's density is "
                "unbiased only in logs, so no estimate of the density itself would be. Use the full data, "
                "or put the plate around fewer sites."
            )
        if kind in ("param", "mutable") and msg["name"] in self.params and self.keep is None:
            msg["value"], msg["stop"] = self.params[msg["name"]], True
        elif kind == "prng_key" and msg["kwargs"]["rng_key"] is None:
            self.run.process_message(msg)
            msg["stop"] = True
        elif kind in ("sample", "deterministic") or (kind == "plate" and not self.keep):
            if msg.get("_control_flow_done"):
                self.run.process_message(msg)
            elif kind == "sample" and msg["value"] is None and not msg["is_observed"]:
                self._draw(msg)
            msg["stop"] = True

    def postprocess_message(self, msg):
        if was_sent(self, msg):
            return
        laws = msg.get("_ppl_ext_laws", ())
        if laws and laws[-1][0] is self:
            _, name, fn, infer = laws.pop()
            self.leaving = False
            self.outward[name] = msg["name"]
            self.drawn[name] = msg["intermediates"] is not None
            self.blocked[name] = bool(msg.get("stop"))
            msg["name"], msg["fn"], msg["infer"], msg["is_observed"] = name, fn, infer, False
            if not laws and msg["intermediates"] is None:
                msg["intermediates"] = []
        elif self.leaving:
            msg["_ppl_ext_foreign"] = True
        elif msg["type"] == "control_flow":
            self.run.postprocess_message(msg)
        elif msg["type"] in ("param", "mutable"):
            self.params[msg["name"]] = msg["value"]

    def _control_flow(self, msg):
        kind = msg["fn"].__name__.removesuffix("_wrapper")
        if kind != "scan" or not self.scans:
            raise ModelError(
                f"{self.scope} with this algorithm does not reach into {kind}: its sites cannot be kept or "
                "summed out. Use ParticleFilter, which sums out a scan, or write the loop in Python or put "
                "its steps in a plate."
            )
        self.run.process_message(msg)
        msg["stop"] = True

    def _let_out(self, msg):
        if msg.get("_control_flow_done"):
            raise ModelError(
                f"Site '{msg['name']}' stands inside a scan, so it cannot be kept; keep sites before the "
                "scan."
            )
        if msg["is_observed"]:
            raise ModelError(
                f"Site '{msg['name']}' is observed in the program, so it cannot be kept; keep latent sites."
            )
        self.leaving = True
        # of this and enclosing transformations
        msg.setdefault("_ppl_ext_laws", []).append((self, msg["name"], msg["fn"], msg["infer"]))
        msg["infer"] = {**msg["infer"], "_ppl_ext_kept": True}
        msg["fn"] = msg["fn"].mask(False)
        # Whoever draws the site also sets its intermediates; whoever gives it a value does not. So we know
        # which it was.
        msg["intermediates"] = None

    def _draw(self, msg):
        outer = {**msg, "kwargs": dict(msg["kwargs"]), "_ppl_ext_hidden": True}
        for handler in reversed(_PYRO_STACK[: _PYRO_STACK.index(self) + 1]):
            if isinstance(handler, Inner):
                outer["name"] = f"{handler.scope}/{outer['name']}" if handler.scope else outer["name"]
            elif getattr(handler, "reaches_inner", False):
                handler.process_message(outer)
        self.run.process_message(outer)
        msg["value"], msg["intermediates"], msg["infer"] = (
            outer["value"],
            outer["intermediates"],
            outer["infer"],
        )


class Drawn(Distribution):
    """The law of a site whose value comes from elsewhere: support and shapes of ``base``, log density
    zero.
    """

    arg_constraints: dict = {}
    draws_itself = True

    def __init__(self, base: Distribution, shape: tuple[int, ...], value: Callable[[], jax.Array]):
        self.base, self.value = base, value
        super().__init__(shape[: len(shape) - base.event_dim], base.event_shape)

    @constraints.dependent_property
    def support(self):
        return self.base.support

    @property
    def has_rsample(self) -> bool:
        return not self.base.support.is_discrete

    def sample(self, key, sample_shape=()):
        if sample_shape:
            # The error by which NumPyro's own laws refuse a draw; callers of theirs catch it.
            raise NotImplementedError("The value of this site comes from an algorithm, once a run.")
        return self.value()

    rsample = sample

    def log_prob(self, value, intermediates=None):
        return jax.numpy.zeros(self.batch_shape)


def find_run() -> Run | None:
    """Who draws hidden sites here; ``None`` outside an expectation."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, Run):
            return handler
        if isinstance(handler, Inner):
            return handler.run
        if hides_all(handler):
            break
    return None


def run_here(what: str) -> Run:
    """The expectation's run; outside one, a run of our own with a key from ``numpyro.handlers.seed`` (a fixed
    one under NUTS).
    """
    if (run := find_run()) is not None:
        return run
    key = prng_key() if _PYRO_STACK else None
    if key is None:
        raise no_key(what)
    return _Alone(key, random.fold_in(key, 0))


def no_key(what: str) -> ModelError:
    return ModelError(
        f"No random key to draw the sites inside {what}. Pass rng_key=..., or wrap the program in "
        "handlers.seed."
    )


def unused_run() -> Run:
    """For draws on which nothing depends: they leave no trace in an expectation."""
    return _Alone(random.key(0), random.key(0))


def run_of_its_own(key: jax.Array) -> Run:
    """For draws by this key of which an expectation sees nothing: an algorithm weighs them itself."""
    return _Alone(key, random.fold_in(key, 0))


class _Alone(Run):
    """Outside an expectation: draws have no gradient strategy, since nobody would apply it."""


def has_strategies(run: Run) -> bool:
    return not isinstance(run, _Alone)


def refuse_open_plates(what: str) -> None:
    for handler in _PYRO_STACK:
        if isinstance(handler, plate):
            raise ModelError(
                f"{what} is called inside plate '{handler.name}', and its density is one number for all "
                "elements. Move the plate into the program."
            )
