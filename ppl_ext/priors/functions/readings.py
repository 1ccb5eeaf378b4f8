"""What reading a fit in function space has to find out: its draws, the site that predicts, and how that
site's law scores targets.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.infer import MCMC

from ppl_ext.diagnostics.reading import is_fit, posterior_draws
from ppl_ext.diagnostics.sites import Site, Unconditioned
from ppl_ext.errors import ArgumentError, ModelError, NonFiniteError
from ppl_ext.runtime.arguments import check_array, check_values

_HERE = "posterior_functions"


def predictable(model: Callable) -> Callable:
    """The model with what it observes drawn anew."""

    def run(*args, **kwargs):
        with Unconditioned():
            return model(*args, **kwargs)

    return run


def draws_of(samples: Any, num_samples: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draws by site, and the params that belong to them (of a fit)."""
    if isinstance(samples, dict):
        check_values(f"{_HERE}: samples", samples)
    found = {name: np.asarray(x) for name, x in posterior_draws(samples, num_samples).items()}
    if isinstance(samples, MCMC) and hasattr(samples.sampler, "why_failed"):
        if reason := samples.sampler.why_failed(samples.last_state, samples._args, samples._kwargs):
            raise NonFiniteError(reason)
    if not found:
        raise ArgumentError(f"{_HERE}: samples hold no draw of any site.")
    return found, dict(samples.params) if is_fit(samples) else {}


def arranged(
    draws: Mapping[str, np.ndarray], sites: Mapping[str, Site], site: str | None
) -> tuple[dict[str, np.ndarray], int, int]:
    """Draws of latent sites as (chain, draw, ...); those of what predicts are left out, for they are drawn
    anew.
    """
    names = [n for n, s in sites.items() if s.kind == "latent"]
    latent = {n: x for n, x in draws.items() if n in names and n != site}
    if not latent:
        raise ArgumentError(
            f"{_HERE}: none of the samples' names {sorted(draws)} is a latent site of the model; it has "
            f"{names}."
        )
    found: dict[str, np.ndarray] = {}
    for name, x in latent.items():
        shape = sites[name].shape
        extra = x.ndim - len(shape)
        if extra not in (1, 2) or x.shape[extra:] != shape:
            raise ArgumentError(
                f"{_HERE}: site '{name}' has shape {shape} in the model on these arguments, so its samples "
                f"must be (draw, *shape) or (chain, draw, *shape); got {x.shape}. If it is what the model "
                f"predicts, say site='{name}'."
            )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise NonFiniteError(
                f"{_HERE}: {(~np.isfinite(x)).sum()} of {x.size} samples of site '{name}' are not finite."
            )
        found[name] = x[None] if extra == 1 else x
    leading = {x.shape[:2] for x in found.values()}
    if len(leading) != 1 or 0 in next(iter(leading)):
        raise ArgumentError(
            f"{_HERE}: all sites need as many chains and draws, at least one of each; got "
            f"{ {n: x.shape[:2] for n, x in found.items()} }."
        )
    return found, *next(iter(leading))


def predicting_site(sites: Mapping[str, Site], draws: Mapping[str, Any], site: str | None) -> str | None:
    """The sample site that predicts: the one asked for, or the only one without draws; ``None`` if all have
    some.
    """
    names = [n for n, s in sites.items() if s.kind == "latent"]
    if site is not None and site not in names:
        raise ArgumentError(f"{_HERE}: site '{site}' is no sample site of the model; there are {names}.")
    lacking = [n for n in names if n not in draws and n != site]
    if site is not None and lacking:
        raise ModelError(
            f"{_HERE}: the latent site '{lacking[0]}' has no samples, so the model cannot run at the draws."
        )
    if len(lacking) > 1:
        raise ModelError(
            f"{_HERE}: the sites {lacking} have no samples. If one of them is what the model predicts, name "
            "it by site=; the others need samples."
        )
    return site or (lacking[0] if lacking else None)


def source_of(output: Any, site: str | None, sites: Mapping[str, Site]) -> str | None:
    """The site whose value or mean is the function; ``None`` for a function of all values."""
    if callable(output):
        return None
    if output is None and site is None:
        raise ArgumentError(
            f"{_HERE}: every sample site has samples, so there is nothing to predict: name output= or site=."
        )
    source = site if output is None else output
    names = [n for n, s in sites.items() if s.kind in ("latent", "deterministic")]
    if source not in names:
        raise ArgumentError(
            f"{_HERE}: output '{source}' is no deterministic or sample site of the model; there are {names}."
        )
    return source


def targets_of(y: Any, site: str | None, sites: Mapping[str, Site]) -> np.ndarray:
    if site is None:
        raise ArgumentError(
            f"{_HERE}: y= needs the site that predicts it, and every sample site has samples: name it by "
            "site=."
        )
    check_array(f"{_HERE}: y", y, tables=True)
    targets = np.asarray(y)
    if targets.shape != sites[site].shape:
        raise ArgumentError(
            f"{_HERE}: y has shape {targets.shape}, but site '{site}' has {sites[site].shape} on these "
            "arguments."
        )
    if not np.isfinite(targets.astype(float)).all():
        raise ArgumentError(
            f"{_HERE}: {(~np.isfinite(targets.astype(float))).sum()} of the targets y are not finite; leave "
            "them out."
        )
    return targets


def location(site: Mapping[str, Any]) -> jax.Array:
    """The mean of a site's law; of a categorical one the probabilities, on an axis of their own."""
    fn = site["fn"]
    base = _base(fn)
    if isinstance(base, dist.CategoricalProbs | dist.CategoricalLogits):
        return jnp.broadcast_to(base.probs, (*fn.shape(), base.probs.shape[-1]))
    try:
        return jnp.broadcast_to(fn.mean, fn.shape())
    except NotImplementedError:
        raise ModelError(
            f"{_HERE}: the law of site '{site['name']}' ({type(fn).__name__}) has no mean; name a "
            "deterministic site by output=, and score without y=."
        ) from None


def scores(site: Mapping[str, Any], y: np.ndarray) -> dict[str, jax.Array]:
    """What the law of a site says of targets: see
    :class:`~ppl_ext.priors.functions.posterior_functions.FunctionDraws`.
    """
    fn, replicated, targets = site["fn"], site["value"], jnp.asarray(y)
    base = _base(fn)
    found = {"log_scores": fn.log_prob(targets)}
    where = location(site)
    if isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits):
        return {**found, "probabilities": jnp.stack([1.0 - where, where], axis=-1)}
    if isinstance(base, dist.CategoricalProbs | dist.CategoricalLogits):
        return {**found, "probabilities": where}
    found["means"] = where
    try:
        if base.support.is_discrete or base.event_dim:
            raise NotImplementedError
        return {**found, "levels": jnp.broadcast_to(base.cdf(targets), targets.shape)}
    except NotImplementedError:  # one replicate a draw instead
        return {
            **found,
            "levels": jnp.where(replicated < targets, 1.0, jnp.where(replicated == targets, 0.5, 0.0)),
        }


def _base(fn: Any) -> Any:
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn
