"""Which slices of a plate a guide misses, by the weights of each."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.log_density import site_log_prob
from ppl_ext.diagnostics.depending import depending
from ppl_ext.diagnostics.psis import pareto_k_threshold, psis
from ppl_ext.diagnostics.sites import describe
from ppl_ext.diagnostics.verdicts.weights import FEWEST
from ppl_ext.runtime.verdict import Reason

LOOKED_AT = 1000
"""Slices of a plate, at most: those whose log weights spread most."""

NAMED = 3
"""Slices that are named, at most."""


def pareto_k_by_slice(log_weights: np.ndarray) -> np.ndarray:
    r"""Pareto :math:`\hat k` of the weights (draw, slice) of each slice, (slice,), in double precision.

    Not more than ``LOOKED_AT`` are looked at; of the others, NaN.

    >>> x = np.random.default_rng(0).normal(size=(2000, 3))
    >>> [bool(k > 0.7) for k in pareto_k_by_slice(x * [0.1, 4.0, 0.2])]
    [False, True, False]
    """
    log_weights = np.asarray(log_weights, np.float64)
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(log_weights.std(0), nan=np.inf)
    at = np.sort(np.argsort(-spread, kind="stable")[:LOOKED_AT])
    found = np.full(log_weights.shape[1], np.nan)
    found[at] = psis(log_weights[:, at].T).pareto_k
    return found


def reasons_of_slices(
    slices: Mapping[str, np.ndarray], alone: Callable[[Collection[str]], Collection[str]]
) -> list[Reason]:
    r"""Where a guide that is not good misses, by the slices of plates (chain, draw, size).

    The weight of a whole draw is the product of those of its slices with that of what they share:

    .. math:: \log w = \log w_0 + \sum_i \log w_i

    A slice whose own :math:`\hat k` is high is where the guide misses; if none is, what is off is shared, or
    is little in each of many.

    :param alone: of some plates, those whose slices speak for themselves: :func:`separate`.
    """
    found = []
    for plate in alone([p for p, x in slices.items() if x.shape[1] >= FEWEST and x.shape[2] > 1]):
        x = slices[plate]
        k = np.fmax.reduce([pareto_k_by_slice(chain) for chain in x])
        order = np.argsort(-np.nan_to_num(k, nan=-np.inf, posinf=1e300), kind="stable")
        heavy = [i for i in order if k[i] > pareto_k_threshold(x.shape[1])]
        if not heavy:
            words = f"the guide fits each of the {len(k)} slices of plate '{plate}' by itself"
            found.append(Reason("good", f"{words} (largest Pareto k {k[order[0]]:.2f}, at {order[0]})"))
            continue
        first = ", ".join(f"{i} (Pareto k {k[i]:.2f})" for i in heavy[:NAMED])
        words = f"the guide misses most at {first} of plate '{plate}'"
        found.append(Reason("doubtful", f"{words}; {len(heavy)} of its {len(k)} slices are off"))
    return found


def separate(
    model: Callable,
    plates: Collection[str],
    draw: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
) -> list[str]:
    """The plates among these that stand alone: no site outside of them needs their latent sites.

    Elsewhere the weight of a slice is not all that speaks of it.

    :param draw: one value of each latent site.
    """
    sites = describe(model, draw, args, kwargs, params)
    shapes = {
        n: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
        for n, x in draw.items()
        if n in sites and sites[n].kind == "latent"
    }
    found = []
    for plate in plates:
        inside = {s.name for s in sites.values() if plate in {p.name for p in s.plates}}
        local = [n for n in shapes if n in inside]
        others = [s.name for s in sites.values() if s.name not in inside and s.kind in ("latent", "observed")]

        def read(record, others=others):
            return {n: site_log_prob(record[n]) for n in others if n in record}

        if not depending(model, local, read, shapes, args, kwargs, params):
            found.append(plate)
    return found
