"""Let NumPyro's own handlers and algorithms meet sites inside ``jax.vmap``."""

from numpyro.primitives import Messenger

from ppl_ext.handlers.handler import Handler
from ppl_ext.tracing.scan_bodies import run_in_scan_body
from ppl_ext.tracing.vmapped_sites import Outside


class vmapped(Handler):
    """A program whose sites inside ``jax.vmap`` are ordinary sites, with the lanes as their leading axes.

    NumPyro itself draws such a site with the same noise in all lanes, and loses it to an error about tracers.
    This library's own verbs, objectives and handlers need no wrapper; ``SVI``, ``MCMC``, ``Predictive`` and
    ``numpyro.handlers`` do. Put it innermost, around the function that uses ``vmap``: handlers inside of it
    meet single lanes.

    :param program: a NumPyro program.
    :raises ModelError: when the program runs, for a site inside another transformation (``jax.grad``,
        ``jax.lax.scan``), and for NumPyro's ``scan`` and ``cond`` inside ``jax.vmap``.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> program = vmapped(lambda: jax.vmap(lambda x: numpyro.sample("z", dist.Normal(x, 1.0)))(jnp.zeros(3)))
    >>> trace = numpyro.handlers.trace(numpyro.handlers.seed(program, 0)).get_trace()
    >>> trace["z"]["fn"].batch_shape, bool(trace["z"]["value"][0] == trace["z"]["value"][1])
    ((3,), False)
    """

    def messenger(self) -> Messenger:
        return _Vmapped()


class _Vmapped(Outside):
    def process_message(self, msg):
        super().process_message(msg)
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: Outside())
