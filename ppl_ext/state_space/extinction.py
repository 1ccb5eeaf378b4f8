"""What is handed out where no particle survives: all weights are zero, and nothing that follows is a number.

The estimate of the evidence is then 0, as it should be (it is unbiased, and its log is minus infinity). The
law of the states given these data is estimated by nothing at all: effective sample sizes, draws and
expectations are NaN from there on, and a warning says where.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def nothing_like(x: Any) -> jax.Array:
    """NaN; of integers, which have none, the least one, and of Booleans False.

    >>> nothing_like(jnp.zeros(2)), int(nothing_like(jnp.zeros((), jnp.int8)))
    (Array([nan, nan], dtype=float32), -128)
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.full_like(x, jnp.iinfo(x.dtype).min)
    return jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0)


def lost(tree: Any, where: jax.Array) -> Any:
    """The tree, or nothing in its place."""
    return jax.tree.map(
        lambda x: (
            x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.where(where, nothing_like(x), x)
        ),
        tree,
    )


def shown(values: dict[str, Any]) -> dict[str, Any]:
    """Values as a user reads them: integers among which :func:`nothing_like` stands become real numbers with
    NaN in its place.
    """
    return {name: _shown(x) for name, x in values.items()}


def _shown(x: Any) -> Any:
    if isinstance(x, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(x), jnp.signedinteger):
        return x
    absent = np.asarray(x) == np.iinfo(x.dtype).min
    return jnp.asarray(np.where(absent, np.nan, np.asarray(x, np.float32))) if absent.any() else x


def is_extinct(log_evidence: Any) -> bool:
    """Whether an evidence is known, and zero."""
    return not isinstance(log_evidence, jax.core.Tracer) and bool(np.isneginf(np.asarray(log_evidence)).any())


def is_broken(log_evidence: Any) -> bool:
    """Whether it is known, and zero or NaN."""
    return not isinstance(log_evidence, jax.core.Tracer) and not bool(
        (np.asarray(log_evidence) > -np.inf).all()
    )


def where_lost(log_initial: Any, log_increments: Any) -> str:
    """The first place without a survivor, in words; increments after it are NaN."""
    if np.isneginf(log_initial):
        return "what is observed before the scan"
    return f"step {int(np.argmax(np.isneginf(np.asarray(log_increments))))}"


def warn_extinct(
    what: str, place: str, how_many: int | None = None, num_nan: int = 0, remedy: str = ""
) -> None:
    """Say where and what to do; ``how_many`` particles, or None where the answer is exact."""
    if how_many is None:
        cause = f"no state allows {place}: the evidence is 0 (log evidence -inf)"
    else:
        cause = (
            f"no particle survives {place}: all {how_many} weights are zero, so the evidence is estimated "
            "as 0 (log evidence -inf)"
        )
    nans = (
        f" {num_nan} densities were NaN, which counts as zero: look at the parameters that the laws get "
        "there."
        if num_nan
        else ""
    )
    if not remedy:
        remedy = "Look at the data there, and whether the support of their law has them"
        remedy += (
            "."
            if how_many is None
            else "; if they are possible, use more particles, or a proposal= that looks at them."
        )
    warnings.warn(f"{what}: {cause}, and what follows from it is NaN.{nans} {remedy}", stacklevel=3)
