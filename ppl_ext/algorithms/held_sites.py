"""Sites of a program that NumPyro's own handlers inside of it take out of an algorithm's hands."""

import sys
from collections.abc import Callable, Collection
from typing import Any

import equinox as eqx
from numpyro.primitives import Messenger

from ppl_ext.errors import ModelError
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class HeldAsGiven(eqx.Module):
    """The program, of which what ``numpyro.handlers.substitute`` holds inside is given, as by ``condition``:
    it stays at its value, and its density counts.

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro.handlers import seed, substitute, trace
    >>> held = substitute(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), data={"z": 2.0})
    >>> trace(seed(HeldAsGiven(held), 0)).get_trace()["z"]["is_observed"]
    True
    """

    fn: Callable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _AsGiven():
            return self.fn(*args, **kwargs)


class _AsGiven(Messenger):
    def process_message(self, msg):
        if msg["type"] == "control_flow":  # NumPyro opens the same handlers in a scan's body
            held = msg["kwargs"]["substitute_stack"]
            held[:] = [("condition" if kind == "substitute" else kind, what) for kind, what in held]
        elif msg["type"] == "sample" and msg["value"] is not None and not msg.get("_control_flow_done"):
            msg["is_observed"] = True


class NothingHidden(Messenger):
    """Refuse what is drawn anew in a run where all sites have values: a ``block`` keeps it from us.

    :param where: who asks.
    :param names: the sites that are known.
    :param of_guide: whether the run is that of a guide.
    """

    def __init__(self, where: str, names: Collection[str], of_guide: bool = False):
        super().__init__()
        self.where, self.names, self.of_guide = where, names, of_guide

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: NothingHidden(self.where, self.names, self.of_guide))
            return
        name = msg.get("name")
        if msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None:
            name = _asked_for_by_a_block()
        elif msg["type"] != "sample" or msg["value"] is not None:
            return
        if name is not None and name not in self.names:
            whose = "guide" if self.of_guide else "program"
            remedy = (
                "and draw the sites of the program by one law without it"
                if self.of_guide
                else "so that it is moved like the others (its draws need not be used), or fix it: "
                f"numpyro.handlers.condition(model, data={{'{name}': ...}})"
            )
            raise ModelError(
                f"{self.where}: a numpyro.handlers.block hides site '{name}' in the {whose}, which would be "
                f"held at one draw. Take it out of the block, {remedy}."
            )


def _asked_for_by_a_block() -> str | None:
    """The site that a ``block`` wants a key for: it asks in place of the site, whose message we do not
    see.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        is_block = frame.f_code.co_qualname == "block.process_message"
        if is_block and frame.f_globals.get("__name__") == "numpyro.handlers":
            return frame.f_locals["msg"].get("name")
        frame = frame.f_back
    return None
