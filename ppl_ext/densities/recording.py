"""Run a program and keep what its sites say, at values that are given or drawn."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, Unit
from numpyro.handlers import block, infer_config, seed
from numpyro.primitives import _PYRO_STACK, Messenger

from ppl_ext.densities.distributions import check_draw
from ppl_ext.densities.finite_sites import SUPPORT, finite_site, support_in_scan
from ppl_ext.densities.log_density import LogDensity, site_term
from ppl_ext.errors import ModelError
from ppl_ext.runtime.explain import explained, where_density
from ppl_ext.tracing.inner_jits import trace_state
from ppl_ext.tracing.scan_bodies import run_in_scan_body, scan_length
from ppl_ext.tracing.vmapped_sites import Outside, sent_out, was_sent


def whole_message(name: str, fn: Distribution, infer: dict | None = None) -> dict:
    """A latent sample site's message with all the fields that NumPyro gives it, for a handler that is asked
    what it would do.
    """
    return {
        "type": "sample",
        "name": name,
        "fn": fn,
        "args": (),
        "kwargs": {"rng_key": None, "sample_shape": ()},
        "value": None,
        "scale": None,
        "is_observed": False,
        "intermediates": [],
        "cond_indep_stack": [],
        "infer": {} if infer is None else infer,
    }


def hides_all(handler: Messenger) -> bool:
    """Whether a handler is a ``block`` that hides any site, so that none outside of it is reached."""
    return isinstance(handler, block) and bool(handler.hide_fn(whole_message("", Unit(0.0))))


class NoKey(Outside):
    """Refuse to draw: there is no key."""

    def process_message(self, msg):
        super().process_message(msg)
        if msg["type"] in ("sample", "plate") and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            raise ModelError(
                f"No random key to draw {msg['type']} '{msg['name']}'. Pass rng_key=..., or wrap the "
                "program in handlers.seed."
            )


class Aside(Messenger):
    """Keep what a run does to itself: it only makes tables, perhaps under a ``vmap`` that nothing may
    leave.
    """

    def process_message(self, msg):
        msg["stop"] = msg["type"] in ("sample", "deterministic", "mutable")


class _Supports(Messenger):
    """Keep the outcomes of the finite sites of a scan's body."""

    def __init__(self, found: dict[str, jax.Array]):
        super().__init__()
        self.found = found

    def postprocess_message(self, msg):
        if msg["type"] != "sample" or msg["is_observed"] or msg.get("_control_flow_done"):
            return
        if msg["fn"].has_enumerate_support and (support := support_in_scan(msg)) is not None:
            self.found[msg["name"]] = support


class Record(Messenger):
    """Keep the final message of every site of a run. (NumPyro's ``trace`` reports duplicates by a bare
    assertion.)
    """

    def __init__(self, program: Callable | None = None):
        super().__init__()
        self.program = program
        self.sites: OrderedDict[str, dict] = OrderedDict()
        self.supports: dict[str, jax.Array] = {}
        self.state, self.stands = trace_state(), "before its first site"

    def process_message(self, msg):
        if "name" in msg:
            self.stands = f"at {'plate' if msg['type'] == 'plate' else 'site'} '{msg['name']}'"
        if sent_out(self, self.state, msg):
            return
        before = self.sites.get(msg.get("name"), {})
        if msg["type"] == before.get("type") == "plate" and msg["args"] == before["args"]:
            msg["value"] = before["value"]  # NumPyro would draw other rows under the one name
        keys = any(isinstance(h, seed) or getattr(h, "brings_keys", False) for h in _PYRO_STACK)
        if msg["type"] == "control_flow":
            run_in_scan_body(
                self, msg, lambda _: Outside() if keys or msg["kwargs"]["substitute_stack"] else NoKey()
            )
            run_in_scan_body(self, msg, lambda _: _Supports(self.supports))
        if keys:
            return
        NoKey().process_message(msg)

    def postprocess_message(self, msg):
        if "name" not in msg or was_sent(self, msg):
            return
        name = msg["name"]
        if msg["type"] in ("sample", "deterministic") and name in self.sites:
            raise ModelError(
                f"Site '{name}' appears twice in one run; site names must be unique (see "
                "numpyro.handlers.scope)."
            )
        if msg["type"] == "sample" and not msg["is_observed"] and not msg.get("_control_flow_done"):
            check_draw(name, msg["fn"], msg["value"], msg["kwargs"]["sample_shape"])
        self.sites[name] = msg.copy()
        if name in self.supports and msg.get("_control_flow_done"):
            self.sites[name][SUPPORT] = self.supports[name]
        self.stands = self.stands.replace("at ", "after ", 1)

    def plate_scales(self) -> dict[str, float]:
        plates = {name: site["args"] for name, site in self.sites.items() if site["type"] == "plate"}
        return {name: size / taken if taken else 1.0 for name, (size, taken) in plates.items()}

    def log_density(self) -> LogDensity:
        scales, pairs = self.plate_scales(), []
        for name, site in self.sites.items():
            if site["type"] == "sample":
                with explained(self.program, partial(where_density, name), site):
                    pairs.append(site_term(site, scales))
        return LogDensity(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), 0)


class Impose(Messenger):
    """Give latent sites and subsampling plates their values, inside ``scan`` too, and refuse to draw what was
    not given.
    """

    strict = True

    def __init__(self, values, seen: set[str], summed: set[str] | None = None):
        super().__init__()
        self.values, self.seen, self.state = values, seen, trace_state()
        # collects latent sites without a value that are marked for enumeration; None refuses them
        self.summed = summed

    def process_message(self, msg):
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "control_flow":
            length = scan_length(msg)
            values = dict(self.values)
            series = {n: v for n, v in values.items() if length is not None and jnp.shape(v)[:1] == (length,)}
            # A body site takes its slice; a site of the same shape at every step (no time axis) takes the
            # value whole. What handlers outside the body will condition or substitute there needs no value; a
            # function may do so to any site.
            later = [held for _, held in msg["kwargs"]["substitute_stack"]]
            lenient = not self.strict or any(not isinstance(held, dict) for held in later)
            given = {n for held in later if isinstance(held, dict) for n in held}
            # they do not reach into the body
            marks = [h.config_fn for h in _PYRO_STACK if isinstance(h, infer_config)]
            run_in_scan_body(
                self,
                msg,
                lambda slices: ImposeStep(
                    values, slices, self.seen, None if lenient else given, self.summed, marks
                ),
                series,
            )
        elif msg["type"] == "sample" and not msg.get("_control_flow_done"):
            self._sample(msg, self.values)
        elif msg["type"] in ("plate", "param") and msg["value"] is None and msg["name"] in self.values:
            self.seen.add(msg["name"])
            msg["value"] = self.values[msg["name"]]

    def _sample(self, msg, values):
        name = msg["name"]
        if name in values:
            if msg["is_observed"]:
                raise ModelError(
                    f"Site '{name}' is observed in the program, so it takes no value. Leave it out, or pass "
                    "the data as `obs`."
                )
            self.seen.add(name)
            msg["value"] = checked(name, values[name], msg["fn"].shape(msg["kwargs"]["sample_shape"]))
        elif msg["value"] is None and not msg["is_observed"]:
            hint = ""
            if msg["infer"].get("enumerate") == "parallel":
                if self.summed is not None and msg["fn"].has_enumerate_support:
                    self.summed.add(name)
                    # any will do: its terms are made anew
                    msg["value"] = finite_site(name, msg).value(jnp.zeros((), int))
                    return
                finite = msg["fn"].has_enumerate_support
                kind = type(msg["fn"]).__name__
                why, how = (
                    ("", ", with infer={'gradient': 'enumerate'}")
                    if finite
                    else (f", and {kind} has no list of values", "")
                )
                hint = (
                    f" (it is marked for enumeration in the model{why}; give the guide a site of that "
                    f"name{how})"
                )
            raise ModelError(
                f"No value for latent site '{name}'{hint}. Given: {listed(values)}. If these come from a "
                f"guide, it misses '{name}', or draws it inside a jax.jit of its own."
            )


class ImposeStep(Impose):
    def __init__(
        self,
        values,
        slices,
        seen,
        given_later: set[str] | None,
        summed: set[str] | None,
        marks: list[Callable],
    ):
        super().__init__(values, seen, summed)
        self.slices, self.given_later, self.marks = slices, given_later, marks

    def _sample(self, msg, values):
        name, shape = msg["name"], msg["fn"].shape(msg["kwargs"]["sample_shape"])
        if name not in values and (self.given_later is None or name in self.given_later):
            return
        for config in self.marks if msg["value"] is None and not msg["is_observed"] else ():
            msg["infer"] = {**config(msg), **msg["infer"]}
        whole = values.get(name)
        if name in self.slices and (whole is None or jnp.ndim(whole) != len(shape)):
            values = {**values, name: self.slices[name]}
        super()._sample(msg, values)


def listed(names) -> str:
    names = [f"'{n}'" for n in names]
    return ", ".join(names) if names else "none"


def checked(name: str, value, shape: tuple[int, ...]):
    """A value fits a site if their shapes agree up to leading axes of size one."""
    given = jnp.shape(value)
    n = max(len(given), len(shape))
    if (1,) * (n - len(given)) + given != (1,) * (n - len(shape)) + tuple(shape):
        raise ModelError(
            f"Shapes disagree at site '{name}': the program expects {tuple(shape)}, the value has {given}. "
            "Check the plates."
        )
    return value
