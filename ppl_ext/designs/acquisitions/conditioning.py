"""What is believed of a function after one more measurement."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.designs.acquisitions.functions import Gaussian, as_functions, as_rows, check_noise
from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_key, described


def log_weights(values: jax.Array, seen: jax.Array, noise: Any) -> jax.Array:
    """Log densities of what was measured at k candidates, by draw (S, k, ...), up to a constant."""
    return -0.5 * jnp.sum(((values - seen) / noise) ** 2, range(1, values.ndim))


def _as_one(candidate: Any) -> Any:
    array = candidate if isinstance(candidate, jax.Array) else np.asarray(candidate)
    if array.ndim:
        raise ArgumentError(f"condition: candidate must be one number, got {described(candidate)}.")
    return array[None]


def _given_one(law: Gaussian, row: jax.Array, value: jax.Array, noise: Any) -> dist.MultivariateNormal:
    found = law.given(row[None], noise)
    upper = jnp.linalg.qr(found.root.T, mode="r")
    lower = (upper * jnp.where(upper.diagonal() < 0, -1.0, 1.0)[:, None]).T
    mean = law.mean + found.moves[:, 0] * (value - law.mean[row]) / jnp.sqrt(found.totals[0])
    return dist.MultivariateNormal(mean, scale_tril=lower)


def condition(functions: Any, candidate: Any, value: Any, noise: Any, *, rng_key: Any = None) -> Any:
    r"""The functions given that one candidate was measured.

    .. math:: y = f(x) + \sigma \varepsilon, \qquad p(f \mid y) \propto p(f) \, N(y; f(x), \sigma^2)

    A normal law is conditioned exactly. Draws are taken anew with these weights, as many as there were; of
    few draws that agree with the measurement there are copies, so that after some measurements a fresh
    posterior is wanted.

    :param functions: draws (draws, n), or (draws, n, ...) where a measurement is an array; or one
        ``MultivariateNormal`` over the n candidates.
    :param candidate: the number of the one that was measured.
    :param value: y.
    :param noise: its standard deviation, above zero.
    :param rng_key: for draws.
    :return: draws of the same shape, or a ``MultivariateNormal``.
    :raises ArgumentError: for a noise that is not above zero, a value of another shape, a candidate there is
        not, or a measurement that is more than a hundred standard deviations from every draw.
    :raises ArgumentTypeError: for draws without a key.

    >>> law = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    >>> after = condition(law, 0, 2.0, 1.0)
    >>> [f"{x:.3f}" for x in [*after.mean, *after.variance]]
    ['1.000', '0.500', '0.500', '0.875']
    """
    where = "condition"
    known = as_functions(where, functions, arrays=True)
    rows = as_rows(f"{where}: candidate", _as_one(candidate), known.num_candidates)
    check_noise(f"{where}: noise", noise)
    check_array(f"{where}: value", value)
    value = jnp.asarray(value, float)
    row = rows[0]
    shape = () if isinstance(known, Gaussian) else known.values.shape[2:]
    if value.shape != shape:
        raise ArgumentError(
            f"{where}: value must be one measurement, of shape {shape}, got shape {value.shape}."
        )
    if not isinstance(value, jax.core.Tracer) and not jnp.isfinite(value).all():
        raise ArgumentError(
            f"{where}: value must be finite, got {value}. What was not measured says nothing."
        )
    if isinstance(known, Gaussian):
        return _given_one(known, row, value, noise)
    check_key(f"{where}: rng_key", rng_key)
    logs = log_weights(known.values[:, row], value, noise)
    if not isinstance(logs, jax.core.Tracer) and logs.max() < -0.5 * 100.0**2:
        raise ArgumentError(
            f"{where}: the value at candidate {int(row)} is more than a hundred standard deviations from "
            "every draw, which then say nothing of the function. Draw a posterior that has seen it, or say a "
            "larger noise."
        )
    # systematic: one uniform number for all
    sums = jnp.cumsum(jax.nn.softmax(logs))
    points = (jnp.arange(len(logs)) + jax.random.uniform(rng_key)) / len(logs) * sums[-1]
    return known.values[jnp.minimum(jnp.searchsorted(sums, points, side="right"), len(logs) - 1)]
