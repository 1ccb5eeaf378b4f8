"""Parameter values and data that a user gives to smooth with, checked before anything is computed from
them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_values
from ppl_ext.state_space.model import StateSpace


def parameters(where: str, params: Mapping[str, Any] | None, floating: bool = False) -> dict[str, jax.Array]:
    """Values by name, as arrays that no one else holds.

    :param floating: make integers real, for those that move.
    :raises ArgumentError: if a value is NaN: every density would be, and the evidence zero.
    """
    check_values(f"{where}: params", {} if params is None else params)
    found = {}
    for name, value in (params or {}).items():
        found[name] = jnp.array(value, jnp.result_type(float)) if floating else jnp.array(value)
        if is_known(found[name]) and np.isnan(found[name]).any():
            raise ArgumentError(
                f"{where}: params: the value of '{name}' is NaN{_where_in(found[name])}; give a number."
            )
    return found


def is_known(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _where_in(x: jax.Array) -> str:
    return "" if x.ndim == 0 else f" at {list(map(int, np.argwhere(np.isnan(x))[0]))}"


def outside(lowered: StateSpace) -> dict[str, jax.Array]:
    """Whether each parameter lies outside of its support: by the support's own test, and by the way to the
    real line and back, since some tests (of a simplex, of a covariance) are stricter than single
    precision."""
    found = {}
    for name, site in lowered.parameter_sites.items():
        value, support = lowered.parameters[name], site.fn.support
        inside = jnp.all(support(value))
        if not support.is_discrete:
            there = biject_to(support)
            inside |= jnp.all(
                jnp.isclose(
                    there(there.inv(jnp.asarray(value, jnp.result_type(float)))), value, rtol=1e-3, atol=1e-5
                )
            )
        found[name] = ~inside
    return found


def check_inside(where: str, found: Mapping[str, jax.Array], params: Mapping[str, Any]) -> None:
    """Refuse parameters outside of their supports.

    :raises ArgumentError: if :func:`outside` found a parameter so. Within a trace nothing is known, and
        nothing raised.
    """
    for name, is_outside in found.items():
        if is_known(is_outside) and bool(jnp.any(is_outside)):
            value = params.get(name)
            shown = (
                "" if value is None or not is_known(value) or jnp.ndim(value) else f", got {float(value):g}"
            )
            raise ArgumentError(
                f"{where}: params: the value of '{name}' lies outside of the support that the model gives "
                f"it{shown}."
            )
