"""Elements of a target's free sites that its program masks and nothing else sees."""

from jax import random
from numpyro.handlers import substitute
from numpyro.primitives import Messenger

from ppl_ext.algorithms.anywhere import Anywhere
from ppl_ext.algorithms.target import ImposeSome, Target
from ppl_ext.densities.distributions import unmasked
from ppl_ext.expectations.masked_latents import absent_elements, is_masked_latent
from ppl_ext.program import Program
from ppl_ext.tracing.scan_bodies import run_in_scan_body


def draw_absent(target: Target) -> None:
    """Lift the masks of absent elements: padding, or observed values under ``obs_mask``.

    Such an element has no density, and the sum over its values is infinite, in particles as in the formula.
    As nothing else sees it, it is no part of the model (:mod:`ppl_ext.expectations.masked_latents`); with its
    law it integrates to one. The target is changed in place, before anything is mapped over particles.
    """
    if target.absent_drawn:
        return
    target.absent_drawn = True
    if not any(is_masked_latent(target.sites[n]) for n in target.free):
        return
    program, params, given = target.program, dict(target.params), dict(target.given)

    def alone():
        with Anywhere(), substitute(data=params), ImposeSome(given, set()):
            return program()

    def prior():
        with Unmasked():
            return alone()

    with target.apart():
        absent = absent_elements(alone, prior, random.key(0))
    hidden = absent.guide | absent.model
    if hidden:
        target.program = Program(type(absent)({}, hidden).of_model(program.fn), program.args, program.kwargs)


class Unmasked(Messenger):
    """Draw from laws without their masks, in a scan too."""

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: Unmasked())
        elif msg["type"] == "sample" and not msg["is_observed"]:
            msg["fn"] = unmasked(msg["fn"])
