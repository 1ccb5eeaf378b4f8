"""Noise on the data of a fit, for laws without a density (Chae, Kim, Kim, Lin 2023)."""

import zlib
from fnmatch import fnmatchcase
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger, prng_key

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.handlers.handler import Handler
from ppl_ext.runtime.arguments import described
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class perturb(Handler):
    r"""A model whose data get fresh normal noise in every run, and the same model with that noise taken off.

    .. math:: x \to x + s\, \epsilon, \quad \epsilon \sim N(0, 1); \qquad \text{afterwards} \quad \sigma^2 \to
        \max(\sigma^2 - s^2, 0)

    Data on a curve or a surface have no density: the likelihood of a decoder with learned noise σ grows
    without bound as σ vanishes, and says little about the decoder. Fit ``perturb(model, "x", s)``, whose data
    have a density, and draw from ``perturb(model, "x", s).removed()``. A larger s makes the fit easier and
    its answer coarser: the best lies between.

    Each particle of an objective draws noise of its own. What a guide reads of the data itself stays clean.

    :param sites: a name pattern of the shell; real observed sites that fit get noise.
    :param scale: s, at least 0: a number or an array that broadcasts to the data; it may change between calls
        without compiling again.
    :raises ArgumentError: for a scale below 0.
    :raises ModelError: when run, if a site that fits is discrete, or there is no random key.

    >>> import numpyro, ppl_ext
    >>> model = lambda x: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    >>> perturbed = perturb(model, "x", 0.5)
    >>> keys = jax.random.split(jax.random.key(0), 4000)
    >>> draws = jax.vmap(lambda key: numpyro.handlers.seed(perturbed, key)(3.0))(keys)
    >>> bool(abs(draws.mean() - 3.0) < 0.05), bool(abs(draws.std() - 0.5) < 0.05)
    (True, True)
    >>> law = numpyro.handlers.trace(perturbed.removed()).get_trace(3.0)["x"]["fn"]
    >>> round(float(law.variance), 4)
    0.75

    Source: Chae, Kim, Kim, Lin 2023.
    """

    sites: str = eqx.field(static=True)
    scale: Any

    def __check_init__(self):
        super().__check_init__()
        if not isinstance(self.sites, str):
            raise ArgumentError(f"perturb: sites must be a name or a pattern, got {described(self.sites)}.")
        if not isinstance(self.scale, jax.core.Tracer) and not jnp.all(jnp.asarray(self.scale) >= 0):
            raise ArgumentError(f"perturb: scale must be at least 0, got {described(self.scale)}.")

    def messenger(self) -> Messenger:
        return _Perturb(self.sites, self.scale)

    def removed(self) -> "Handler":
        """The model without noise on its data, and the noise's variance taken off the laws of the sites.

        :raises ModelError: when run, for a law that is no ``Normal`` or mixture of such.
        """
        return _Removed(self.program, self.sites, self.scale)


class _Removed(Handler):
    sites: str = eqx.field(static=True)
    scale: Any

    def messenger(self) -> Messenger:
        return _Narrow(self.sites, self.scale)


class _Perturb(Messenger):
    def __init__(self, sites: str, scale: Any):
        super().__init__()
        self.sites, self.scale = sites, scale

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Perturb(self.sites, self.scale))
        elif _fits(msg, self.sites) and msg["is_observed"]:
            name, value = msg["name"], jnp.asarray(msg["value"])
            if msg["fn"].support.is_discrete:
                raise ModelError(f"perturb: site '{name}' is discrete, and noise would leave its support.")
            if (key := prng_key()) is None:
                raise ModelError(f"perturb: no random key for the noise of site '{name}'. Pass rng_key=...")
            key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            msg["value"] = value + self.scale * jax.random.normal(key, value.shape, value.dtype)


class _Narrow(Messenger):
    def __init__(self, sites: str, scale: Any):
        super().__init__()
        self.sites, self.scale = sites, scale

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Narrow(self.sites, self.scale))
        elif _fits(msg, self.sites):
            msg["fn"] = _narrowed(msg["name"], msg["fn"], self.scale)


def _fits(msg: dict, pattern: str) -> bool:
    """Whether it is such a site, and none that a scan has stacked of its steps."""
    return msg["type"] == "sample" and not msg.get("_control_flow_done") and fnmatchcase(msg["name"], pattern)


def _narrowed(name: str, law: Distribution, scale: Any) -> Distribution:
    match law:
        case dist.MaskedDistribution():
            return _narrowed(name, law.base_dist, scale).mask(law._mask)
        case dist.ExpandedDistribution():
            return _narrowed(name, law.base_dist, scale).expand(law.batch_shape)
        case dist.Independent():
            return _narrowed(name, law.base_dist, scale).to_event(law.reinterpreted_batch_ndims)
        case dist.MixtureSameFamily():
            inner = _narrowed(name, law.component_distribution, scale)
            return dist.MixtureSameFamily(law.mixing_distribution, inner)
    if type(law) is not dist.Normal:
        raise ModelError(
            f"perturb: the noise can be taken off a Normal or a mixture of such, and site '{name}' is a "
            f"{type(law).__name__}."
        )
    left = jnp.maximum(law.scale**2 - jnp.asarray(scale) ** 2, jnp.finfo(jnp.result_type(float)).tiny)
    return dist.Normal(law.loc, jnp.sqrt(left))
