"""What each unit of an encoder says: divergences and means of latent sites that share a plate with data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.handlers import seed, substitute

from ppl_ext.densities.distributions import elements, log_prob
from ppl_ext.densities.recording import Aside, Record
from ppl_ext.diagnostics.sites import FullPlates, given, is_factor
from ppl_ext.errors import ModelError

Messages = Mapping[str, dict]


class Units(NamedTuple):
    """The units of one latent site, flattened, each (unit,): mean KL to the prior in nats, variance of the
    encoder's mean over the data, and whether that is above the threshold.

    >>> Units(np.array([0.7]), np.array([0.5]), np.array([True])).active.tolist()
    [True]
    """

    kl: np.ndarray
    variance_of_mean: np.ndarray
    active: np.ndarray


class Encoded(NamedTuple):
    """A fitted pair of programs at its parameters: latent sites and the observed one, and their plates."""

    model: Callable
    guide: Callable
    params: Mapping[str, Any]
    args: tuple
    kwargs: Mapping[str, Any]
    latent: tuple[str, ...]
    observed: str
    plates: frozenset[str]

    def units(self, rng_key: jax.Array, num_samples: int, threshold: float) -> dict[str, Units]:
        """The units of each latent site, averaged over draws of the guide."""

        def one(key):
            q, p = drawn(self.guide, self.model, self.params, self.args, self.kwargs, key)
            return {name: self._of_site(q[name], p[name]) for name in self.latent}

        run = jax.jit(lambda keys: jax.lax.map(one, keys))
        found = jax.device_get(run(jax.random.split(rng_key, num_samples)))
        return {name: _summed(ratio, mean, threshold) for name, (ratio, mean) in found.items()}

    def _of_site(self, q: dict, p: dict) -> tuple[jax.Array, jax.Array]:
        ratio = log_prob(elements(q["fn"]), q["value"]) - log_prob(elements(p["fn"]), q["value"])
        try:
            mean = jnp.broadcast_to(q["fn"].mean, jnp.shape(q["value"]))
        except NotImplementedError:  # of a flow, say: the draws' own mean over many
            mean = q["value"]
        event = jnp.ndim(q["value"]) - jnp.ndim(ratio)
        return self.by_row(q, ratio, event).mean(0), self.by_row(q, mean)

    def by_row(self, site: dict, x: jax.Array, without: int = 0) -> jax.Array:
        """An array of a site's shape as (rows of the plates, units)."""
        x = jnp.asarray(x)
        depth = site["fn"].event_dim - without
        axes = [x.ndim - depth + f.dim for f in site["cond_indep_stack"] if f.name in self.plates]
        front = jnp.moveaxis(x, sorted(axes), range(len(axes)))
        rows = int(np.prod(front.shape[: len(axes)]))
        return front.reshape(rows, -1)

    def data(self, rng_key: jax.Array) -> tuple[np.ndarray, float | None]:
        """The observed values (rows, units), and their law's variance if that is normal."""

        def run(key):
            _, p = drawn(self.guide, self.model, self.params, self.args, self.kwargs, key)
            site = p[self.observed]
            law: Any = elements(site["fn"])
            while isinstance(law, dist.ExpandedDistribution):
                law = law.base_dist
            normal = isinstance(law, dist.Normal)
            return self.by_row(site, site["value"]), jnp.mean(law.variance) if normal else None

        y, noise = jax.device_get(jax.jit(run)(rng_key))
        return np.asarray(y, np.float64), None if noise is None else float(noise)


def drawn(guide, model, params, args, kwargs, key) -> tuple[Messages, Messages]:
    """Messages of a run of the guide on its full plates, and of the model at its draw."""
    keys = jax.random.split(key)
    with Aside(), (q := Record(guide)), FullPlates():
        seed(substitute(guide, data=dict(params)), keys[0])(*args, **kwargs)
    values = {n: m["value"] for n, m in q.sites.items() if m["type"] == "sample"}
    with Aside(), (p := Record(model)), FullPlates():
        seed(given(model, values, params), keys[1])(*args, **kwargs)
    return q.sites, p.sites


def encoded(model: Callable, guide: Callable, params: Mapping, args: tuple, kwargs: Mapping) -> Encoded:
    """The latent sites that lie in the plates of the one observed site.

    :raises ModelError: if there is none, or not one observed site.
    """
    found: list[Any] = []

    def run(params, key):
        q, p = drawn(guide, model, params, args, kwargs, key)
        seen = [n for n, m in p.items() if m["type"] == "sample" and m["is_observed"] and not is_factor(m)]
        if len(seen) != 1:
            names = ", ".join(map(repr, seen)) or "none"
            raise ModelError(f"collapse: the model must observe one site, and it observes {names}.")
        plates = frozenset(f.name for f in p[seen[0]]["cond_indep_stack"])
        inside = [
            n
            for n, m in q.items()
            if n in p and m["type"] == "sample" and plates & {f.name for f in m["cond_indep_stack"]}
        ]
        found.append((tuple(inside), seen[0], plates))
        return 0

    jax.eval_shape(run, dict(params), jax.random.key(0))
    latent, observed, plates = found[-1]
    if not latent:
        raise ModelError(
            f"collapse: no latent site of the guide shares a plate with the observed site '{observed}'. Only "
            "what is drawn for each datum can collapse: put both into one plate."
        )
    return Encoded(model, guide, params, args, kwargs, latent, observed, plates)


def _summed(ratio: np.ndarray, mean: np.ndarray, threshold: float) -> Units:
    """From (draw, unit) and (draw, row, unit); the noise of the mean over draws is taken off."""
    num = len(mean)
    within = mean.var(0, ddof=1).mean(0) / num if num > 1 else 0.0
    spread = np.maximum(mean.mean(0).var(0) - within, 0.0)
    return Units(ratio.mean(0), spread, spread > threshold)
