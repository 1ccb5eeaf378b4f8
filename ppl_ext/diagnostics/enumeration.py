"""Sum finite latent sites out of a model, exactly, by eliminating them from its factor graph.

Each site of the model is one factor: a funsor over the plates it lies in and the finite sites it depends on. NumPyro's
parallel enumeration supplies the factors; what is done with them here is not in NumPyro, whose ``log_likelihood`` and
``contrib.funsor.log_density`` know only the whole joint or no enumeration at all.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import funsor
import jax
import jax.numpy as jnp
from numpyro.contrib.funsor import config_enumerate, enum, plate_to_enum_plate
from numpyro.contrib.funsor import log_density as _funsor_log_density
from numpyro.handlers import infer_config, seed

from ppl_ext.diagnostics.enumerated import Enumerated, GivenInScan, Indexed, PackedTrace
from ppl_ext.diagnostics.sites import FullPlates, Site, given, refuse_chains
from ppl_ext.errors import ModelError


class Graph(NamedTuple):
    """The factors of a model at one draw.

    ``factors``: by site, log probabilities over the site's plates and the finite sites it depends on; no scale.
    ``dims``: by site, the axis of each plate, counted from the right.
    ``scales``: by site, from ``handlers.scale``; ``None`` is one.
    """

    factors: dict[str, funsor.terms.Funsor]
    dims: dict[str, dict[str, int]]
    scales: dict[str, Any]

    def inputs(self, name: str) -> frozenset[str]:
        return frozenset(self.factors[name].inputs)

    @property
    def size(self) -> int:
        """How many numbers the factors hold together."""
        return sum(math.prod(domain.size for domain in f.inputs.values()) for f in self.factors.values())


_log_space_rules = funsor.interpretations.DispatchedInterpretation("log_space")
_LOG_SPACE = funsor.interpretations.PrioritizedInterpretation(_log_space_rules, funsor.interpretations.eager)
"""How factors are multiplied and summed.

funsor's own rule exponentiates each factor by itself and multiplies matrices: where one factor is large another may have
underflowed, and the sum of a zero weight and a far observation comes out as -inf. Adding first and subtracting the
maximum of the sum costs a larger intermediate array, and is right.
"""


@_log_space_rules.register(
    funsor.cnf.Contraction, funsor.ops.LogaddexpOp, funsor.ops.AddOp, frozenset, funsor.tensor.Tensor, funsor.tensor.Tensor
)
def _add_then_logsumexp(sum_op, product_op, reduced_vars, x, y):
    return product_op(x, y).reduce(sum_op, reduced_vars)


def split_by_scan(values: Mapping[str, Any], sites: Mapping[str, Site]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the sites in a ``scan``, and of the others."""
    inside = {n: v for n, v in values.items() if n in sites and sites[n].in_scan and sites[n].kind == "latent"}
    return inside, {n: v for n, v in values.items() if n not in inside}


def factor_graph(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
    finite: Iterable[str],
) -> Graph:
    """The factors of a model on its full plates, with the sites ``finite`` enumerated and all others given.

    Works under ``jit`` and ``vmap``. ``sites`` is what :func:`~ppl_ext.diagnostics.sites.describe` says of the model.

    :raises ModelError: if a site in ``scan`` depends on an enumerated one.
    """
    finite = frozenset(finite)
    refuse_chains([n for n in finite if sites[n].in_scan])
    # Enumerated axes go to the left of every batch axis, declared as a plate or not.
    rank = max((max([len(s.batch_shape), *(-p.dim for p in s.plates)]) for s in sites.values()), default=0)
    others = {name: v for name, v in values.items() if name not in finite}
    model = infer_config(model, lambda msg: {"enumerate": "parallel"} if msg["name"] in finite else {"enumerate": None})
    model = seed(given(model, others, params), jax.random.key(0))
    # The order matters: a handler acts after those to its right.
    with plate_to_enum_plate(), PackedTrace() as trace, FullPlates(), Enumerated(finite), enum(None, -rank - 1):
        model(*args, **kwargs)
    factors, dims, scales = {}, {}, {}
    for name, msg in trace.items():
        if msg["type"] != "sample":
            continue
        log_prob = jnp.asarray(msg["fn"].log_prob(msg["value"]))
        if name in sites and sites[name].in_scan and log_prob.ndim > len(sites[name].batch_shape):
            raise ModelError(
                f"Site '{name}' is in a scan and depends on a finite latent site outside it; that cannot be summed out "
                "here. Give the finite site a value, or move it out of the model with a guide."
            )
        dim_to_name = msg["infer"]["dim_to_name"]
        if not dim_to_name:
            log_prob = log_prob.reshape(())
        factors[name] = funsor.to_funsor(log_prob, output=funsor.Real, dim_to_name=dim_to_name)
        dims[name] = {n: d for d, n in dim_to_name.items() if n not in finite}
        scales[name] = msg["scale"]
    return Graph(factors, dims, scales)


def relevant(graph: Graph, finite: frozenset[str], start: Iterable[str], through: Iterable[str]) -> frozenset[str]:
    """``start`` and the sites in ``through`` linked to it by finite sites, the finite sites themselves included."""
    chosen, names = set(start), set()
    candidates = set(through) | set(finite & graph.factors.keys())
    while True:
        names = set().union(*(graph.inputs(s) & finite for s in chosen)) if chosen else set()
        more = {s for s in candidates - chosen if graph.inputs(s) & names or s in names}
        if not more:
            return frozenset(chosen)
        chosen |= more


def eliminate(graph: Graph, chosen: Iterable[str], finite: frozenset[str], keep: frozenset[str]) -> funsor.terms.Funsor:
    """Log of the sum over the finite sites of the product of the chosen factors; plates in ``keep`` stay as axes.

    Tensor variable elimination (Obermeyer et al. 2019): the cost is that of the largest factor met on the way.
    """
    factors = [graph.factors[s] for s in chosen]
    if not factors:
        return funsor.Number(0.0)
    inputs = frozenset().union(*(f.inputs for f in factors))
    names, plates = inputs & finite, inputs - finite - keep
    with funsor.interpretations.lazy:
        result = funsor.sum_product.sum_product(funsor.ops.logaddexp, funsor.ops.add, factors, eliminate=names | plates, plates=plates)
    with _LOG_SPACE:
        return funsor.optimizer.apply_optimizer(result)


def to_array(result: funsor.terms.Funsor, dims: Mapping[str, int], shape: tuple[int, ...]) -> jax.Array:
    """A funsor over plates as an array of this shape, the axis of each plate given from the right."""
    if not result.inputs:
        return jnp.broadcast_to(jnp.asarray(result.data), shape)
    data = funsor.to_data(result, name_to_dim={name: dims[name] for name in result.inputs})
    return jnp.broadcast_to(data, shape)


def summed_log_density(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
    finite: Iterable[str],
) -> jax.Array:
    r"""Log joint density of a model at ``values``, with the finite sites it leaves out summed out.

    .. math:: \log \sum_d p(y, \theta, d)

    Sites linked through summed ones must share one ``handlers.scale``, which multiplies the log of their sum (as in
    ``TraceEnum_ELBO``). A finite site in ``scan`` is eliminated along the chain by NumPyro.

    :raises ModelError: if linked sites have different scales.
    """
    finite = frozenset(finite)
    if any(sites[n].in_scan for n in finite):
        return _chain_log_density(model, values, args, kwargs, params, sites, finite)
    graph = factor_graph(model, values, args, kwargs, params, sites, finite)
    total, left = jnp.zeros(()), set(graph.factors)
    while left:
        group = relevant(graph, finite, [min(left)], graph.factors)
        left -= group
        value = jnp.asarray(eliminate(graph, sorted(group), finite, frozenset()).data)
        total = total + _common_scale(graph, group) * value
    return total


def _common_scale(graph: Graph, group: frozenset[str]) -> Any:
    scales = [1.0 if graph.scales[s] is None else graph.scales[s] for s in sorted(group)]
    if all(s is scales[0] or (isinstance(s, float | int) and s == scales[0]) for s in scales):
        return scales[0]
    raise ModelError(
        f"Sites {', '.join(map(repr, sorted(group)))} share a finite latent site that is summed out, but not one scale. "
        "Put them all under the same handlers.scale."
    )


def _chain_log_density(model, values, args, kwargs, params, sites, finite):
    rank = max((-p.dim for s in sites.values() for p in s.plates), default=0)
    inside, outside = split_by_scan(values, sites)
    run = given(GivenInScan(Indexed(model, finite), inside), outside, params)
    with FullPlates(), _LOG_SPACE:
        return _funsor_log_density(enum(config_enumerate(run), -rank - 1), args, dict(kwargs), {})[0]
