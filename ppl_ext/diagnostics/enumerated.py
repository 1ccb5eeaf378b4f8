"""Handlers around NumPyro's parallel enumeration, which correct what it assumes of supports, masks, names of axes, and scans."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.contrib.funsor import trace as packed_trace
from numpyro.contrib.funsor.enum_messenger import LocalNamedMessenger
from numpyro.primitives import Messenger

from ppl_ext.errors import ModelError
from ppl_ext.program import run_in_scan_body


class Indexed(Messenger):
    """Let NumPyro's enumeration of a ``scan`` see each finite site as a Categorical over its support, without a mask.

    It corrects the same as :class:`Enumerated`. Inside the body of a scan the value that enumeration will set is not known yet, so the law
    is exchanged instead, and the program is handed what the index stands for.
    """

    def __init__(self, fn: Callable | None, finite: Iterable[str]):
        super().__init__(fn)
        self.finite = frozenset(finite)
        self.support: jax.Array | None = None  # of the site under way; in its message it would leak out of the scan

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(msg, lambda _: Indexed(None, self.finite))
        elif msg["type"] == "sample" and msg["name"] in self.finite and not msg.get("_control_flow_done"):
            fn = _unmasked(msg["fn"])
            self.support = jnp.ravel(_support(msg["name"], fn))
            log_probs = fn.log_prob(self.support.reshape((-1,) + (1,) * len(fn.batch_shape)))
            msg["fn"] = dist.CategoricalLogits(jnp.moveaxis(log_probs, 0, -1))

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and self.support is not None:
            msg["value"], self.support = self.support[msg["value"]], None


class GivenInScan(Messenger):
    """Give the latent sites of a ``scan`` their values, step by step.

    NumPyro's own substitution tells a series from a single value by its rank, and takes one for the other below an enumerated site.
    """

    def __init__(self, fn: Callable | None, values: Mapping[str, Any]):
        super().__init__(fn)
        self.values = values

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(msg, lambda step: GivenInScan(None, step), dict(self.values))
        elif msg["type"] == "sample" and not msg["is_observed"] and msg["name"] in self.values and not msg.get("_control_flow_done"):
            msg["value"] = self.values[msg["name"]]


class PackedTrace(packed_trace):
    """NumPyro's trace that names the axes of sites, each site in a frame of its own.

    In one frame for all, an axis that no plate declares (a batch shape, a scan's steps) would keep its dimension, and a plate that comes
    later could not have it: a bare KeyError.
    """

    def postprocess_message(self, msg):
        with LocalNamedMessenger(history=2):  # it sees the names of this step of a scan, and of the step before
            super().postprocess_message(msg)


class Enumerated(Messenger):
    """Correct what NumPyro's enumeration assumes: that supports start at 0, and that no mask lies on a finite site.

    A masked finite site would count each of its K values with weight one, a spurious log K. Unmasked, its factor sums
    to one, so that the site is simply gone, as it should be.
    """

    def __init__(self, finite: Iterable[str]):
        super().__init__()
        self.finite = frozenset(finite)

    def process_message(self, msg):
        # Outermost, so this runs when the plates have expanded the distribution and `enum` has set the value.
        if msg["type"] == "control_flow" and msg["fn"] is scan_wrapper:
            # The finite sites are outside: an enumerating scan would split its sites in two, for nothing.
            msg["kwargs"]["enum"] = False
        if msg["type"] != "sample" or msg["name"] not in self.finite:
            return
        msg["fn"] = _unmasked(msg["fn"])
        support = jnp.ravel(_support(msg["name"], msg["fn"]))
        msg["value"] = support[msg["value"]]


def _unmasked(fn: dist.Distribution) -> dist.Distribution:
    shape = fn.batch_shape
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn.expand(shape)


def _support(name: str, fn: dist.Distribution) -> jax.Array:
    try:
        return fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ModelError(f"The values of site '{name}' cannot be listed to sum it out: {error}") from error
