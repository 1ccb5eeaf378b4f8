"""Open a handler inside of a ``scan`` or ``cond``, whose sites never reach a handler around it."""

from collections.abc import Callable
from typing import Any

import jax
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.primitives import Messenger

from ppl_ext.errors import ModelError
from ppl_ext.tracing.scoped_scans import scopes_within, within


def run_in_scan_body(
    handler: Messenger, msg: dict, wrap: Callable[[Any], Messenger], series: Any = None
) -> None:
    """Make a handler work inside the body of a ``scan`` or the branches of a ``cond``, whose sites never
    reach it otherwise.

    ``handler`` is the one that processes the message: scopes inside of it rename the sites of the body too.
    ``wrap(values)`` opens the handler around each execution of the body; ``series`` holds arrays with a
    leading time axis whose slices are passed as ``values``. They travel as scanned inputs: reverse-mode
    through an indexed constant would cost O(T) a step.
    """
    scopes = scopes_within(handler)
    if msg["fn"] is cond_wrapper:
        pred, true_fun, false_fun, operand = msg["args"]

        def branch(fn):
            def run(operand):
                return within(scopes, lambda: wrap({}), lambda: fn(operand))

            return run

        msg["args"] = (pred, branch(true_fun), branch(false_fun), operand)
        return
    # or what an expectation inside made of it
    if getattr(msg["fn"], "args", (msg["fn"],))[0] is not scan_wrapper:
        raise ModelError(
            f"Unknown control flow '{getattr(msg['fn'], '__name__', msg['fn'])}': only NumPyro's scan and "
            "cond are supported."
        )
    fn, init, xs, length, reverse = msg["args"]
    series = {} if series is None else series

    def body(carry, x_and_values):
        x, values = x_and_values
        return within(scopes, lambda: wrap(values), lambda: fn(carry, x))

    length = scan_length(msg)
    msg["args"] = (body, init, (xs, series), length, reverse)


def scan_length(msg: dict) -> int | None:
    """Number of steps of a ``scan`` message; ``None`` for a ``cond``."""
    if msg["fn"] is cond_wrapper:
        return None
    _, _, xs, length, _ = msg["args"]
    return jax.tree.leaves(xs)[0].shape[0] if length is None else length
