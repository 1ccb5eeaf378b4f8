"""Give latent sites of a program their values, whatever way its scans run."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpyro.primitives import Messenger

from ppl_ext.tracing.inner_jits import trace_state
from ppl_ext.tracing.scan_bodies import run_in_scan_body, scan_length
from ppl_ext.tracing.vmapped_sites import sent_out


class Given(Messenger):
    """Give latent sites their values, in ``scan`` too: whatever way it runs, step t gets entry t.

    NumPyro's own substitution reads a series in the order in which the steps run, though it stacks their
    sites in the order of the inputs; of a scan with ``reverse=True`` what was drawn would come back mirrored.

    :param step: what a step of a scan gets of the values that have an entry for each.
    """

    def __init__(self, fn: Callable | None, values: Mapping[str, Any], step: Mapping[str, Any] | None = None):
        super().__init__(fn)
        self.values, self.step, self.state = values, {} if step is None else step, trace_state()

    def process_message(self, msg):
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "control_flow":
            length = scan_length(msg)
            series = {
                n: v for n, v in self.values.items() if length is not None and np.shape(v)[:1] == (length,)
            }
            run_in_scan_body(self, msg, lambda step: Given(None, self.values, step), series)
        elif (
            msg["type"] == "sample"
            and not msg["is_observed"]
            and not msg.get("_control_flow_done")
            and msg["name"] in self.values
        ):
            name, whole = msg["name"], self.values[msg["name"]]
            # A site of the same value at every step has no axis of time.
            a_step = name in self.step and np.ndim(whole) != len(
                msg["fn"].shape(msg["kwargs"]["sample_shape"])
            )
            msg["value"] = self.step[name] if a_step else whole
