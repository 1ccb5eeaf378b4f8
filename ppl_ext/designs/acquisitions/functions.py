"""What is believed of a function at its candidates: draws of it, or a normal law."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, check_number, described


class Gaussian(NamedTuple):
    """A normal law of the function at n candidates."""

    mean: jax.Array
    root: jax.Array

    @property
    def num_candidates(self) -> int:
        return self.mean.shape[0]

    @property
    def covariance(self) -> jax.Array:
        return self.root @ self.root.T

    def given(self, rows: jax.Array, noise: Any) -> "Measured":
        r"""What k measurements at ``rows`` do, one after the other.

        .. math:: L L^\top - \frac{L \ell \ell^\top L^\top}{s} = A A^\top, \qquad A = L - \frac{L \ell
            \ell^\top}{s + \sigma \sqrt s}, \qquad s = \ell^\top \ell + \sigma^2

        with :math:`\ell` the row of L that is measured: by the root, whose square stays a covariance in
        single precision, also where the noise is small and two rows are alike.
        """

        def one(root, row):
            along = root[row]
            total = along @ along + noise**2
            across = root @ along
            moved = root - jnp.outer(across, along) / (total + noise * jnp.sqrt(total))
            return moved, (across / jnp.sqrt(total), total)

        root, (moves, totals) = jax.lax.scan(one, self.root, rows)
        return Measured(moves.T, totals, root)


class Measured(NamedTuple):
    """How the mean moves (n, k) with k independent standard normal numbers, the variance (k,) of each
    measurement given those before, with its noise, and a root of the covariance then.
    """

    moves: jax.Array
    totals: jax.Array
    root: jax.Array


class Draws(NamedTuple):
    """Draws of the function, (draws, candidates), or (draws, candidates, ...) where it is an array."""

    values: jax.Array

    @property
    def num_candidates(self) -> int:
        return self.values.shape[1]


def as_functions(where: str, functions: Any, arrays: bool = False) -> Gaussian | Draws:
    """What the caller handed over, checked; ``arrays``: whether a measurement may be an array.

    :raises ArgumentTypeError: for what is neither draws nor a normal law.
    :raises ArgumentError: for draws of another shape, fewer than two, or not finite; a batch of laws; a dict
        of more than one site.
    """
    if isinstance(functions, Mapping):
        if len(functions) != 1:
            raise ArgumentError(
                f"{where}: functions must be the draws of one site, got those of "
                f"{', '.join(map(repr, functions)) or 'none'}. Hand the one that is measured: draws['f']."
            )
        functions = next(iter(functions.values()))
    if isinstance(functions, dist.Distribution):
        return _as_gaussian(where, functions)
    check_array(f"{where}: functions", functions)
    values = jnp.asarray(functions, float)
    if values.ndim < 2 or (values.ndim > 2 and not arrays):
        raise ArgumentError(
            f"{where}: functions must be draws of a function at candidates (draws, candidates), got "
            f"{described(functions)}. Flatten chains into one axis, and candidates into another."
        )
    if len(values) < 2 or not values.shape[1]:
        raise ArgumentError(
            f"{where}: functions must hold two draws or more, of one candidate or more, got "
            f"{described(functions)}."
        )
    known = None if isinstance(functions, jax.core.Tracer) else np.isfinite(np.asarray(functions))
    if known is not None and not known.all():
        row, candidate, *_ = np.argwhere(~known)[0]
        raise ArgumentError(
            f"{where}: functions must be finite; draw {row} at candidate {candidate} is not. Leave it out."
        )
    return Draws(values)


def _as_gaussian(where: str, law: dist.Distribution) -> Gaussian:
    if isinstance(law, dist.Independent) and isinstance(law.base_dist, dist.Normal):
        base = law.base_dist
        mean, root = base.loc, None
        if len(base.batch_shape) == 1:
            root = jnp.diag(jnp.broadcast_to(base.scale, base.batch_shape))
    elif isinstance(law, dist.MultivariateNormal) and not law.batch_shape:
        mean, root = law.loc, law.scale_tril
    else:
        raise ArgumentTypeError(
            f"{where}: functions must be draws (draws, candidates), or one MultivariateNormal over the "
            f"candidates, got {described(law)}. Draw from it: law.sample(rng_key, (1000,))."
        )
    if root is None:
        raise ArgumentTypeError(
            f"{where}: functions must be a law over the candidates alone, got event shape {law.event_shape}."
        )
    return Gaussian(jnp.broadcast_to(mean, root.shape[:1]), root)


def needs_draws(where: str, functions: Gaussian | Draws) -> jax.Array:
    """The draws, where there is no formula for a normal law."""
    if isinstance(functions, Gaussian):
        raise ArgumentTypeError(
            f"{where}: this wants draws of the function, got a normal law of it. Draw from it: "
            "law.sample(rng_key, (1000,))."
        )
    return functions.values


def as_rows(where: str, rows: Any, num_candidates: int) -> jax.Array:
    """Numbers of candidates (k,), in range where they are known."""
    if not isinstance(rows, jax.core.Tracer):
        known = np.asarray(rows)
        if known.ndim != 1 or (known.size and not np.issubdtype(known.dtype, np.integer)):
            raise ArgumentError(f"{where} must be numbers of candidates (k,), got {described(rows)}.")
        if known.size and not (0 <= known.min() and known.max() < num_candidates):
            raise ArgumentError(
                f"{where} must be numbers of candidates, from 0 to {num_candidates - 1}, got "
                f"{known.tolist()}."
            )
        rows = known.astype(np.int32)
    return jnp.asarray(rows)


def check_noise(where: str, noise: Any) -> None:
    """A standard deviation of measurements, above zero where it is known."""
    if isinstance(noise, jax.core.Tracer):
        return
    check_number(where, noise)
    if not noise > 0:
        raise ArgumentError(
            f"{where} must be the standard deviation of a measurement, above zero, got {noise}. Draws of a "
            "function tell apart no measurements without noise; take a small one, a tenth of its spread say."
        )
