"""Handlers of one estimate: the sites of a model whose law is a score get another density, and the laws of a
guide are kept.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from ppl_ext.errors import ModelError
from ppl_ext.scores.law import ScoreLaw


class Replaced(Distribution):
    """A law of a score whose log density, at one point and with a key, is a function."""

    support = dist.constraints.real_vector

    def __init__(self, law: ScoreLaw, fn: Callable, rng_key, extra=None):
        self.law, self.fn, self.rng_key, self.extra = law, fn, rng_key, extra
        super().__init__(law.batch_shape, law.event_shape)

    def log_prob(self, value):
        shape = jnp.broadcast_shapes(jnp.shape(value)[:-1], self.batch_shape)
        count = max(1, jnp.zeros(shape).size)
        keys = random.split(self.rng_key, count)
        if self.extra is None:
            return self.law.each(lambda x, key: self.fn(self.law, x, key, None), value, keys)
        extra = jnp.broadcast_to(self.extra, (*shape, *self.event_shape)).reshape(count, -1)
        return self.law.each(lambda x, key, e: self.fn(self.law, x, key, e), value, keys, extra)

    def sample(self, key, sample_shape=()):
        return self.law.sample(key, sample_shape)


class ScoreSites(Messenger):
    """Score the sites that have a law of a score by ``fn(law, x, rng_key, extra)`` instead of their density.

    :param extra: by site, what goes with each coordinate; empty for nothing.
    """

    def __init__(self, fn: Callable, rng_key, extra: dict[str, jax.Array] | None = None):
        super().__init__()
        self.fn, self.rng_key, self.extra = fn, rng_key, extra
        self.met: list[str] = []

    def process_message(self, msg):
        if msg["type"] == "sample" and not msg.get("_control_flow_done"):
            msg["fn"] = self._replaced(msg["name"], msg["fn"])

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and (left := law_of_score(msg["fn"])) is not None:
            if isinstance(left, ScoreLaw):
                raise ModelError(
                    f"ScoreKL: score_prior '{msg['name']}' is inside a scan or cond, where its score cannot "
                    "be asked for alone. Use ELBO, which takes its density."
                )

    def _replaced(self, name: str, fn):
        if isinstance(fn, ScoreLaw):
            self.met.append(name)
            extra = None
            if self.extra is not None:
                if name not in self.extra:
                    raise ModelError(
                        f"ScoreKL(weight='variational'): the guide's law at '{name}' tells no variance. "
                        "Use a Normal or MultivariateNormal there, or weight='exact'."
                    )
                extra = self.extra[name]
            key = random.fold_in(self.rng_key, zlib.crc32(name.encode()))
            return Replaced(fn, self.fn, key, extra)
        if isinstance(fn, dist.MaskedDistribution):
            return dist.MaskedDistribution(self._replaced(name, fn.base_dist), fn._mask)
        if isinstance(fn, dist.Independent):
            return self._replaced(name, fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
        return fn


def law_of_score(fn) -> ScoreLaw | Replaced | None:
    """The law of a score under its wrappers, if there is one."""
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn if isinstance(fn, ScoreLaw | Replaced) else None


class Spreads(Messenger):
    """Keep the standard deviations of a guide's laws, where they are known."""

    def __init__(self):
        super().__init__()
        self.found: dict[str, jax.Array] = {}

    def postprocess_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            try:
                self.found[msg["name"]] = jax.lax.stop_gradient(jnp.sqrt(msg["fn"].variance))
            except (NotImplementedError, AttributeError):
                pass
