"""Draw what a program observes."""

import equinox as eqx
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import unmasked
from ppl_ext.handlers.handler import Handler
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class unobserved(Handler):
    """A program whose observed sites are latent ones, inside ``scan`` and ``cond`` too. Factors stay as they
    are.

    NumPyro's ``uncondition`` does not reach into ``scan`` and draws factors as well.

    :param names: a set that collects the names of the observed sites as the program runs.

    >>> import jax, numpyro, ppl_ext
    >>> model = lambda y: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
    >>> list(ppl_ext.simulate(unobserved(model), 1.0, rng_key=jax.random.key(0)).values)
    ['y']
    """

    names: set[str] = eqx.field(static=True, default_factory=set)

    def messenger(self) -> Messenger:
        return _Unobserved(self.names)


class _Unobserved(Messenger):
    def __init__(self, names: set[str]):
        super().__init__()
        self.names = names

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Unobserved(self.names))
        elif (
            msg["type"] == "sample" and msg["is_observed"] and not isinstance(unmasked(msg["fn"]), dist.Unit)
        ):
            self.names.add(msg["name"])
            msg["is_observed"], msg["value"] = False, None
