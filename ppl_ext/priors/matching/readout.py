r"""Moments of a model's functions that are exact over its last layer, where that layer is linear and
Gaussian.

Given all other sites, f = a + J w is affine in the readout's weights,
:math:`w \sim N(\mu, \mathrm{diag}\, s^2)`, and so

.. math:: E f = E[a + J \mu], \qquad \mathrm{Cov} f = E[J\, \mathrm{diag}(s^2) J^\top] + \mathrm{Cov}[a + J
    \mu],

where only the other sites are left to be drawn (Rao and Blackwell).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.handlers import substitute
from numpyro.ops.provenance import eval_provenance

from ppl_ext.priors.distances.distance import Functions
from ppl_ext.priors.functions.outputs import Output, as_function, read, run_once

MOST_WEIGHTS = 2048
"""A readout with more weights than this is left to its draws: its Jacobian would cost more than they do."""


def base_of(law: dist.Distribution) -> dist.Distribution:
    while isinstance(law, dist.ExpandedDistribution | dist.Independent):
        law = law.base_dist
    return law


def find_readout(
    program: Callable, output: Output, rng_key: jax.Array, inputs: jax.Array, args: tuple, kwargs: Mapping
) -> tuple[str, ...]:
    """The Gaussian sites that the function is affine in, together, and that no other site it depends on hangs
    on; from the data flow.
    """
    sites, _ = jax.eval_shape(lambda: (_values(run_once(program, rng_key, inputs, args, kwargs)[0]), 0))
    kinds: dict[str, bool] = {}

    def laws_of(values):
        found, returned = run_once(substitute(program, data=values), rng_key, inputs, args, kwargs)
        latent = {n: s["fn"] for n, s in found.items() if s["type"] == "sample" and not s["is_observed"]}
        kinds.update({n: isinstance(base_of(fn), dist.Normal) for n, fn in latent.items()})
        return _output(found, returned, output, inputs), {n: jax.tree.leaves(fn) for n, fn in latent.items()}

    def depends(**values):
        return laws_of(values)

    of_output, of_laws = eval_provenance(depends, **sites)
    relevant = {n for n in sites if n in of_output}
    parents = {n: frozenset().union(*_sets(of_laws[n])) - {n} for n in of_laws}
    chosen: list[str] = []
    size = 0
    for name in reversed([n for n in sites if n in relevant and kinds[n]]):
        group = {*chosen, name}
        size_now = size + int(np.prod(sites[name].shape))
        if size_now > MOST_WEIGHTS or any(parents[n] & group for n in relevant):
            continue
        if _affine(laws_of, sites, group):
            chosen.append(name)
            size = size_now
    return tuple(reversed(chosen))


def _affine(laws_of: Callable, sites: Mapping[str, Any], group: set[str]) -> bool:
    """Whether the derivative along the group does not depend on where in the group it is taken."""

    def tangent(**values):
        along = {n.removeprefix("d "): values[n] for n in values if n.startswith("d ")}
        rest = {n: v for n, v in values.items() if n in sites and n not in group}
        at = {n: values[n] for n in group}
        return jax.jvp(lambda w: laws_of({**rest, **w})[0], (at,), (along,))[1]

    found = eval_provenance(tangent, **sites, **{f"d {n}": sites[n] for n in group})
    return not found & group


def functions_with_moments(
    program: Callable,
    readout: tuple[str, ...],
    output: Output,
    keys: jax.Array,
    inputs: jax.Array,
    args: tuple,
    kwargs: Mapping,
) -> Functions:
    """Draws of the program's functions, (draw, D), with mean and covariance that are exact over the
    readout.
    """

    def one(key):
        found, returned = run_once(program, key, inputs, args, kwargs)
        laws = {n: found[n]["fn"] for n in readout}
        values = _values(found)
        weights, unravel = ravel_pytree({n: values[n] for n in readout})
        means, _ = ravel_pytree({n: jnp.broadcast_to(law.mean, values[n].shape) for n, law in laws.items()})
        sds, _ = ravel_pytree(
            {n: jnp.sqrt(jnp.broadcast_to(law.variance, values[n].shape)) for n, law in laws.items()}
        )

        def function(flat):
            again = run_once(substitute(program, data={**values, **unravel(flat)}), key, inputs, args, kwargs)
            return _output(*again, output, inputs)

        value, push = jax.linearize(function, weights)
        basis = jnp.diag(sds)
        return value, value + push(means - weights), jax.vmap(push, out_axes=1)(basis)

    values, centres, factors = jax.vmap(one)(keys)
    mean = centres.mean(0)
    spread = (centres - mean).T @ (centres - mean) / (len(values) - 1)
    return Functions(values, mean, jnp.einsum("nik,njk->ij", factors, factors) / len(values) + spread)


def _values(sites: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The values of the latent sites alone: an observed one belongs to its data, and one that holds a
    likelihood's draw hangs on the function.
    """
    return {n: s["value"] for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]}


def _output(sites, returned, output: Output, inputs: jax.Array) -> jax.Array:
    return as_function(read(sites, returned, output), inputs.shape[0], output).reshape(-1)


def _sets(leaves: Any) -> list[frozenset[str]]:
    return jax.tree.leaves(leaves, is_leaf=lambda s: isinstance(s, frozenset))
