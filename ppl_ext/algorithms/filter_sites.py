"""The random choices of a particle filter as sites of an expectation, so that each has a gradient strategy.

Ancestors are a site ``"index"``, by default with the score function. Latent sites whose law can be
reparameterised are drawn along their path; the others are one site of N lanes, with the score function. All
of them stand in the body of a ``scan`` over time, so a cost of time t is charged to the choices up to t.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax, random
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.batch_util import promote_batch_shape

from ppl_ext.densities.distributions import unmasked
from ppl_ext.errors import StrategyError
from ppl_ext.gradients import Constant, Reparameterize, ScoreFunction, as_strategy
from ppl_ext.state_space.missing import missing_term
from ppl_ext.state_space.resampling import independent
from ppl_ext.state_space.site_runs import drawn_law

_stop = lax.stop_gradient


class Ancestors(Distribution):
    """``num`` independent indices, drawn with probabilities proportional to exp(log_weights) (..., N) in
    O(num log N).
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("log_weights",)
    pytree_aux_fields = ("num",)
    has_enumerate_support = True

    def __init__(self, log_weights: jax.Array, num: int):
        self.log_weights, self.num = log_weights, num
        super().__init__((*log_weights.shape[:-1], num))

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return constraints.integer_interval(0, self.log_weights.shape[-1] - 1)

    def sample(self, key, sample_shape=()):
        if sample_shape or self.log_weights.ndim > 1:
            # The error by which NumPyro's own laws refuse a draw; callers of theirs catch it.
            raise NotImplementedError("Ancestors are drawn once for each time.")
        return independent(key, self.log_weights, self.num)

    def log_prob(self, value, intermediates=None):
        possible = self.log_weights.max(-1, keepdims=True) > -jnp.inf
        log_weights = jnp.where(possible, self.log_weights, 0.0)
        log_weights = log_weights - logsumexp(log_weights, axis=-1, keepdims=True)
        return jnp.take_along_axis(
            jnp.broadcast_to(log_weights, (*value.shape[:-1], log_weights.shape[-1])), value, axis=-1
        )

    def enumerate_support(self, expand=True):
        values = jnp.arange(self.log_weights.shape[-1]).reshape(-1, *(1,) * len(self.batch_shape))
        return jnp.broadcast_to(values, (values.shape[0], *self.batch_shape)) if expand else values


@promote_batch_shape.register
def _(d: Ancestors):
    return Ancestors(d.log_weights, d.num)


class Lanes(Distribution):
    """Values that N particles have drawn already, and the log density (N,) of each under its own law."""

    arg_constraints: dict = {}
    pytree_data_fields = ("values", "log_density")
    pytree_aux_fields = ("discrete",)

    def __init__(self, values: jax.Array, log_density: jax.Array, discrete: bool):
        self.values, self.log_density, self.discrete = values, log_density, discrete
        super().__init__(log_density.shape, values.shape[log_density.ndim :])

    @constraints.dependent_property
    def support(self):
        return constraints.independent(
            constraints.integer if self.discrete else constraints.real, self.event_dim
        )

    def sample(self, key, sample_shape=()):
        return self.values

    def log_prob(self, value, intermediates=None):
        return self.log_density


@promote_batch_shape.register
def _(d: Lanes):
    return Lanes(d.values, d.log_density, d.discrete)


def _law_at(site: dict) -> jax.Array:
    """The log density that a site was drawn with, at its value held fixed; of an imputed one that of what was
    not seen.
    """
    if "raw" in site:
        return jnp.sum(missing_term(site["fn"], site["raw"], _stop(site["value"]), site["name"]))
    return drawn_law({**site, "value": _stop(site["value"])})


class Sited:
    """Draws for :func:`~ppl_ext.state_space.filtering.advance` inside an expectation.

    :param annotations: what ``infer`` a site of this name would have, after the handlers outside.
    """

    fixed = False

    def __init__(self, annotations: Callable[[str, Distribution, dict], dict]):
        self.annotations = annotations

    def ancestors(self, key, log_weights, num):
        return self._sample("index", Ancestors(log_weights, num), key, {"gradient": ScoreFunction()})

    def values(self, one, keys, names, *particles, frozen=None):
        """Draw the sites of a particle, as :meth:`~ppl_ext.state_space.filtering.Keyed.values` does. All are
        drawn; those to be scored come out of the lanes and become sites of N lanes; then the lanes run again
        with these given, which draws the others as before."""
        laws: dict[str, tuple[Distribution, dict]] = {}

        def lane(given, key, *particle):
            values, log_q, sites = one(given, key, *particle)
            laws.update({n: (unmasked(s["fn"]), s["infer"]) for n, s in sites.items()})
            return values, log_q, {n: _law_at(s) for n, s in sites.items()}

        def all_lanes(given):
            return keys.each(lambda key, given, *particle: lane(given, key, *particle), given, *particles)

        values, log_q, by_site = all_lanes({})
        given: dict[str, Any] = {}
        skip = 0 if frozen is None else 1  # the frozen lane is no choice
        for name in names:
            law, infer = laws[name]
            if (strategy := self._strategy(name, law, infer)) is None:
                continue
            drawn = _stop(values[name])
            if isinstance(strategy, ScoreFunction) and len(drawn) > skip:
                lanes = Lanes(drawn[skip:], by_site[name][skip:], law.support.is_discrete)
                drawn = jnp.concatenate(
                    [
                        drawn[:skip],
                        self._sample(name, lanes, random.fold_in(keys.key, 0), {"gradient": strategy}),
                    ]
                )
            given[name] = drawn
        if frozen is not None:
            values = all_lanes(given)[0] if given else values
            given = jax.tree.map(
                lambda x, z: jnp.concatenate([jnp.asarray(z, x.dtype)[None], x[1:]]), values, frozen
            )
        if given:
            values, log_q, _ = all_lanes(given)
        return values, log_q

    def _strategy(self, name: str, law: Distribution, infer: dict):
        """``None`` for a draw along its path."""
        spec = self.annotations(name, law, infer).get("gradient")
        if spec is None:
            return None if Reparameterize.serves(law) else ScoreFunction()
        strategy = as_strategy(spec, name)
        if not isinstance(strategy, Reparameterize | ScoreFunction | Constant):
            raise StrategyError(
                f"{strategy!r} cannot serve site '{name}' inside a particle filter: its N lanes are drawn "
                "at every time. Use 'score', 'reparam' or Constant()."
            )
        strategy.check(name, law)
        return None if isinstance(strategy, Reparameterize) else strategy

    def _sample(self, name: str, fn: Distribution, key, infer: dict):
        return numpyro.sample(name, fn, rng_key=key, infer={**infer, **self.annotations(name, fn, {})})
