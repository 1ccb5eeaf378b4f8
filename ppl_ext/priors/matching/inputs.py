"""Where functions are compared: the measurement set of each step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, check_number, described


def measurement_inputs(
    inputs: Any, num_points: int = 100, data_fraction: float = 0.7
) -> Callable[[jax.Array], jax.Array]:
    """A sampler of measurement sets: some of the training inputs, and points that are uniform in their
    bounding box.

    Pass training inputs only: a box that held test inputs too would leak where they lie.

    :param inputs: (n, d) or (n,), the training inputs.
    :param num_points: M, how many points a set has.
    :param data_fraction: share of them that are training inputs, drawn with replacement.
    :return: a function from a key to (M, d), or (M,).
    :raises ArgumentError: for inputs that are not (n, d) or (n,), or not finite; for a fraction outside of
        [0, 1].

    >>> draw = measurement_inputs(np.array([0.0, 2.0, 4.0]), num_points=10)
    >>> draw(jax.random.key(0)).shape
    (10,)
    """
    x = check_inputs("measurement_inputs: inputs", inputs)
    check_count("measurement_inputs: num_points", num_points)
    check_number("measurement_inputs: data_fraction", data_fraction, at_least=0.0)
    if data_fraction > 1.0:
        raise ArgumentError(
            f"measurement_inputs: data_fraction must lie between 0 and 1, got {described(data_fraction)}."
        )
    return Measurements(x, x.min(0), x.max(0), num_points, round(data_fraction * num_points))


# Modules, not closures, so that what is compiled for one set of inputs serves another.
class Measurements(eqx.Module):
    """What :func:`measurement_inputs` returns."""

    rows: jax.Array
    low: jax.Array
    high: jax.Array
    num_points: int = eqx.field(static=True)
    from_data: int = eqx.field(static=True)

    def __call__(self, rng_key: jax.Array) -> jax.Array:
        of_data, of_box = jax.random.split(rng_key)
        rows = self.rows[jax.random.randint(of_data, (self.from_data,), 0, len(self.rows))]
        shape = (self.num_points - self.from_data, *self.rows.shape[1:])
        return jnp.concatenate(
            [rows, jax.random.uniform(of_box, shape, self.rows.dtype, self.low, self.high)]
        )


def designed_inputs(inputs: Any, design: dist.Distribution) -> Callable[[jax.Array], jax.Array]:
    """A sampler of measurement sets: the rows that a design draws, anew at every step.

    Points that repel each other say more of a function than as many that are drawn alone; for inducing rows,
    which stay where they are, draw once: ``inputs[design.sample(rng_key)]``.

    :param inputs: (N, d) or (N,), the candidates.
    :param design: a law over numbers of candidates (M,), such as :class:`~ppl_ext.designs.ProjectionDPP`.
    :return: a function from a key to (M, d), or (M,).
    :raises ArgumentTypeError: for a design that is no distribution over integers.
    :raises ArgumentError: for inputs that are not (N, d) or (N,), or not finite; for a design over more or
        fewer candidates.

    >>> from ppl_ext.designs import ProjectionDPP
    >>> x = np.linspace(-1.0, 1.0, 50)
    >>> draw = designed_inputs(x, ProjectionDPP(x[:, None] ** np.arange(4)))
    >>> draw(jax.random.key(0)).shape
    (4,)
    """
    x = check_inputs("designed_inputs: inputs", inputs)
    law = isinstance(design, dist.Distribution) and design.support
    if not law or not law.is_discrete or len(design.shape()) != 1:
        raise ArgumentTypeError(
            "designed_inputs: design must be one distribution over numbers of candidates (M,), such as "
            f"ProjectionDPP(features), got {described(design)}."
        )
    last = jnp.full(design.shape(), len(x) - 1)
    if not bool(jnp.all(law(last))) or bool(jnp.all(law(last + 1))):
        raise ArgumentError(
            f"designed_inputs: design must be over the {len(x)} candidates of inputs, and is over more or "
            "fewer. Make it from features of the same rows."
        )
    return Designed(x, design)


class Designed(eqx.Module):
    """What :func:`designed_inputs` returns."""

    rows: jax.Array
    design: dist.Distribution

    def __call__(self, rng_key: jax.Array) -> jax.Array:
        return self.rows[self.design.sample(rng_key)]


class Fixed(eqx.Module):
    """Inputs that are the same at every step."""

    rows: jax.Array

    def __call__(self, rng_key: jax.Array) -> jax.Array:
        return self.rows


def check_inputs(where: str, inputs: Any) -> jax.Array:
    """(n, d) or (n,) of finite numbers, at least one row."""
    if hasattr(inputs, "to_numpy"):
        raise ArgumentTypeError(f"{where} is {described(inputs)}; pass .to_numpy() instead.")
    try:
        x = np.asarray(inputs)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{where} must be an array, got {described(inputs)}.") from None
    if x.dtype.kind not in "biuf":
        raise ArgumentTypeError(f"{where} must be an array of real numbers, got {described(inputs)}.")
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise ArgumentError(f"{where} must have shape (n, d) or (n,) with at least one row, got {x.shape}.")
    if not np.isfinite(x).all():
        raise ArgumentError(f"{where} holds {(~np.isfinite(x)).sum()} numbers that are not finite.")
    return jnp.asarray(x, jnp.result_type(float))
