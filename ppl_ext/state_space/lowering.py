"""Runs of the two parts of a model with a ``scan``: what stands before it, and one step of its body.

:class:`RunUpToScan` runs the model up to the scan, takes its ``control_flow`` message (the body f, the first
carry, the scanned inputs) and the handlers that lie around it. :func:`run_step` runs f once on one carry.
Neither lets a message out, except for parameters in the first run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import MaskedDistribution
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import block, condition, substitute
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import unmasked
from ppl_ext.errors import ModelError
from ppl_ext.state_space.missing import can_be_drawn
from ppl_ext.state_space.site_runs import SiteRun
from ppl_ext.tracing.scoped_scans import as_written, bare_names, names_within, scopes_within, within


class Inputs(NamedTuple):
    """What a step takes from outside: the model's scanned input, values that handlers around the scan give,
    its number, and where they were computed ahead, the entries of the carry that are known before it."""

    x: Any
    given: dict[str, jax.Array]
    number: jax.Array
    known: tuple[jax.Array, ...] = ()


class Scan(NamedTuple):
    """A scan as a model wrote it, with the handlers around it; ``scales`` and ``masks`` hold their effect on
    the densities of sites, ``scopes`` on their names.

    ``xs`` stand in the order of the run: of a scan with ``reverse=True`` the last inputs of the model come
    first.
    """

    body: Callable
    init: Any
    xs: Inputs
    length: int
    stack: tuple[tuple[str, Any], ...]
    scales: dict[str, Any]
    masks: dict[str, Any]
    scopes: tuple[Messenger, ...]
    reverse: bool
    sources: Inputs  # xs as the model gave them, for who asks whether they are known
    imputed: frozenset[str] = frozenset()  # observed sites whose gaps are drawn: the step hands them on
    known: tuple[int, ...] = ()  # entries of the carry that no latent value reaches
    # what was seen of them has a density as well, so that sums over their values count it once
    idle: bool = False


class Reached(BaseException):
    """A run that is of use up to the scan only stands at it; no `except Exception` of a model is to stop
    this.
    """


class RunUpToScan(SiteRun):
    """The model up to its scan; ``params`` (values of ``param`` sites) is filled by the first run and read by
    the later ones.
    """

    def __init__(self, values: dict[str, Any], key, params: dict[str, Any], first: bool = False):
        super().__init__(values, key)
        self.params, self.first = params, first
        self.fixed: list[str] = []  # latent sites whose values a handler inside gives: parameters
        self.scan: Scan | None = None
        self.step: _Step | None = None
        self.stacked: dict[str, Any] = {}

    def process_message(self, msg):
        kind = msg["type"]
        if kind == "control_flow":
            self._take(msg)
            msg["stop"] = True
        elif kind in ("param", "mutable") and not self.first:
            msg["value"], msg["stop"] = self.params[msg["name"]], True
        elif kind == "mutable":
            raise ModelError(
                f"'{msg['name']}' is numpyro.mutable state, which has no value for each particle. Carry it "
                "through the scan."
            )
        elif self.scan is not None and kind == "sample":
            if not msg.get("_control_flow_done"):
                raise ModelError(
                    f"Site '{msg['name']}' stands after the scan, so it is no part of a state-space model. "
                    "Move it before the scan, or into the step (a term at the last time only: scan a column "
                    "of zeros with a one at its end)."
                )
            msg["stop"] = True
        else:
            super().process_message(msg)

    def postprocess_message(self, msg):
        if msg.get("_control_flow_done"):
            if msg["type"] == "sample":
                self._around(msg)
        elif msg["type"] == "param":
            self.params[msg["name"]] = msg["value"]
        else:
            super().postprocess_message(msg)

    def sample(self, msg) -> None:
        if msg["value"] is not None and not msg["is_observed"]:
            self.latent.append(msg["name"])
            self.fixed.append(msg["name"])
        super().sample(msg)

    def _around(self, msg) -> None:
        """What handlers around the scan did to a site, which they meet with its time axis."""
        name, scale, fn, mask = msg["name"], msg["scale"], msg["fn"], None
        if "_intervener_id" in msg:
            raise ModelError(
                f"handlers.do around the scan does not reach site '{name}' inside of it: in NumPyro, too, "
                "its value would have no effect. Open it inside the step."
            )
        if isinstance(fn, MaskedDistribution) and fn.base_dist is self.stacked[name]:
            fn, mask = fn.base_dist, fn._mask
        if fn is not self.stacked[name]:
            raise ModelError(
                f"A handler around the scan changes site '{name}' at all times at once; open it inside the "
                "step."
            )
        if mask is not None:
            self.scan.masks[name] = mask  # type: ignore[union-attr]
        if scale is not None and jnp.ndim(scale):
            raise ModelError(
                f"A handler around the scan scales site '{name}' by an array; scale by a number, or inside "
                "the step."
            )
        assert self.scan is not None
        if scale is not None and not is_identically_one(scale):
            self.scan.scales[name] = scale

    def _take(self, msg) -> None:
        if msg["fn"] is not scan_wrapper:
            raise ModelError(
                f"The model has a {msg['fn'].__name__.removesuffix('_wrapper')} before its scan; a "
                "state-space form needs jnp.where there."
            )
        if self.scan is not None:
            raise ModelError(
                "The model has two scans; a state-space form has one. Let one scan step through both series."
            )
        body, init, xs, length, reverse = msg["args"]
        length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
        stack = tuple((kind, _values_of(held)) for kind, held in msg["kwargs"]["substitute_stack"])
        stack += (("substitute", {n: v for n, v in self.values.items() if n not in self.sites}),)
        series = {
            n: jnp.asarray(v) for _, held in stack for n, v in held.items() if jnp.shape(v)[:1] == (length,)
        }
        held = {n: v for _, values in stack for n, v in values.items() if n in series}
        sources = Inputs(xs, held, np.arange(length))  # type: ignore[arg-type]
        xs, number = jax.tree.map(jnp.asarray, xs), jnp.arange(length)
        if reverse:
            # Values that NumPyro's handlers hold are read in the order of the run, as NumPyro does; ours
            # stand in the order of the inputs.
            xs, number = backwards((xs, number))
            series |= {n: backwards(series[n]) for n in stack[-1][1] if n in series}
        init = jax.tree.map(_strong, init)
        self.scan = Scan(
            body,
            init,
            Inputs(xs, series, number),
            length,
            stack,
            {},
            {},
            scopes_within(self),
            bool(reverse),
            sources,
        )
        if not self.first:
            raise Reached
        carry, y, self.step = self._first_step()
        _check_carry(init, carry)
        ys = jax.tree.map(lambda a: jnp.broadcast_to(a, (length, *jnp.shape(a))), y)
        msg["value"] = (length, None, init), (self._stack(length), ys)

    def _first_step(self):
        assert self.scan is not None
        x = jax.tree.map(lambda a: a[0] if len(a) else jnp.zeros(a.shape[1:], a.dtype), self.scan.xs)
        return run_step(self.scan, self.scan.init, x, {}, self.next_key(0))

    def _stack(self, length: int) -> PytreeTrace:
        """The sites of all steps as handlers around a scan expect them; only their shapes are right."""
        assert self.step is not None
        trace = PytreeTrace(
            {n: {**s, "scale": None, "infer": dict(s["infer"])} for n, s in self.step.sites.items()}
        )
        trace = jax.tree.map(lambda a: jnp.broadcast_to(a, (length, *jnp.shape(a))), trace)
        for name, site in trace.trace.items():
            site["fn"] = self.stacked[name] = promote_batch_shape(site["fn"])
            site.update(bare_names(self.step.sites[name]))  # the scopes around rename what is stacked
        return trace


def backwards(tree: Any) -> Any:
    """Series from their end to their beginning."""
    return jax.tree.map(lambda x: x[::-1], tree)


def _strong(x) -> jax.Array:
    """An array whose dtype is its own, and not Python's: the carry of a loop."""
    x = jnp.asarray(x)
    return lax.convert_element_type(x, x.dtype)


def _values_of(held) -> dict[str, Any]:
    if callable(held):
        raise ModelError(
            "A handler with a function (substitute_fn, condition_fn) lies around the scan; give it a dict "
            "of values."
        )
    # Those of replay are traced sites; a dict that is none is mutable state, which an objective may carry.
    return {
        n: v["value"] if isinstance(v, dict) else v
        for n, v in held.items()
        if not isinstance(v, dict) or "value" in v
    }


def _check_carry(init, carry) -> None:
    before, after = str(jax.tree.structure(init)), str(jax.tree.structure(carry))
    if before != after:
        raise ModelError(
            f"The step returns a carry of another structure ({after}) than the scan begins with ({before}). "
            "Its first output must be the new state."
        )
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(init), jax.tree.leaves(carry), strict=True
    ):
        new = jnp.asarray(new)
        if old.shape != new.shape or (old.dtype != new.dtype and not new.weak_type):
            raise ModelError(
                f"The step turns entry '{jax.tree_util.keystr(path)}' of the carry from "
                f"{old.dtype}{list(old.shape)} into {new.dtype}{list(new.shape)}; make the first carry what "
                "the step returns."
            )


class _Step(SiteRun):
    """One run of the body of a scan. ``masks``: of handlers around the scan, by site. ``reparametrised``:
    what ``reparam`` would have made a function of noise."""

    masks: dict[str, Any]
    reparametrised: list[str]

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            raise ModelError(
                "The step has a scan or cond of NumPyro inside; use jax.lax.scan without sites, or jnp.where."
            )
        if msg["type"] in ("param", "mutable"):
            raise ModelError(
                f"'{msg['name']}' ({msg['type']}) stands inside the step; declare it before the scan."
            )
        super().process_message(msg)

    def sample(self, msg) -> None:
        if msg["name"] in self.masks:
            msg["fn"] = msg["fn"].mask(self.masks[msg["name"]])
        super().sample(msg)

    def may_hand_on(self) -> dict[str, jax.Array]:
        """Values of observed sites that could have a gap, and it be drawn."""
        given = {n: s for n, s in self.sites.items() if n not in self.latent}
        return {
            n: jnp.asarray(s["value"])
            for n, s in given.items()
            if can_be_drawn(unmasked(s["fn"]), jnp.asarray(s["value"]))
        }

    def as_given(self) -> "_Step":
        """The record with imputed sites as the observed ones that they are."""
        for name in self.imputed & self.raw.keys():
            self.sites[name]["value"] = self.raw[name]
        self.raw = {}
        return self


def run_step(scan: Scan, carry, inputs: Inputs, values: dict[str, Any], key=None) -> tuple[Any, Any, _Step]:
    """The new carry, the output and the record of one step; latent sites take their values, or are drawn with
    the key. So do the gaps of imputed sites."""
    body = scan.body
    if inputs.known:
        leaves, tree = jax.tree.flatten(carry)
        ahead = dict(zip(scan.known, inputs.known, strict=True))
        carry = jax.tree.unflatten(tree, [ahead.get(i, leaf) for i, leaf in enumerate(leaves)])
    for kind, held in scan.stack:

        def given(msg, held=held):
            return _at_step(msg, held, inputs, scan.scopes)

        body = (
            condition(body, condition_fn=given)
            if kind == "condition"
            else substitute(body, substitute_fn=given)
        )
    record = _Step(values, key)
    record.imputed, record.idle = scan.imputed, scan.idle
    # What is stacked has the time of the inputs in front, whatever way the scan runs.
    record.masks = {
        n: mask if isinstance(mask, bool) else mask[inputs.number] for n, mask in scan.masks.items()
    }
    with block(), as_written() as record.reparametrised:
        new, output = within(scan.scopes, lambda: record, lambda: body(carry, inputs.x))
    return new, output, record


def _at_step(msg, held: dict[str, Any], inputs: Inputs, scopes: tuple[Messenger, ...]):
    names = names_within(scopes, msg) if msg["type"] == "sample" else ()
    if not (name := next((n for n in names if n in held), None)):
        return None
    rank = len(msg["fn"].shape(msg["kwargs"]["sample_shape"]))
    if jnp.ndim(held[name]) == rank:
        return held[name]
    if name not in inputs.given or jnp.ndim(inputs.given[name]) != rank:
        raise ModelError(
            f"The values given for site '{name}' have the shape {jnp.shape(held[name])}, which is neither "
            "one step's nor that of all steps. Give one for every step; NaN for what was not observed."
        )
    return inputs.given[name]
