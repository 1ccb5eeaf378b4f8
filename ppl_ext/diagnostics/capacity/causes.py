"""Why units of an encoder are inactive, in words, from the eigenvalues of the data and the flow between
sites.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.diagnostics.capacity.units import Encoded, Units, drawn
from ppl_ext.diagnostics.depending import depending
from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array


def eigenvalues(y: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of (rows, units), the largest first."""
    y = y - y.mean(0)
    return np.linalg.eigvalsh(y.T @ y / len(y))[::-1]


def residuals(y: np.ndarray, inputs: Any) -> np.ndarray:
    """What a linear regression on the inputs leaves of (rows, units)."""
    check_array("collapse: inputs", inputs)
    x = np.asarray(inputs, np.float64)
    if x.ndim == 0 or len(x) != len(y):
        raise ArgumentError(
            f"collapse: inputs must have one row for each of the {len(y)} data, got shape {x.shape}."
        )
    x = np.concatenate([np.ones((len(y), 1)), x.reshape(len(y), -1)], 1)
    return y - x @ np.linalg.lstsq(x, y, rcond=None)[0]


def readers(of: Encoded, site: str) -> set[str]:
    """The sites whose law in the model reads this one itself, and not only through others."""
    shapes = jax.eval_shape(lambda key: _values(of, key), jax.random.key(0))
    others = {n: x for n, x in shapes.items() if n != site}
    names = [n for n in (*of.latent, of.observed) if n != site]
    return depending(
        of.model,
        (site,),
        lambda record: {n: jax.tree.leaves(record[n]["fn"]) for n in names},
        others,
        of.args,
        of.kwargs,
        of.params,
    )


def _values(of: Encoded, key: jax.Array) -> dict[str, jax.Array]:
    q, p = drawn(of.guide, of.model, of.params, of.args, of.kwargs, key)
    return {n: m["value"] for n, m in q.items() if n in p and m["type"] == "sample"}


def variance_is_learned(of: Encoded, site: str) -> bool:
    """Whether a parameter moves the variance of the guide's law of a site."""
    moving, fixed = eqx.partition(dict(of.params), eqx.is_inexact_array)

    def variance(moving):
        params = eqx.combine(moving, fixed)
        q, _ = drawn(of.guide, of.model, params, of.args, of.kwargs, jax.random.key(0))
        return jnp.sum(q[site]["fn"].variance)

    try:
        slopes = jax.grad(variance)(moving)
    except NotImplementedError:  # a law that does not know its variance has one that is learned, as a flow's
        return True
    return any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(slopes))


def of_data(
    of: Encoded, first: str, level: float, left: np.ndarray, raw: np.ndarray, observed: int, predicted: int
) -> Iterator[str]:
    """Why units that the data's law reads are inactive; the words begin with the site and the name of the
    cause.
    """
    above, before = int((left > level).sum()), int((raw > level).sum())
    if observed < predicted:
        yield (
            f"{first}, optimisation: {predicted} units would pay, {observed} are active. Run more steps, or "
            "begin with a smaller weight of the divergence."
        )
    elif before > above:
        yield (
            f"{first}, inputs: {before} of {raw.size} directions of '{of.observed}' have more variance than "
            f"{level:.4g}, the noise times the weight; of what the inputs leave, {above} have."
        )
    elif above < raw.size:
        yield (
            f"{first}, noise: {above} of {raw.size} directions of '{of.observed}' have more variance than "
            f"{level:.4g}, the noise times the weight."
        )


def of_level(of: Encoded, upper: str, lower: str, units: Units, beta: Mapping[str, float]) -> Iterator[str]:
    """What a level that only another latent site reads is worth."""
    if not variance_is_learned(of, lower):
        return
    if beta[lower] > beta[upper]:
        yield (
            f"{upper}, unbounded: the weight {beta[lower]:g} of '{lower}' exceeds the {beta[upper]:g} of "
            f"'{upper}', and the guide's variance of '{lower}' is learned: widening '{lower}' lowers the "
            "objective's loss without end. Make the weights equal, or fix that variance."
        )
    else:
        yield (
            f"{upper}, levels: the guide's variance of '{lower}' is learned, so that '{lower}' can carry all "
            f"that '{upper}' does ({units.kl.sum():.3f} nats): '{upper}' can be removed at no cost. Fix that "
            "variance, or let the data's law read both."
        )
