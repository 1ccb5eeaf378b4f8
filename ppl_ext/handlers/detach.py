"""Hold a program fixed under differentiation."""

import jax
from numpyro.primitives import Messenger

from ppl_ext.gradients import Constant
from ppl_ext.handlers.handler import Handler
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class detach(Handler):
    """A program as a fixed distribution: neither its ``param`` sites (those of modules too) nor its draws
    carry gradients.

    An objective uses it to draw from a guide without differentiating the draw, as reweighted wake-sleep does.

    >>> import jax, numpyro
    >>> double = lambda a: numpyro.handlers.substitute(lambda: 2.0 * numpyro.param("a", 1.0), {"a": a})
    >>> float(jax.grad(lambda a: double(a)())(1.0))
    2.0
    >>> float(jax.grad(lambda a: detach(double(a))())(1.0))
    0.0
    """

    def messenger(self) -> Messenger:
        return _Detach()


class _Detach(Messenger):
    reaches_inner = True  # the sites inside a marginal or normalize

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Detach())
        elif msg["type"] == "sample" and not msg["is_observed"]:
            msg["infer"] = {**msg["infer"], "gradient": Constant()}
        elif msg["type"] == "param" and msg["value"] is not None:
            msg["value"] = jax.lax.stop_gradient(msg["value"])

    def postprocess_message(self, msg):
        if msg["type"] == "param":  # one that nobody substituted has its value only now
            msg["value"] = jax.lax.stop_gradient(msg["value"])
