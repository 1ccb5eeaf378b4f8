"""Insist on pathwise gradients."""

import math

import equinox as eqx
from numpyro.distributions.util import is_identically_one
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import element_mask
from ppl_ext.errors import ModelError, StrategyError
from ppl_ext.gradients import Reparameterize
from ppl_ext.gradients.default import resolve
from ppl_ext.handlers.handler import Handler
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class reparameterized(Handler):
    """A program all of whose draws are differentiable functions of noise; any other site is refused by name.

    For objectives whose gradient estimator is right for such sites only. It looks at the strategy that a site
    will have after all handlers inside it. Observed sites, masks and scales of other than plates are refused
    too: such an estimator takes log q for a normalised density.

    :param objective: the name of who asks, for the message.
    :raises StrategyError: when the program runs and a site is not reparameterised.
    :raises ModelError: if a site is observed, masked or scaled.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from ppl_ext import simulate
    >>> guide = reparameterized(lambda p: numpyro.sample("b", dist.Bernoulli(p)), "MyObjective")
    >>> simulate(guide, 0.5, rng_key=jax.random.key(0))
    Traceback (most recent call last):
    ppl_ext.errors.StrategyError: MyObjective differentiates through draws, and the gradient of site 'b' ...
    """

    objective: str = eqx.field(static=True)

    def messenger(self) -> Messenger:
        return _Reparameterized(self.objective, {})


class _Reparameterized(Messenger):
    reaches_inner = True  # the sites inside a marginal or normalize

    def __init__(self, objective: str, scales: dict[str, float]):
        super().__init__()
        self.objective, self.scales = objective, scales

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Reparameterized(self.objective, self.scales))
        elif msg["type"] == "plate":
            size, subsample_size = msg["args"]
            self.scales[msg["name"]] = size / subsample_size if subsample_size else 1.0
        elif msg["type"] == "sample":
            self._check(msg)

    def _check(self, msg):
        name = msg["name"]
        if msg["is_observed"]:
            raise ModelError(
                f"{self.objective} takes no observed sites or factors in the guide, and '{name}' is one. "
                "Use IWELBO."
            )
        if msg["value"] is not None:
            return
        strategy, _, _ = resolve(msg)
        if not isinstance(strategy, Reparameterize):
            raise StrategyError(
                f"{self.objective} differentiates through draws, and the gradient of site '{name}' "
                f"({type(msg['fn']).__name__}) is {strategy!r}. Use IWELBO or Renyi, which take every "
                "strategy, or reparameterise the site."
            )
        of_plates = math.prod(self.scales.get(frame.name, 1.0) for frame in msg["cond_indep_stack"])
        scale = msg["scale"] if msg["scale"] is not None else 1.0
        even = isinstance(scale, int | float) and math.isclose(scale, of_plates) or is_identically_one(scale)
        # Absent elements are no part of either program: what is left of the law is normalised.
        masked = element_mask(msg["fn"]) is not None and not msg["infer"].get("_ppl_ext_absent")
        if not even or masked:
            raise ModelError(
                f"{self.objective} takes site '{name}' for a draw of a density that is neither masked nor "
                "scaled. Use IWELBO."
            )
