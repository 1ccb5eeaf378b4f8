"""Handlers around NumPyro's parallel enumeration of a ``scan``, which correct what it assumes of supports,
values, and names of axes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.contrib.funsor import trace as packed_trace
from numpyro.contrib.funsor.enum_messenger import LocalNamedMessenger
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import element_mask
from ppl_ext.errors import ModelError
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class Indexed(Messenger):
    """Let NumPyro's enumeration of a ``scan`` see each finite site as a Categorical over its support.

    It assumes that supports start at 0. Inside the body of a scan the value that enumeration will set is not
    known yet, so the law is exchanged, and the program is handed what the index stands for. Under a mask each
    outcome counts one, as everywhere.
    """

    def __init__(self, fn: Callable | None, finite: Iterable[str]):
        super().__init__(fn)
        self.finite = frozenset(finite)
        # of the site under way; in its message it would leak out of the scan
        self.support: jax.Array | None = None

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: Indexed(None, self.finite))
        elif msg["type"] == "sample" and msg["name"] in self.finite and not msg.get("_control_flow_done"):
            fn, mask = _unmasked(msg["fn"]), element_mask(msg["fn"])
            self.support = jnp.ravel(_support(msg["name"], fn))
            log_probs = fn.log_prob(self.support.reshape((-1,) + (1,) * len(fn.batch_shape)))
            law = dist.CategoricalLogits(jnp.moveaxis(log_probs, 0, -1))
            msg["fn"] = law if mask is None else law.mask(mask)

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and self.support is not None:
            msg["value"], self.support = self.support[msg["value"]], None


class GivenInScan(Messenger):
    """Give the latent sites of a ``scan`` their values, step by step.

    NumPyro's own substitution tells a series from a single value by its rank, and takes one for the other
    below an enumerated site.
    """

    def __init__(self, fn: Callable | None, values: Mapping[str, Any]):
        super().__init__(fn)
        self.values = values

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda step: GivenInScan(None, step), dict(self.values))
        elif (
            msg["type"] == "sample"
            and not msg["is_observed"]
            and msg["name"] in self.values
            and not msg.get("_control_flow_done")
        ):
            msg["value"] = self.values[msg["name"]]


class PackedTrace(packed_trace):
    """NumPyro's trace that names the axes of sites, each site in a frame of its own.

    In one frame for all, an axis that no plate declares (a batch shape, a scan's steps) would keep its
    dimension, and a plate that comes later could not have it: a bare KeyError.
    """

    def postprocess_message(self, msg):
        # it sees the names of this step of a scan, and of the step before
        with LocalNamedMessenger(history=2):
            super().postprocess_message(msg)


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
