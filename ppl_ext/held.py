"""Draws whose density is scored once more with the program's parameters held fixed: what pathwise estimators of log q need."""

import jax
from numpyro.primitives import Messenger

from ppl_ext.density import LogDensity
from ppl_ext.handlers import detach
from ppl_ext.program import Draw, log_density, simulate


def fixed(values):
    """The same values, which carry no gradient."""
    return jax.tree.map(jax.lax.stop_gradient, values)


def simulate_and_hold(guide) -> tuple[Draw, LogDensity]:
    r"""A draw z of the guide, and :math:`\log q_{\bar\phi}(z)`: differentiable through z, its parameters φ held fixed.

    Observed sites and factors keep the gradient by the parameters, for only that of a normalised density has the mean zero.
    """
    same = SameKeys()
    with same:
        draw = simulate(guide)
    with same:
        held = log_density(detach(guide), draw.values)
    return draw, held.split(draw.values)[0] + draw.log_density.split(draw.values)[1]


class SameKeys(Messenger):
    """What a program asks keys for beside its sites (dropout, say) is the same in every run under this handler."""

    def __init__(self):
        super().__init__()
        self.keys: list = []
        self.asked = 0

    def __enter__(self):
        self.asked = 0
        return super().__enter__()

    def process_message(self, msg):
        if msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None and self.asked < len(self.keys):
            msg["kwargs"]["rng_key"] = self.keys[self.asked]

    def postprocess_message(self, msg):
        if msg["type"] == "prng_key":
            if self.asked == len(self.keys):
                self.keys.append(msg["value"])
            self.asked += 1
