"""Whether the tables that NumPyro's enumeration leaves of a model with chains are those of the model."""

from collections.abc import Callable, Mapping
from typing import Any

import funsor
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.summed_sites import finite_terms
from ppl_ext.densities.variable_elimination import finite_site
from ppl_ext.diagnostics.enumeration.factor_graph import Graph
from ppl_ext.diagnostics.enumeration.one_step import PREVIOUS, TIME_OF_CHAIN, base_name, chain_graph
from ppl_ext.diagnostics.enumeration.summed_terms import messages_at, sample_sites
from ppl_ext.diagnostics.sites import Site
from ppl_ext.errors import ModelError, PplExtError


def checked_graph(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
    finite: frozenset[str],
) -> tuple[Graph, dict[str, int]]:
    """The tables at one draw, compared with runs of the model in which each element of a finite site has an
    outcome of its own.

    NumPyro runs the model with all outcomes side by side on an axis of their own. A sum, a maximum or a
    matrix product over that axis gives another density, without a word: here it is refused.

    :raises ModelError: if they differ, or the model does not run that way; it names the site.
    """
    made: list[tuple[Graph, dict[str, int]]] = []

    @jax.jit  # under it NumPyro takes impossible outcomes without a complaint
    def tables(values, params):
        made.append(chain_graph(model, values, args, kwargs, params, sites, finite))
        return {n: _data(factor) for n, factor in made[0][0].factors.items()}

    try:
        data = jax.device_get(tables(dict(values), dict(params)))
    except PplExtError:
        raise
    except (TypeError, ValueError) as error:
        raise ModelError(f"{_refusal(sorted(finite))}: {str(error).splitlines()[0]}") from error
    graph, scan_of = made[0]
    values = {n: jnp.asarray(v) for n, v in values.items()}  # which a program may index by an outcome
    names, rng = sample_sites(sites), np.random.default_rng(0)
    at_any = messages_at(model, values, args, kwargs, params)
    supports = {n: finite_site(n, at_any[n]) for n in names if n in finite}

    @jax.jit
    def terms(indices):
        more = {n: supports[n].value(i) for n, i in indices.items()}
        return finite_terms(messages_at(model, {**values, **more}, args, kwargs, params), names, finite)

    for _ in range(3):
        indices = {n: rng.integers(len(s.support), size=s.shape) for n, s in supports.items()}
        for name, term in zip(names, terms(indices), strict=True):
            if not _agrees(graph, data, sites, indices, name, np.asarray(term)):
                felt = {
                    base_name(i) for n in (name, PREVIOUS + name) for i in graph.factors.get(n, _NONE).inputs
                } & finite
                raise ModelError(
                    f"{_refusal(sorted(felt - {name} or felt))}: the density of '{name}' is another one "
                    "then (does it sum or contract over them?)"
                )
    return graph, scan_of


_NONE = funsor.Number(0.0)


def _refusal(names: list[str]) -> str:
    listed = ", ".join(map(repr, names))
    return (
        f"The finite sites {listed} cannot be summed out here: the model cannot take all of their values "
        "side by side"
    )


def _data(factor: funsor.terms.Funsor) -> jax.Array:
    """A table with its inputs as axes, in their order."""
    axes = list(factor.inputs)
    if not axes:
        return jnp.asarray(factor.data)
    whole = funsor.to_data(factor, name_to_dim={n: i - len(axes) for i, n in enumerate(axes)})
    return jnp.broadcast_to(whole, [factor.inputs[n].size for n in axes])


def _agrees(
    graph: Graph,
    data,
    sites: Mapping[str, Site],
    indices: Mapping[str, np.ndarray],
    name: str,
    term: np.ndarray,
) -> bool:
    found = PREVIOUS + name in graph.factors, name in graph.factors
    pieces = []
    if found[0]:
        pieces.append(_looked_up(graph, data, PREVIOUS + name, indices, sites, 0, term[0]))
    if found[1]:
        pieces.append(
            _looked_up(
                graph, data, name, indices, sites, 1 if found[0] else None, term[1:] if found[0] else term
            )
        )
    return all(np.allclose(table, part, rtol=1e-3, atol=1e-3, equal_nan=True) for table, part in pieces)


def _looked_up(
    graph: Graph, tables, factor: str, indices, sites, first: int | None, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the table says at these outcomes, and the term, both over the term's axes. ``first``: the step
    that the factor begins with.
    """
    axes, dims, data = list(graph.factors[factor].inputs), graph.dims[factor], tables[factor]
    stacked = first == 1
    # Axes of the term: (steps,) then what its batch has, plates counted from the right.
    shape = part.shape
    grid = np.indices(shape)

    def place(name: str) -> np.ndarray:
        if name.startswith(TIME_OF_CHAIN):
            return grid[0]
        base = base_name(name)
        if base not in indices:
            return grid[len(shape) + dims[name]]
        index, site = indices[base], sites[base]
        if site.in_scan and first is not None:
            # In the stacked factors the step before is called _PREV_; alone, the first step is.
            steps = (
                index[:-1] if stacked and name.startswith(PREVIOUS) else index[1:] if stacked else index[0]
            )
        else:
            steps = index
        # The site's own plates lie on the right of the term's axes, as declared.
        lead = 1 if stacked and site.in_scan else 0
        rest = np.shape(steps)[lead:]
        wide = np.reshape(steps, np.shape(steps)[:lead] + (1,) * (len(shape) - lead - len(rest)) + rest)
        return np.broadcast_to(wide, shape)

    return data[tuple(place(n) for n in axes)] if axes else np.broadcast_to(data, shape), part
