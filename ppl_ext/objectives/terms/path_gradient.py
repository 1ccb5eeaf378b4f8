"""Draws whose density is scored once more with the program's parameters held fixed: what pathwise estimators
of log q need.
"""

from typing import Any

import jax
from numpyro.primitives import Messenger

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.handlers import detach
from ppl_ext.program import Draw, log_density, simulate


def fixed(values):
    """Values that carry no gradient any more."""
    return jax.tree.map(jax.lax.stop_gradient, values)


def simulate_and_hold(guide) -> tuple[Draw, LogDensity]:
    r"""A draw z of the guide, and :math:`\log q_{\bar\phi}(z)`: differentiable through z, its parameters φ
    held fixed.

    Observed sites and factors keep the gradient by the parameters, for only that of a normalised density has
    the mean zero.
    """
    with (same := SameRun()):
        draw = simulate(guide)
    with same:
        held = log_density(detach(guide), draw.values)
    return draw, held.split(draw.values)[0] + draw.log_density.split(draw.values)[1]


class SameRun(Messenger):
    """Runs of a program under this handler are one run: the keys that it asks for beside its sites (dropout,
    say) are the same in all, and its ``numpyro.mutable`` state (a batch norm, say) starts from the same
    values in all and moves on in the first."""

    def __init__(self):
        super().__init__()
        self.keys: list = []
        self.asked, self.runs = 0, 0
        self.before: dict[str, Any] = {}
        self.again: dict[str, Any] = {}

    def __enter__(self):
        self.asked, self.again = 0, {}
        self.runs += 1
        return super().__enter__()

    def process_message(self, msg):
        kind = msg["type"]
        if kind == "prng_key" and msg["kwargs"]["rng_key"] is None and self.asked < len(self.keys):
            msg["kwargs"]["rng_key"] = self.keys[self.asked]
        elif kind == "mutable" and self.runs > 1 and msg["name"] in self.before:
            msg["value"] = self.again.setdefault(msg["name"], _copied(self.before[msg["name"]]))
            msg["stop"] = True

    def postprocess_message(self, msg):
        if msg["type"] == "prng_key":
            if self.asked == len(self.keys):
                self.keys.append(msg["value"])
            self.asked += 1
        elif msg["type"] == "mutable" and self.runs == 1:
            self.before.setdefault(msg["name"], _copied(msg["value"]))


def _copied(state):
    """What the program writes into its state stays out of a copy."""
    return dict(state) if isinstance(state, dict) else state
