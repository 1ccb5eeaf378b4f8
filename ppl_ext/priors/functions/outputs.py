"""The function that a model draws: a deterministic site, a likelihood's location, what the model returns, or
a function of its sites.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import seed, trace

from ppl_ext.errors import ArgumentTypeError, ModelError
from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.explain import explained

Output = str | Callable[[dict[str, Any]], jax.Array] | None


def check_output(where: str, output: Any) -> None:
    if (
        output is not None
        and not isinstance(output, str)
        and (not callable(output) or isinstance(output, type))
    ):
        raise ArgumentTypeError(
            f"{where} must be a site's name, a function from a dict of all sites' values to an array, or "
            f"None for what the model returns; got {described(output)}."
        )


def run_once(
    program: Callable, rng_key: jax.Array, inputs: jax.Array, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict, Any]:
    """One run from the prior: the trace, and what the program returns."""
    with numpyro.validation_enabled(False), trace() as sites, seed(rng_seed=rng_key):
        returned = program(inputs, *args, **kwargs)
    return sites, returned


def draw_function(
    program: Callable,
    output: Output,
    rng_key: jax.Array,
    inputs: jax.Array,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
) -> jax.Array:
    """One function of the program at these inputs: (M,), or (M, P) for P > 1 outputs.

    :raises ModelError: if there is no such site, or what it holds has not one row for each input.
    """
    with explained(program):
        sites, returned = run_once(program, rng_key, inputs, args, kwargs or {})
        value = read(sites, returned, output)
    return as_function(value, inputs.shape[0], output)


def read(sites: Mapping[str, Mapping[str, Any]], returned: Any, output: Output) -> Any:
    if output is None:
        return returned
    if callable(output):
        return output(
            {
                name: site["value"]
                for name, site in sites.items()
                if site["type"] in ("sample", "deterministic")
            }
        )
    if output not in sites:
        names = [n for n, s in sites.items() if s["type"] in ("sample", "deterministic")]
        raise ModelError(
            f"match: the model has no site '{output}' to read functions from. It has: "
            f"{', '.join(map(repr, names))}."
        )
    site = sites[output]
    return location(site["fn"]) if site["type"] == "sample" else site["value"]


def location(law: dist.Distribution) -> jax.Array:
    """The parameter that says where a likelihood lies: ``loc``, ``logits``, or else its mean.

    >>> location(dist.Normal(jnp.ones(3), 2.0).to_event(1))
    Array([1., 1., 1.], dtype=float32)
    """
    base, shape = law, tuple(law.shape())
    while isinstance(base, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        base = base.base_dist
    for name in ("loc", "logits"):
        value = getattr(base, name, None)
        if value is not None:
            # a categorical's logits have an axis that its draws have not
            extra = jnp.ndim(value) - len(base.shape())
            return (
                jnp.broadcast_to(value, shape + jnp.shape(value)[jnp.ndim(value) - extra :])
                if extra >= 0
                else jnp.broadcast_to(value, shape)
            )
    return law.mean


def as_function(value: Any, num_inputs: int, output: Output) -> jax.Array:
    name = (
        f"site '{output}'"
        if isinstance(output, str)
        else "the output"
        if output is not None
        else "what the model returns"
    )
    shape = jnp.shape(value) if value is not None and not isinstance(value, dict | str) else None
    if shape is None or isinstance(value, tuple | list) or len(shape) not in (1, 2) or shape[0] != num_inputs:
        got = (
            described(value) if shape is None or isinstance(value, tuple | list) else f"shape {tuple(shape)}"
        )
        hint = " Name the site that holds the function, as output='f'." if output is None else ""
        raise ModelError(
            f"match: {name} must be (M,) or (M, P), one row for each of the {num_inputs} inputs, got {got}. "
            f"A plate that is subsampled gives fewer: ask for the whole of it here.{hint}"
        )
    value = jnp.asarray(value)
    value = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.result_type(float))
    return value[:, 0] if value.ndim == 2 and shape[1] == 1 else value
