"""Whether episodes of different lengths may be padded: only if their losses and slopes with padding are those
without.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import biject_to
from numpyro.handlers import block

from ppl_ext.errors import ModelError
from ppl_ext.meta.episode import EpisodeForm, EpisodeLoss, Rows, Site, traced
from ppl_ext.meta.streams.stream import few_lengths
from ppl_ext.program import log_density
from ppl_ext.runtime.explain import explained, name_of

CLOSE = 2e-4
"""Of losses and slopes, relative to their size: well above what rounding makes of sums in another order."""


def row_plates(form: EpisodeForm, loc: jax.Array, stream: Any, rng_key: jax.Array) -> tuple[str, ...] | None:
    """The plates by which the padding of a ragged stream's episodes is masked; ``None`` if the model sees it
    nevertheless.

    Plates over rows mask the sites within them. What a model reads off its rows otherwise (their number, a
    mean, a factor over all of them) no mask reaches. So three episodes are scored with padding and without,
    at several places; if that is not the same, no episode is padded: those of one length are then run
    together (:mod:`ppl_ext.meta.groups`).

    :param loc: θ, about which episodes are scored.
    :param stream: an ``EpisodeStream`` or what has its ``lengths``, ``batch`` and ``ragged``.
    :raises ModelError: for local or shared sites that are not the same in every episode, naming them.
    """
    lengths = np.asarray(stream.lengths)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    chosen = list(dict.fromkeys(int(order[i]) for i in (0, len(order) // 2, -1)))
    _check_sites(form, stream[chosen[0]], stream[chosen[-1]], rng_key)
    rows = int(lengths[chosen[-1]])
    total = few_lengths(np.asarray([rows + 4]))
    plates = _growing(form, stream, chosen, rows, rng_key)
    with explained(form.model):
        places = loc + 0.3 * jax.random.normal(rng_key, (3, form.dim))
        return plates if all(_unseen(form, plates, stream, i, total, places) for i in chosen) else None


def _growing(
    form: EpisodeForm, stream: Any, chosen: list[int], rows: int, rng_key: jax.Array
) -> tuple[str, ...]:
    """The plates that have a place for each row."""
    sites = traced(form.model, stream[chosen[-1]], {}, rng_key)
    plates = [n for n, s in sites.items() if s["type"] == "plate" and s["args"][0] == rows]
    # A plate of that size by chance keeps it in an episode of another length.
    other = jax.tree.map(lambda x: x[0], stream.batch([chosen[0]], pad_to=rows + 1).args)
    again = traced(form.model, other, {}, rng_key)
    return tuple(n for n in plates if n in again and again[n]["args"][0] == rows + 1)


def _unseen(
    form: EpisodeForm, plates: tuple[str, ...], stream: Any, i: int, total: int, places: jax.Array
) -> bool:
    """Whether an episode's losses and slopes are the same with padding as without."""
    length = int(stream.lengths[i])
    shared = jax.tree.map(jnp.asarray, form.initial_shared())

    def scored(args, rows):
        def loss(theta, shared):
            return EpisodeLoss(form, shared, args, {}, rows)(theta)

        return jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), in_axes=(0, None))(places, shared)

    quickly = {"xla_backend_optimization_level": 0}  # it runs once
    wanted = jax.jit(lambda args: scored(args, None), compiler_options=quickly)(
        jax.tree.map(jnp.asarray, stream[i])
    )
    padded = jax.jit(
        lambda args: scored(args, Rows(plates, jnp.asarray(length)) if plates else None),
        compiler_options=quickly,
    )
    for args in _padded(stream, i, total):
        try:
            found = padded(args)
        except Exception:  # it runs without padding, and that is how it will be run
            return False
        if not _alike(found, wanted):
            return False
    return True


def _padded(stream: Any, i: int, total: int) -> list[tuple]:
    """An episode with the padding that it gets in a batch, and with the rows of all episodes that are most
    unlike instead.

    Copies of its last row would not show in a mean where all of its rows are alike, as in another episode
    they may not be.
    """
    batch, start = jax.tree.map(lambda x: x[0], stream.batch([i], pad_to=total).args), int(stream.lengths[i])
    episodes = [jax.tree.leaves(stream[j]) for j in range(len(stream.lengths)) if stream.lengths[j]]
    pools = [np.concatenate([e[k] for e in episodes]) if r else None for k, r in enumerate(stream.ragged)]
    chosen = np.resize(_unlike(pools), total - start)
    filled = [
        x if p is None else x.at[start:].set(_moved(p)[chosen])
        for x, p in zip(jax.tree.leaves(batch), pools, strict=True)
    ]
    return [batch, jax.tree.unflatten(jax.tree.structure(batch), filled)]


def _unlike(pools: list[np.ndarray | None]) -> np.ndarray:
    """Numbers of rows that stand out in one of the arrays; the same for all, for a row's numbers may belong
    together.
    """
    found = dict[int, None]()
    for pool in pools:
        if pool is not None:
            size = np.asarray(pool, np.float64).reshape(len(pool), -1).sum(1)
            found |= {int(np.argmin(size)): None, int(np.argmax(size)): None}
    return np.array(list(found))


def _moved(pool: np.ndarray) -> np.ndarray:
    """Where all rows of all episodes are alike, others: new episodes may have them."""
    alike = pool.dtype.kind == "f" and (pool == pool[:1]).all()
    return pool * np.asarray(1.25, pool.dtype) + np.asarray(0.5, pool.dtype) if alike else pool


def _alike(found: Any, wanted: Any) -> bool:
    (losses, slopes), (losses_wanted, slopes_wanted) = found, wanted
    if not np.isfinite(np.asarray(losses_wanted)).all():
        return True  # the first step will say where
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(slopes_wanted), strict=True)
    steep = max(
        (float(np.abs(np.asarray(x)).max(initial=0.0)) for x in jax.tree.leaves(slopes_wanted)), default=0.0
    )
    high = float(np.abs(np.asarray(losses_wanted)).max()) + 1e-2 * steep
    apart = [float(np.abs(np.asarray(x) - np.asarray(y)).max(initial=0.0)) for x, y in pairs]
    same = bool(np.abs(np.asarray(losses) - np.asarray(losses_wanted)).max() <= CLOSE * (high + 1e-2))
    return same and all(a <= 5 * CLOSE * (steep + 1e-2 * high + 1e-2) for a in apart)


def _check_sites(form: EpisodeForm, short: tuple, long: tuple, rng_key: jax.Array) -> None:
    """Refuse sites that are others where episodes are padded.

    :raises ModelError: for a local or shared site whose shape or support, or a shared site whose prior,
        depends on the episode.
    """
    who = f"The episode model '{name_of(form.model)}'"
    sites = traced(form.model, short, {}, rng_key)
    for site in (*form.sites, *form.shared_sites):
        kind = "local" if site in form.sites else "shared"
        if site.name not in sites or not _same_support(site, sites[site.name], rng_key):
            raise ModelError(
                f"{who}: the shape or the support of {kind} site '{site.name}' depends on the episode: "
                "episodes of different length have different ones, and the hierarchy needs one for all. "
                "Take it out of plates over rows, and its support off the data."
            )
    if form.shared_sites:
        priors = [_priors(form, args) for args in (short, long)]
        for name, value in priors[0].items():
            if not np.allclose(value, priors[1][name], rtol=1e-4, atol=1e-5):
                raise ModelError(
                    f"{who}: the prior of shared site '{name}' depends on the episode (its log density is "
                    f"{float(value):.4g} in one and {float(priors[1][name]):.4g} in another), and all "
                    "episodes have that site in common. Make its prior the same for all."
                )


def _same_support(site: Site, message: Mapping[str, Any], rng_key: jax.Array) -> bool:
    with numpyro.validation_enabled(False):
        transform = biject_to(message["fn"].support)
        if jnp.shape(transform.inv(message["value"])) != site.shape:
            return False
        at = jax.random.normal(rng_key, site.shape)
        return bool(np.allclose(transform(at), site.transform(at), rtol=1e-4, atol=1e-6))


def _priors(form: EpisodeForm, args: tuple) -> dict[str, jax.Array]:
    shared = form.initial_shared()
    values = form.values(jnp.zeros(form.dim)) | form.shared_values(shared)
    with block():
        terms = log_density(form.program(shared), values, *args).by_site
    return {s.name: terms[s.name] for s in form.shared_sites}
