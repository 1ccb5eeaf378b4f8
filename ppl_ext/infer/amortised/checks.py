"""Whether a network that learns from a model's simulations can answer for its sites."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import element_mask, unmasked
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentError, ModelError


class RefuseImproper(Messenger):
    """Stop at a law that has no draws, before NumPyro does."""

    def process_message(self, msg):
        if msg["type"] == "sample" and isinstance(unmasked(msg["fn"]), dist.ImproperUniform):
            raise ModelError(
                f"amortise: site '{msg['name']}' is improper, and a network learns from draws of the model. "
                "Give it a law that can be drawn from."
            )


def latent_sites(run: Mapping[str, dict], names: set[str]) -> list[str]:
    return [n for n, s in run.items() if s["type"] == "sample" and not s["is_observed"] and n not in names]


def checked_sites(
    run: Mapping[str, dict], names: set[str], template: Mapping[str, Any], sites: Any
) -> list[str]:
    """The latent sites to answer for."""
    for name, site in run.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ModelError(
                f"amortise: plate '{name}' is subsampled, so that a simulation is no data set. Leave "
                "subsample_size out."
            )
        if site["type"] != "sample":
            continue
        if isinstance(unmasked(site["fn"]), dist.Unit):
            raise ModelError(
                f"amortise: factor '{name}' weighs simulations, which a network that learns from them does "
                "not feel. Write it as a site with a law."
            )
        if site["scale"] is not None:
            raise ModelError(
                f"amortise: site '{name}' is scaled, which simulations do not feel. Leave handlers.scale out."
            )
        if name in names and name not in template:
            raise ModelError(
                f"amortise: observed site '{name}' is no argument of the model, so that the network cannot "
                f"read it. Name the argument as the site: the model takes {listed(template)}."
            )
    if not names:
        raise ModelError("amortise: the model observes nothing, so that there is nothing to answer.")
    latent = latent_sites(run, names)
    if any(n not in latent for n in sites or ()):
        raise ModelError(f"amortise: sites={list(sites)}, but the latent sites are {listed(latent)}.")
    latent = latent if sites is None else [n for n in latent if n in sites]
    if not latent:
        raise ModelError("amortise: the model has no latent site to answer for.")
    for name in latent:
        law = run[name]["fn"]
        if law.support.is_discrete:
            raise ModelError(
                f"amortise: site '{name}' ({type(law).__name__}) is discrete, and the network's law is "
                "continuous. Sum it out with ppl_ext.marginal, or leave it out of sites=."
            )
        if (mask := element_mask(law)) is not None and not np.all(mask):
            raise ModelError(f"amortise: latent site '{name}' is masked. A network answers for whole sites.")
    return latent


def checked_rows(
    rows: Sequence[str], count: str | None, names: set[str], template: Mapping[str, Any]
) -> tuple[tuple[str, ...], str | None]:
    if isinstance(rows, str) or not all(n in names and np.ndim(template[n]) for n in rows):
        raise ArgumentError(
            f"amortise: rows must name observed sites that have one entry a row, of {listed(sorted(names))}, "
            f"got {rows!r}."
        )
    if len({np.shape(template[n])[0] for n in rows}) > 1:
        raise ArgumentError(f"amortise: the sites of rows={list(rows)} are not equally long.")
    if count is not None and (count not in names or count in rows or np.ndim(template[count]) or not rows):
        raise ArgumentError(
            f"amortise: count must name the observed site that says how many rows there are, of "
            f"{listed(sorted(names))}, got {count!r}."
        )
    return tuple(n for n in template if n in rows), count


def check_masks(runs: list, names: set[str], rows: tuple[str, ...], count: str | None) -> None:
    """Whether exactly what the network sees is scored by the model."""
    for run in runs:
        for name in sorted(names):
            mask, length = element_mask(run[name]["fn"]), np.shape(run[name]["value"])[:1]
            if name in rows and count is not None:
                seen = np.arange(length[0]) < np.asarray(run[count]["value"])
                batch = (1,) if mask is None else np.shape(mask)
                whole = np.ones(length) if mask is None else np.asarray(mask)
                if batch[:1] == length:
                    whole = whole.reshape(length[0], -1)
                    if (whole == seen[:, None]).all():
                        continue
                elif seen.all() and whole.all():
                    continue
                raise ModelError(
                    f"amortise: the rows of site '{name}' that count are not the first '{count}'. Draw it "
                    f"under numpyro.handlers.mask(mask=jnp.arange({length[0]}) < {count}), with the rows as "
                    "an axis of the batch."
                )
            if mask is not None and not np.all(mask):
                raise ModelError(
                    f"amortise: site '{name}' is masked, and the network would read what does not count. "
                    "Only rows= beyond count= may be masked."
                )


def alike(x: Any, y: Any) -> bool:
    a, b = jax.tree.leaves(x), jax.tree.leaves(y)
    return (
        type(x) is type(y)
        and len(a) == len(b)
        and all(np.array_equal(jnp.asarray(p), jnp.asarray(q)) for p, q in zip(a, b, strict=True))
    )
