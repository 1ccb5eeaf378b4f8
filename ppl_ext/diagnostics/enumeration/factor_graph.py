"""Tables by funsor: how those that NumPyro's enumeration of a ``scan`` leaves are multiplied and summed.

All that is no chain goes to :mod:`ppl_ext.densities.variable_elimination`; the one-step-ahead terms of chains
are made from these.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import funsor
import jax
import jax.numpy as jnp

from ppl_ext.diagnostics.sites import Site


class Graph(NamedTuple):
    """The factors of a model at one draw.

    ``factors``: by site, log probabilities over the site's plates and the finite sites it depends on; no
    scale. ``dims``: by site, the axis of each plate, counted from the right.
    """

    factors: dict[str, funsor.terms.Funsor]
    dims: dict[str, dict[str, int]]

    @property
    def size(self) -> int:
        """How many numbers the factors hold together."""
        return sum(math.prod(domain.size for domain in f.inputs.values()) for f in self.factors.values())


_log_space_rules = funsor.interpretations.DispatchedInterpretation("log_space")
_LOG_SPACE = funsor.interpretations.PrioritizedInterpretation(_log_space_rules, funsor.interpretations.eager)
"""How factors are multiplied and summed.

funsor's own rule exponentiates each factor by itself and multiplies matrices: where one factor is large
another may have underflowed, and the sum of a zero weight and a far observation comes out as -inf. Adding
first and subtracting the maximum of the sum costs a larger intermediate array, and is right.
"""


@_log_space_rules.register(
    funsor.cnf.Contraction,
    funsor.ops.LogaddexpOp,
    funsor.ops.AddOp,
    frozenset,
    funsor.tensor.Tensor,
    funsor.tensor.Tensor,
)
def _add_then_logsumexp(sum_op, product_op, reduced_vars, x, y):
    return product_op(x, y).reduce(sum_op, reduced_vars)


def split_by_scan(
    values: Mapping[str, Any], sites: Mapping[str, Site]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the sites in a ``scan``, and of the others."""
    inside = {
        n: v for n, v in values.items() if n in sites and sites[n].in_scan and sites[n].kind == "latent"
    }
    return inside, {n: v for n, v in values.items() if n not in inside}


def eliminate(
    graph: Graph, chosen: Iterable[str], finite: frozenset[str], keep: frozenset[str]
) -> funsor.terms.Funsor:
    """Log of the sum over the finite sites of the product of the chosen factors; plates in ``keep`` stay as
    axes.

    Tensor variable elimination (Obermeyer et al. 2019): the cost is that of the largest factor met on the
    way.
    """
    factors = [graph.factors[s] for s in chosen]
    if not factors:
        return funsor.Number(0.0)
    inputs = frozenset().union(*(f.inputs for f in factors))
    names, plates = inputs & finite, inputs - finite - keep
    with funsor.interpretations.lazy:
        result = funsor.sum_product.sum_product(
            funsor.ops.logaddexp, funsor.ops.add, factors, eliminate=names | plates, plates=plates
        )
    with _LOG_SPACE:
        return funsor.optimizer.apply_optimizer(result)


def to_array(result: funsor.terms.Funsor, dims: Mapping[str, int], shape: tuple[int, ...]) -> jax.Array:
    """A funsor over plates as an array of this shape, the axis of each plate given from the right."""
    if not result.inputs:
        return jnp.broadcast_to(jnp.asarray(result.data), shape)
    data = funsor.to_data(result, name_to_dim={name: dims[name] for name in result.inputs})
    return jnp.broadcast_to(data, shape)
