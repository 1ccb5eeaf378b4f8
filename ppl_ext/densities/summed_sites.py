"""A log density in which finite latent sites of a program are summed out, site by site and term by term
(:mod:`ppl_ext.densities.variable_elimination`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.util import is_identically_one

from ppl_ext.densities.by_plates import eliminated
from ppl_ext.densities.distributions import element_log_prob, element_mask, elements, log_prob
from ppl_ext.densities.elimination_structure import Declared
from ppl_ext.densities.finite_sites import finite_site
from ppl_ext.densities.half_seen import observed_twin
from ppl_ext.densities.log_density import Label, LogDensity, site_log_prob
from ppl_ext.errors import ModelError


def summed_out(
    sites: dict[str, dict],
    density: LogDensity,
    summed: set[str],
    run: Callable[[Mapping[str, jax.Array]], dict[str, dict]],
) -> LogDensity:
    """The log density with the summed sites gone: the terms that they link are one, and one scale multiplies
    its logarithm.

    :param sites: of one run, in which the summed sites had any of their outcomes; ``density`` is its log
        density.
    :param run: the sites of a run in which they have the given outcomes.
    """
    names = [n for n, s in sites.items() if s["type"] == "sample"]
    finite = {n: finite_site(n, sites[n]) for n in names if n in summed}

    def terms(values: Mapping[str, jax.Array]) -> list[jax.Array]:
        return finite_terms(run(values), names, summed)

    out = []
    axes = [
        _plate_axes(sites[n], jnp.ndim(x) if n not in summed else None)
        for n, x in zip(names, density.terms, strict=True)
    ]
    elimination = eliminated(
        terms, finite, names, Declared({n: a for n, a in zip(names, axes, strict=True) if n in summed}, axes)
    )
    groups = [elimination.summed(linked) for linked in elimination.linked()]
    for t, (term, label) in enumerate(zip(density.terms, density.labels, strict=True)):
        group = next((g for g in groups if t in g.terms), None)
        if group is None:
            out.append((term, label))
        elif t == group.terms[0]:
            labels, linked = [density.labels[i] for i in group.terms], [names[i] for i in group.terms]
            if any(x.estimate.kind != "exact" for x in labels):
                raise ModelError(
                    f"Site '{group.sites[0]}' cannot be summed out: a density that reads it is itself an "
                    "estimate."
                )
            scale = _one_scale(group.sites, [sites[n]["scale"] for n in linked])
            plates = tuple(p for p in label.plates if all(p in x.plates for x in labels))
            out.append(
                (group.value if scale is None else scale * group.value, Label(_together(linked), plates))
            )
    return LogDensity(tuple(x for x, _ in out), tuple(label for _, label in out), 0)


def _plate_axes(site: Mapping, ndim: int | None) -> dict[str, int]:
    """The axis of each plate around a site, counted from the left of its elements, or of a term with so many
    axes.
    """
    if ndim is None:
        ndim = len(site["kwargs"]["sample_shape"]) + len(site["fn"].batch_shape)
    return {f.name: ndim + f.dim for f in site["cond_indep_stack"] if ndim >= -f.dim}


def finite_terms(sites: Mapping[str, dict], names: Sequence[str], summed: Collection[str]) -> list[jax.Array]:
    """The log densities of the named sites, those of summed ones element by element. Where a mask hides an
    element of a summed site, each of its outcomes counts one, as ``scale * mask * log p`` says; where
    ``obs_mask`` put an observed value in its place, they count one together."""

    def term(name: str) -> jax.Array:
        site = sites[name]
        if name not in summed:
            return site_log_prob(site)
        value = element_log_prob(site["fn"], site["value"])
        if (observed := observed_twin(name, sites)) is None:
            return value
        seen, law = element_mask(observed["fn"]), log_prob(elements(site["fn"]), site["value"])
        return law if seen is None else jnp.where(seen, law, value)

    return [term(n) for n in names]


def _one_scale(summed: tuple[str, ...], scales: list):
    """The scale of linked sites: None, or a number that all share. (Of an array each element would have its
    own.)
    """
    scales = [None if s is None or is_identically_one(s) else s for s in scales]
    if all(
        s is scales[0] or (not isinstance(s, jax.core.Tracer) and np.ndim(s) == 0 and s == scales[0])
        for s in scales
    ):
        return scales[0]
    raise ModelError(
        f"Sites that read the summed site '{summed[0]}' do not share one scale (of a subsampled plate, or "
        "handlers.scale), so the log of their sum has none. Put them all under the same one, or give the "
        "guide that site."
    )


def _together(names: Sequence[str]) -> str:
    return " + ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
